"""Inference against ``policy.dist``: to round-off in float32, within its digits in bfloat16."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from mbrl_bilevel.policies import fast_inference as inference
from mbrl_bilevel.policies.fast_inference import FrozenPolicy, fastest_precision
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy, with_members
from mbrl_bilevel.policies.scales import Scale

E, X, D = 3, 4, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(policy: nn.Module) -> None:
    """Every parameter and finite buffer drawn anew: many start at zero, where mistakes hide."""
    g = seeded(1)
    with torch.no_grad():
        for value in policy.parameters():
            value += 0.5 * torch.randn(value.shape, generator=g, dtype=value.dtype)
        if isinstance(getattr(policy, "temper_low", None), Tensor):
            policy.temper_low.fill_(-0.7)  # type: ignore[operator, union-attr]
            policy.temper_high.fill_(0.4)  # type: ignore[operator, union-attr]
        if isinstance(getattr(policy, "dispersion", None), Tensor):
            policy.dispersion.normal_(generator=g)  # type: ignore[operator, union-attr]


def gaussian(scale: Scale = "separate", hidden: tuple[int, ...] = (7, 6)) -> GaussianPolicy:
    policy = GaussianPolicy(X, D, generator=seeded(), members=E, hidden=hidden, scale=scale)
    randomised(policy)
    return policy


def require_same(policy: GaussianPolicy | MixturePolicy, x: Tensor, **tolerance: float) -> None:
    expected = policy.dist(x)
    for ours, theirs in zip(FrozenPolicy(policy).dist(x).params, expected.params, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), **tolerance)


@pytest.mark.parametrize("scale", ["constant", "network", "detached", "tempered", "separate"])
@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
@pytest.mark.parametrize("rows", [1, 5, 1700])  # one block, or several of rows and of members
def test_it_is_the_policy_s_distribution(scale: Scale, hidden: tuple[int, ...], rows: int) -> None:
    x = 2.0 * torch.randn(E, rows, X, generator=seeded(2))
    require_same(gaussian(scale, hidden), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["constant", "network"])
def test_mixtures_too(scale: Scale) -> None:
    policy = MixturePolicy(X, D, generator=seeded(), members=E, hidden=(7,), scale=scale)
    randomised(policy)
    require_same(policy, torch.randn(E, 5, X, generator=seeded(2)), rtol=1e-5, atol=1e-5)


def test_double_precision_stays_double() -> None:
    x = torch.randn(E, 5, X, generator=seeded(2), dtype=torch.float64)
    require_same(gaussian().double(), x, rtol=1e-12, atol=1e-12)


def test_dimensions_between_are_rows() -> None:
    policy, x = FrozenPolicy(gaussian()), torch.randn(E, 3, 5, X, generator=seeded(2))
    apart, flat = policy.dist(x), policy.dist(x.flatten(1, 2))
    for ours, theirs in zip(apart.params, flat.params, strict=True):
        assert torch.equal(ours, theirs.reshape(ours.shape))


def test_bfloat16_agrees_within_its_digits() -> None:
    """8 bits are 0.4 %; over three layers, and relative to the spread of the outputs, 3 %."""
    policy = GaussianPolicy(X, D, generator=seeded(), members=E, hidden=(200, 200))
    x = torch.randn(E, 500, X, generator=seeded(2))
    exact, rough = policy.dist(x).mean.detach(), FrozenPolicy(policy, "bfloat16").dist(x).params[0]
    assert rough.dtype == torch.float32
    error = (rough - exact).square().mean().sqrt() / exact.std()
    assert 0.0 < error < 0.03


@pytest.mark.parametrize("scale", ["constant", "network", "separate"])
def test_what_happens_to_the_policy_later_does_not_reach_it(scale: Scale) -> None:
    policy, x = gaussian(scale), torch.randn(E, 5, X, generator=seeded(2))
    frozen, before = FrozenPolicy(policy), policy.dist(x)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=0.1, fused=True)
    policy.dist(x).log_prob(torch.ones(E, 5, D)).sum().backward()
    optimiser.step()
    with torch.no_grad():
        for value in policy.buffers():
            value += 1.0
    assert not torch.equal(policy.dist(x).mean, before.mean)
    for ours, theirs in zip(frozen.dist(x).params, before.params, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    require_same(policy, x, rtol=1e-5, atol=1e-5)
    require_same(with_members(policy, [2, 0]), x[:2], rtol=1e-5, atol=1e-5)


def test_results_are_the_caller_s_own() -> None:
    """Buffers are used again; what was returned is not."""
    policy, x = FrozenPolicy(gaussian()), torch.randn(E, 5, X, generator=seeded(2))
    first = policy.dist(x)
    kept = [p.clone() for p in first.params]
    policy.dist(-x)
    assert all(torch.equal(p, k) for p, k in zip(first.params, kept, strict=True))


def test_threads_do_not_share_buffers() -> None:
    policy = FrozenPolicy(gaussian(hidden=(64, 64)))
    inputs = [torch.randn(E, 200, X, generator=seeded(i)) for i in range(4)]
    expected = [policy.dist(x).params[0] for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(
            i for _ in range(50) if not torch.equal(policy.dist(inputs[i]).params[0], expected[i])
        )

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_row_and_member(bad: float) -> None:
    policy, x = gaussian("network"), torch.randn(E, 5, X, generator=seeded(2))
    x[1, 3, 0] = bad
    finite = FrozenPolicy(policy).dist(x).params[0].isfinite().all(-1)
    expected = torch.ones(E, 5, dtype=torch.bool)
    expected[1, 3] = False
    assert torch.equal(finite, expected)


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.4, "bfloat16"), (0.9, "float32")])
def test_auto_takes_bfloat16_only_by_a_margin(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: str
) -> None:
    """Against a clock of our own, that each call moves by what its precision costs."""
    now = 0.0

    def slow(frozen: FrozenPolicy, x: object) -> None:
        nonlocal now
        now += bfloat16 if frozen.precision == "bfloat16" else 1.0

    monkeypatch.setattr(FrozenPolicy, "dist", slow)
    monkeypatch.setattr(inference.time, "perf_counter", lambda: now)
    assert fastest_precision.__wrapped__() == chosen
    assert fastest_precision() == fastest_precision()  # measured once in a process


def test_no_rows_give_none() -> None:
    policy = GaussianPolicy(4, 3, generator=torch.Generator().manual_seed(0), members=2)
    assert FrozenPolicy(policy).dist(torch.zeros(2, 0, 4)).mean.shape == (2, 0, 3)

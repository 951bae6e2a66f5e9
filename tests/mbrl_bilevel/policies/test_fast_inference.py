"""Inference against ``policy.dist``: to round-off in float32, within its digits in bfloat16."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from mbrl_bilevel.policies import fast_inference as inference
from mbrl_bilevel.policies.fast_inference import fastest_precision, infer, unchanged
from mbrl_bilevel.policies.networks import EnsembleMLP
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
    for ours, theirs in zip(infer(policy, x).params, expected.params, strict=True):
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
    policy, x = gaussian(), torch.randn(E, 3, 5, X, generator=seeded(2))
    apart, flat = infer(policy, x), infer(policy, x.flatten(1, 2))
    for ours, theirs in zip(apart.params, flat.params, strict=True):
        assert torch.equal(ours, theirs.reshape(ours.shape))


def test_bfloat16_agrees_within_its_digits() -> None:
    """8 bits are 0.4 %; over three layers, and relative to the spread of the outputs, 3 %."""
    policy = GaussianPolicy(X, D, generator=seeded(), members=E, hidden=(200, 200))
    x = torch.randn(E, 500, X, generator=seeded(2))
    exact, rough = policy.dist(x).mean.detach(), infer(policy, x, "bfloat16").params[0]
    assert rough.dtype == torch.float32
    error = (rough - exact).square().mean().sqrt() / exact.std()
    assert 0.0 < error < 0.03


def test_a_parameter_that_changes_is_seen() -> None:
    policy, x = gaussian(), torch.randn(E, 5, X, generator=seeded(2))
    infer(policy, x)
    with torch.no_grad():  # in place
        policy.network.last.bias += 1.0
    require_same(policy, x)
    optimiser = torch.optim.AdamW(policy.network.parameters(), lr=0.1, fused=True)
    policy.dist(x).mean.sum().backward()
    optimiser.step()
    require_same(policy, x)
    policy.network.last.bias = nn.Parameter(torch.zeros_like(policy.network.last.bias))  # another
    require_same(policy, x)
    policy.load_state_dict(gaussian("separate").state_dict())
    require_same(policy, x)
    copied = copy.deepcopy(policy)
    randomised(copied)
    require_same(copied, x)
    require_same(policy, x)
    require_same(with_members(policy, [2, 0]), x[:2])


def test_results_are_the_caller_s_own() -> None:
    """Buffers are used again; what was returned is not."""
    policy, x = gaussian(), torch.randn(E, 5, X, generator=seeded(2))
    first = infer(policy, x)
    kept = [p.clone() for p in first.params]
    infer(policy, -x)
    assert all(torch.equal(p, k) for p, k in zip(first.params, kept, strict=True))


def test_threads_do_not_share_buffers() -> None:
    policy = gaussian(hidden=(64, 64))
    inputs = [torch.randn(E, 200, X, generator=seeded(i)) for i in range(4)]
    expected = [infer(policy, x).params[0] for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        wrong.extend(
            i for _ in range(50) if not torch.equal(infer(policy, inputs[i]).params[0], expected[i])
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
    finite = infer(policy, x).params[0].isfinite().all(-1)
    expected = torch.ones(E, 5, dtype=torch.bool)
    expected[1, 3] = False
    assert torch.equal(finite, expected)


@pytest.mark.parametrize(("bfloat16", "chosen"), [(0.4, "bfloat16"), (0.9, "float32")])
def test_auto_takes_bfloat16_only_by_a_margin(
    monkeypatch: pytest.MonkeyPatch, bfloat16: float, chosen: str
) -> None:
    """Against a clock of our own, that each call moves by what its precision costs."""
    now = 0.0

    def slow(policy: object, x: object, precision: str) -> None:
        nonlocal now
        now += bfloat16 if precision == "bfloat16" else 1.0

    monkeypatch.setattr(inference, "infer", slow)
    monkeypatch.setattr(inference.time, "perf_counter", lambda: now)
    assert fastest_precision.__wrapped__() == chosen
    assert fastest_precision() == fastest_precision()  # measured once in a process


@pytest.mark.parametrize("name", ["first weight", "scale network", "all but a bias"])
def test_a_fused_optimiser_that_moves_only_a_part_is_noticed(name: str) -> None:
    """Such optimisers leave the versions of the parameters as they were."""
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(
        4, 3, generator=generator, members=2, hidden=(8, 8), scale="separate"
    ).requires_grad_(True)
    moved = {
        "first weight": [policy.network.layers[0].weight],
        "scale network": list(policy.scale_network.parameters()),
        "all but a bias": [p for n, p in policy.named_parameters() if n != "network.layers.2.bias"],
    }[name]
    x = torch.randn(2, 5, 4, generator=generator)
    optimiser = torch.optim.AdamW(moved, lr=0.05, fused=True)
    for _ in range(3):
        torch.testing.assert_close(infer(policy, x).mean, policy.dist(x).mean.detach())
        torch.testing.assert_close(infer(policy, x).log_std, policy.dist(x).log_std.detach())
        optimiser.zero_grad()
        loss = -policy.dist(x).log_prob(torch.ones(2, 5, 3)).mean()
        loss.backward()
        optimiser.step()
    policy.network = EnsembleMLP(2, (4, 8, 8, 3), generator)
    torch.testing.assert_close(infer(policy, x).mean, policy.dist(x).mean.detach())


def test_within_unchanged_nothing_is_looked_up_and_after_it_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(4, 3, generator=generator, members=2, hidden=(8,))
    x = torch.randn(2, 5, 4, generator=generator)
    before = infer(policy, x).mean
    with unchanged(policy), torch.no_grad():
        policy.network.last.bias.add_(1.0)
        torch.testing.assert_close(infer(policy, x).mean, before)
    torch.testing.assert_close(infer(policy, x).mean, before + 1.0)


def test_no_rows_give_none() -> None:
    policy = GaussianPolicy(4, 3, generator=torch.Generator().manual_seed(0), members=2)
    assert infer(policy, torch.zeros(2, 0, 4)).mean.shape == (2, 0, 3)

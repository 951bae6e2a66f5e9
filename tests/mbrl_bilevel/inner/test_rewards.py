"""Closed-form mean rewards against Monte Carlo, and what each reward promises of its parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.rewards import (
    RBF,
    AnalyticReward,
    Mahalanobis,
    NeuralReward,
    RewardMatrix,
    expected_reward,
)
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
)
from mbrl_bilevel.policies.mixture import GaussianMixture

E, B, D, X, C = 2, 3, 2, 2, 4
SAMPLES = 100_000
#: |z| beyond this has probability 1e-6; some 160 numbers are compared below.
Z_LIMIT = 4.9


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_gaussian() -> FullGaussian:
    lower = 0.4 * draw(E, B, D, D, seed=2)
    return FullGaussian(draw(E, B, D), lower.tril(-1) + torch.diag_embed(draw(E, B, D).exp() * 0.5))


DISTRIBUTIONS: dict[str, Callable[[], Distribution]] = {
    "diagonal": lambda: DiagonalGaussian(draw(E, B, D), 0.3 * draw(E, B, D, seed=1)),
    "full": full_gaussian,
    "mixture": lambda: GaussianMixture(
        draw(E, B, 3, seed=3), draw(E, B, 3, D, seed=4), 0.3 * draw(E, B, 3, D, seed=5)
    ),
}


def quadratic(kind: type[Mahalanobis] | type[RBF], form: str) -> Mahalanobis | RBF:
    """A reward of the given form at parameters that are far from their start."""
    if form == "input_dependent":
        function = PositiveFunction(X, D, hidden=(5,), generator=torch.Generator().manual_seed(0))
        reward = kind(D, function=function).double()
    else:
        reward = kind(D, form).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for index, parameter in enumerate(reward.parameters()):
            parameter.copy_(0.5 * draw(*parameter.shape, seed=10 + index))
    return reward


def check_monte_carlo(reward: AnalyticReward, dist: Distribution, y: Tensor, x: Tensor) -> None:
    with torch.no_grad():
        closed = expected_reward(reward, dist, y, x)
        values = reward(dist.sample(SAMPLES, torch.Generator().manual_seed(6)), y, x)
    assert closed.shape == (E, B)
    assert closed.dtype == torch.float64
    z = (values.mean(0) - closed) / (values.std(0) / math.sqrt(SAMPLES))
    assert z.abs().max() < Z_LIMIT
    # The test can tell a slip: the rewards are neither all alike nor near zero.
    assert (values.std(0) > 1e-3).all()


@pytest.mark.parametrize("form", ["scaled_identity", "diagonal", "full", "input_dependent"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("kind", [Mahalanobis, RBF])
def test_closed_form_mean(kind: type[Mahalanobis], name: str, form: str) -> None:
    reward = quadratic(kind, form)
    check_monte_carlo(reward, DISTRIBUTIONS[name](), draw(E, B, D, seed=7), draw(E, B, X, seed=8))


def test_closed_form_mean_of_a_reward_matrix() -> None:
    reward = RewardMatrix(draw(C, C)).double()
    y = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]]).unsqueeze(-1)
    check_monte_carlo(reward, Categorical(draw(E, B, C, seed=1)), y, draw(E, B, X))


@pytest.mark.parametrize("kind", [Mahalanobis, RBF])
def test_forms_agree_where_they_overlap(kind: type[Mahalanobis]) -> None:
    """The same U in all four forms and the same Gaussian in all kinds give the same numbers."""
    u = torch.full((D,), 0.8, dtype=torch.float64)
    forms = [quadratic(kind, f) for f in ("scaled_identity", "diagonal", "full", "input_dependent")]
    gaussian = DiagonalGaussian(draw(E, B, D), 0.3 * draw(E, B, D, seed=1))
    one = GaussianMixture(
        torch.zeros(E, B, 1, dtype=torch.float64),
        gaussian.mean.unsqueeze(-2),
        gaussian.log_std.unsqueeze(-2),
    )
    y, x = draw(E, B, D, seed=7), draw(E, B, X, seed=8)
    for reward in forms:
        reward.set_u(u)
    first = forms[0].expected(gaussian, y, x)
    for reward, dist in itertools.product(forms, (gaussian, gaussian.as_full(), one)):
        torch.testing.assert_close(reward.expected(dist, y, x), first, rtol=1e-12, atol=1e-12)


def test_values_by_hand() -> None:
    y_hat, y, x = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0]), torch.zeros(1)
    reward = Mahalanobis(2, "full")
    reward.set_matrix(torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    assert reward(y_hat, y, x).item() == pytest.approx(-(2.0 + 4.0 + 2.0))
    assert RBF(2, initial=1.0)(y_hat, y, x).item() == pytest.approx(math.exp(-2.5))
    matrix = RewardMatrix(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    row = torch.tensor([[1.0]])
    assert matrix(row.unsqueeze(0), 0.0 * row, x).item() == 3.0  # rows ŷ, columns y


@settings(max_examples=100, deadline=None)
@given(
    raw=st.lists(st.floats(-4.0, 4.0), min_size=6, max_size=6),
    form=st.sampled_from(["scaled_identity", "diagonal", "full"]),
)
def test_every_u_is_symmetric_positive_definite(raw: list[float], form: str) -> None:
    reward = Mahalanobis(3, form).double()  # type: ignore[arg-type]
    values = torch.tensor(raw, dtype=torch.float64)
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.copy_(values[: parameter.numel()])
            values = values.roll(-parameter.numel())
        matrix = reward.matrix
        assert torch.equal(matrix, matrix.mT)
        torch.testing.assert_close(matrix.diagonal(), reward.u)
        eigenvalues = torch.linalg.eigvalsh(matrix)
        # Positive up to the round-off of the eigenvalues themselves, and surely so by the factor.
        assert eigenvalues.min() > -1e-12 * eigenvalues.max()
        assert (reward.lower.diagonal() > 0).all()
        residual = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator())
        assert (reward.quadratic(residual, residual) > 0).all()


@settings(max_examples=50, deadline=None)
@given(entries=st.lists(st.floats(-3.0, 3.0), min_size=9, max_size=9))
def test_set_matrix_is_the_inverse_of_matrix(entries: list[float]) -> None:
    root = torch.tensor(entries, dtype=torch.float64).reshape(3, 3)
    matrix = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    reward = RBF(3, "full").double()
    reward.set_matrix(matrix)
    torch.testing.assert_close(reward.matrix, matrix, rtol=1e-9, atol=1e-9)


def test_set_u_in_every_form() -> None:
    u = torch.tensor([0.3, 2.0])
    for form in ("diagonal", "full"):
        reward = Mahalanobis(2, form)
        reward.set_u(u)
        torch.testing.assert_close(reward.matrix, u.diag())
        torch.testing.assert_close(reward.u, u)
    scaled = Mahalanobis(2, "scaled_identity")
    scaled.set_u(torch.full((2,), 0.7))
    torch.testing.assert_close(scaled.u, torch.full((2,), 0.7))
    with pytest.raises(InvalidInputError, match="alike"):
        scaled.set_u(u)


@pytest.mark.parametrize(
    ("form", "matrix", "match"),
    [
        ("full", [[1.0, 0.0], [0.5, 1.0]], "symmetric"),
        ("full", [[1.0, 2.0], [2.0, 1.0]], "positive definite"),
        ("full", [[1.0, math.nan], [math.nan, 1.0]], "finite"),
        ("full", [[1.0]], r"\[2, 2\]"),
        ("diagonal", [[1.0, 0.1], [0.1, 1.0]], "diagonal"),
    ],
)
def test_set_matrix_refuses(form: str, matrix: list[list[float]], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        Mahalanobis(2, form).set_matrix(torch.tensor(matrix))  # type: ignore[arg-type]


def test_constructors_refuse() -> None:
    with pytest.raises(InvalidInputError, match="form"):
        Mahalanobis(2, "round")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="dim"):
        Mahalanobis(0)
    with pytest.raises(InvalidInputError, match="initial"):
        RBF(2, initial=math.nan)
    with pytest.raises(InvalidInputError, match=r"u must be \[2\]"):
        Mahalanobis(2).set_u(torch.tensor([1.0, -1.0]))
    with pytest.raises(InvalidInputError, match=r"\[C, C\]"):
        RewardMatrix(torch.zeros(2, 3))
    with pytest.raises(InvalidInputError, match="tail"):
        NeuralReward(1, 1, generator=torch.Generator(), tail=-1.0)


def test_u_of_x_is_no_constant() -> None:
    reward = quadratic(Mahalanobis, "input_dependent")
    assert reward.form == "input_dependent"
    x = draw(E, B, X)
    assert reward.diagonal(x).shape == (E, B, D)
    assert reward.diagonal(x).std() > 0.01
    for name in ("u", "lower", "matrix"):
        with pytest.raises(UnsupportedCombinationError, match="diagonal"):
            getattr(reward, name)
    own = Mahalanobis(2, function=lambda x: x.exp())
    assert not list(own.parameters())
    with pytest.raises(UnsupportedCombinationError, match="set_u"):
        own.set_u(torch.ones(2))


def test_one_hot_matrix_is_the_mahalanobis_reward_of_one_hot_vectors() -> None:
    root = draw(C, C)
    u = root @ root.mT + torch.eye(C, dtype=torch.float64)
    quadratic_reward = Mahalanobis(C, "full").double()
    quadratic_reward.set_matrix(u)
    table = RewardMatrix.one_hot(u).matrix
    eye = torch.eye(C, dtype=torch.float64)
    by_vectors = quadratic_reward(eye.unsqueeze(1).expand(C, C, C), eye, eye)
    torch.testing.assert_close(table.detach(), by_vectors.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        RewardMatrix.one_hot(u.diagonal()).matrix, RewardMatrix.one_hot(u.diagonal().diag()).matrix
    )
    assert torch.equal(RewardMatrix.identity(3, 2.0).matrix, 2.0 * torch.eye(3))


@pytest.mark.parametrize(
    ("reward", "dist"),
    [
        (Mahalanobis(1), Categorical(torch.zeros(1, 1, 2))),
        (RBF(1), Categorical(torch.zeros(1, 1, 2))),
        (RewardMatrix.identity(2), DiagonalGaussian(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))),
        (
            NeuralReward(1, 1, generator=torch.Generator()),
            DiagonalGaussian(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)),
        ),
        (
            lambda y_hat, y, x: y_hat.sum(-1),
            DiagonalGaussian(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)),
        ),
    ],
)
def test_no_closed_form_is_refused_with_a_remedy(
    reward: AnalyticReward, dist: Distribution
) -> None:
    zeros = torch.zeros(1, 1, 1)
    with pytest.raises(UnsupportedCombinationError, match="sampled"):
        expected_reward(reward, dist, zeros, zeros)


def test_neural_reward_starts_as_its_tail_and_stays_bounded() -> None:
    reward = NeuralReward(
        D, X, generator=torch.Generator().manual_seed(0), hidden=(8,), bound=2.0, tail=0.3
    ).double()
    y_hat, y, x = 5.0 * draw(7, E, B, D), draw(E, B, D, seed=1), draw(E, B, X, seed=2)
    tail = -0.3 * (y_hat - y).square().sum(-1)
    torch.testing.assert_close(reward(y_hat, y, x), tail)
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.copy_(20.0 * draw(*parameter.shape, seed=3))
    learned = reward(y_hat, y, x) - tail
    assert learned.shape == (7, E, B)
    assert 1.9 < learned.abs().max() <= 2.0 + 1e-9
    assert learned.std() > 0.5
    free = NeuralReward(
        D, X, generator=torch.Generator().manual_seed(0), hidden=(8,), bound=None, tail=0.0
    ).double()
    free.load_state_dict(reward.state_dict())
    assert free(y_hat, y, x).abs().max() > 2.0


def test_neural_reward_is_shared_by_the_members_and_reads_all_its_inputs() -> None:
    reward = NeuralReward(D, X, generator=torch.Generator().manual_seed(0), hidden=(8,)).double()
    torch.nn.init.ones_(reward.network.layers[-1].weight)
    y_hat, y, x = draw(1, 1, B, D), draw(1, B, D, seed=1), draw(1, B, X, seed=2)
    alone = reward(y_hat, y, x)
    both = reward(y_hat.expand(1, 2, B, D), y.expand(2, B, D), x.expand(2, B, X))
    torch.testing.assert_close(both, alone.expand(1, 2, B))
    for gradient in torch.autograd.grad(
        reward(*(leaves := [t.clone().requires_grad_() for t in (y_hat, y, x)])).sum(), leaves
    ):
        assert gradient.abs().min() > 0.0


@pytest.mark.parametrize("form", ["scaled_identity", "diagonal", "full", "input_dependent"])
@pytest.mark.parametrize("kind", [Mahalanobis, RBF])
def test_rewards_go_through_torch_func(kind: type[Mahalanobis], form: str) -> None:
    """Forward and reverse mode in φ agree with each other and with finite differences."""
    reward = quadratic(kind, form)
    phi = {name: p.detach() for name, p in reward.named_parameters()}
    tangent = {name: draw(*p.shape, seed=20) for name, p in phi.items()}
    y_hat, y, x = draw(4, E, B, D), draw(E, B, D, seed=1), draw(E, B, X, seed=2)

    def value(phi: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(reward, phi, (y_hat, y, x))
        return result.sum()

    _, forward = torch.func.jvp(value, (phi,), (tangent,))
    gradient = torch.func.grad(value)(phi)
    reverse = sum((gradient[n] * tangent[n]).sum() for n in phi)
    torch.testing.assert_close(forward, reverse)
    step = 1e-6
    ahead, behind = ({n: phi[n] + s * step * tangent[n] for n in phi} for s in (1, -1))
    numeric = (value(ahead) - value(behind)) / (2 * step)
    torch.testing.assert_close(forward, numeric, rtol=1e-6, atol=1e-7)


def test_rbf_with_entropy_alone_has_a_maximum_only_below_the_stated_temperature() -> None:
    """E r + λ Σ_d log σ_d for A = I and data at the mean: stationary in σ for small λ alone."""
    log_std = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)
    for dim in (1, 2, 5):
        reward = RBF(dim, initial=1.0).double()
        dist = DiagonalGaussian(
            torch.zeros(1, 4001, dim, dtype=torch.float64),
            log_std.reshape(1, -1, 1).expand(1, -1, dim),
        )
        zeros = torch.zeros(1, 4001, dim, dtype=torch.float64)
        mean = reward.expected(dist, zeros, zeros).squeeze(0).detach()
        limit = (2.0 / dim) * (1.0 + 2.0 / dim) ** (-dim / 2.0 - 1.0)
        for temperature, rises_always in ((0.9 * limit, False), (1.1 * limit, True)):
            objective = mean + temperature * dim * log_std
            assert bool((objective.diff() > 0).all()) is rises_always

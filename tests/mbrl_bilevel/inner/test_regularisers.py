"""Entropy weights, KL to a frozen reference, and their sum; what belongs to φ and what does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import KL, Entropy, Regulariser, Sum
from mbrl_bilevel.policies.distributions import Categorical, DiagonalGaussian, FullGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.policies import GaussianPolicy

E, B, D, X = 2, 3, 2, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(seed: int = 0) -> DiagonalGaussian:
    return DiagonalGaussian(draw(E, B, D, seed=seed), 0.5 * draw(E, B, D, seed=seed + 50))


def mixture(seed: int = 0) -> GaussianMixture:
    return GaussianMixture(
        draw(E, B, 3, seed=seed), draw(E, B, 3, D, seed=seed + 1), 0.3 * draw(E, B, 3, D, seed=9)
    )


class Fixed:
    """A source that predicts one distribution everywhere, and no module."""

    def __init__(self, dist: object) -> None:
        self._dist = dist

    def dist(self, x: Tensor) -> object:
        return self._dist


def policy(seed: int = 0) -> GaussianPolicy:
    return GaussianPolicy(
        X, D, generator=torch.Generator().manual_seed(seed), members=E, hidden=(4,), scale="network"
    ).double()


def phi(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def log_linear() -> PositiveFunction:
    function = PositiveFunction(X, initial=0.5).double()
    with torch.no_grad():
        for parameter in function.parameters():
            parameter.copy_(draw(*parameter.shape, seed=4))
    return function


def test_one_number() -> None:
    dist, x = gaussian(), draw(E, B, X)
    entropy = Entropy(0.3)
    assert entropy.temperature == 0.3
    torch.testing.assert_close(entropy.bonus(dist, x), 0.3 * dist.entropy(), rtol=1e-15, atol=0.0)
    assert entropy.weight(x).item() == 0.3
    assert entropy.weight(x).dtype == torch.float64
    assert phi(entropy) == 0
    assert Entropy().temperature == 1.0
    classes = Categorical(draw(E, B, 4))
    torch.testing.assert_close(entropy.bonus(classes, x), 0.3 * classes.entropy())


def test_one_number_per_dimension() -> None:
    dist, x = gaussian(), draw(E, B, X)
    vector = Entropy([0.2, 3.0])
    parts = [
        DiagonalGaussian(dist.mean[..., d : d + 1], dist.log_std[..., d : d + 1]) for d in range(D)
    ]
    expected = 0.2 * parts[0].entropy() + 3.0 * parts[1].entropy()
    torch.testing.assert_close(vector.bonus(dist, x), expected)
    torch.testing.assert_close(Entropy([0.7, 0.7]).bonus(dist, x), Entropy(0.7).bonus(dist, x))
    with pytest.raises(UnsupportedCombinationError, match="curvature"):
        vector.weight(x)
    with pytest.raises(UnsupportedCombinationError, match="not one number"):
        _ = vector.temperature
    for other in (dist.as_full(), Categorical(draw(E, B, 4))):
        with pytest.raises(UnsupportedCombinationError, match="DiagonalGaussian"):
            vector.bonus(other, x)


def test_a_function_of_x() -> None:
    dist, x = gaussian(), draw(E, B, X)
    function = log_linear()
    entropy = Entropy(function)
    assert phi(entropy) == X + 1
    assert function(x).std() > 0.05
    torch.testing.assert_close(entropy.weight(x), function(x))
    torch.testing.assert_close(entropy.bonus(dist, x), function(x) * dist.entropy())
    own = Entropy(lambda x: x[..., 0].exp())
    torch.testing.assert_close(own.bonus(dist, x), x[..., 0].exp() * dist.entropy())
    assert phi(own) == 0
    per_dimension = Entropy(lambda x: x.exp())
    rows = (x.exp() * (dist.log_std + 0.5 * math.log(2 * math.pi * math.e))).sum(-1)
    torch.testing.assert_close(per_dimension.bonus(dist, x), rows)
    function.requires_grad_(False)
    assert phi(entropy) == 0


def test_learnable_numbers_are_phi_and_their_gradient_is_right() -> None:
    dist, x = gaussian(), draw(E, B, X)
    entropy = Entropy(0.5, learnable=True).double()
    assert phi(entropy) == 1
    assert entropy.temperature == pytest.approx(0.5, rel=1e-7)
    (gradient,) = torch.autograd.grad(entropy.bonus(dist, x).sum(), list(entropy.parameters()))
    # The parameter is log λ, so the derivative is the bonus itself.
    torch.testing.assert_close(gradient, entropy.bonus(dist, x).sum())
    assert phi(Entropy([1.0, 2.0], learnable=True)) == 2
    assert phi(KL(policy(), 0.5, learnable=True)) == 1


def test_the_reference_is_frozen_and_never_phi() -> None:
    reference, x = policy(), draw(E, B, X)
    regulariser = KL(reference, 0.4)
    dist = gaussian()
    before = regulariser.bonus(dist, x)
    torch.testing.assert_close(before, -0.4 * dist.kl(reference.dist(x)))
    assert before.max() < -0.01
    assert not list(regulariser.parameters())
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(regulariser.bonus(dist, x), before)
    assert not torch.allclose(-0.4 * dist.kl(reference.dist(x)), before)


def test_no_gradient_reaches_the_reference_but_the_policy() -> None:
    reference, x = policy(), draw(E, B, X)
    mean = draw(E, B, D).requires_grad_()
    bonus = KL(reference).bonus(DiagonalGaussian(mean, torch.zeros_like(mean)), x)
    (gradient,) = torch.autograd.grad(bonus.sum(), mean, retain_graph=True)
    assert gradient.abs().max() > 0.01
    for parameter in reference.parameters():
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(bonus.sum(), parameter, retain_graph=True)
    assert not any(buffer.requires_grad for buffer in KL(reference).buffers())


def test_the_reference_follows_dtype_and_state() -> None:
    regulariser = KL(policy(1).float(), 0.4)
    regulariser.double()
    bonus = regulariser.bonus(gaussian(), draw(E, B, X))
    assert bonus.dtype == torch.float64
    other = KL(policy(2), 0.4)
    assert not torch.allclose(other.bonus(gaussian(), draw(E, B, X)), bonus)
    other.load_state_dict(regulariser.state_dict())
    torch.testing.assert_close(other.bonus(gaussian(), draw(E, B, X)), bonus)


def test_training_mode_of_the_original_is_left_alone() -> None:
    reference = policy()
    count = len(list(reference.parameters()))
    KL(reference)
    assert reference.training
    assert len(list(reference.parameters())) == count
    assert all(p.requires_grad for p in reference.parameters())


def test_sum_adds_bonuses_weights_and_phi() -> None:
    dist, x = gaussian(), draw(E, B, X)
    entropy, kl = Entropy(log_linear()), KL(policy(), 0.4, learnable=True)
    both = Sum(entropy, kl)
    torch.testing.assert_close(both.bonus(dist, x), entropy.bonus(dist, x) + kl.bonus(dist, x))
    torch.testing.assert_close(both.weight(x), entropy.weight(x) + kl.weight(x))
    assert phi(both) == X + 2
    for part in (entropy, kl, both):
        assert isinstance(part, Regulariser)
    with pytest.raises(InvalidInputError, match="at least one"):
        Sum()


@pytest.mark.parametrize("dist", [gaussian(), mixture()], ids=["gaussian", "mixture"])
def test_the_integrand_has_the_bonus_as_its_mean(dist: DiagonalGaussian | GaussianMixture) -> None:
    x = draw(E, B, X)
    other = gaussian(3) if isinstance(dist, DiagonalGaussian) else mixture(3)
    regulariser = Sum(Entropy(log_linear()), KL(Fixed(other), 0.4))  # type: ignore[arg-type]
    with torch.no_grad():
        draws = dist.sample(100_000, torch.Generator().manual_seed(0))
        values = regulariser.integrand(dist, draws, x)
        assert values.shape == draws.shape[:-1]
        low = values.mean(0) - 4.9 * values.std(0) / math.sqrt(len(values))
        high = values.mean(0) + 4.9 * values.std(0) / math.sqrt(len(values))
        bonus = regulariser.bonus(dist, x)
    if isinstance(dist, DiagonalGaussian):
        assert ((low < bonus) & (bonus < high)).all()
    else:  # the entropy of a mixture is a lower bound there, its KL an upper bound
        assert (bonus < high).all()


def test_kinds_without_a_formula_are_refused() -> None:
    with pytest.raises(UnsupportedCombinationError):
        KL(policy()).bonus(Categorical(draw(E, B, 4)), draw(E, B, X))
    full = FullGaussian(draw(E, B, D), torch.eye(D, dtype=torch.float64).expand(E, B, D, D))
    assert KL(policy()).bonus(full, draw(E, B, X)).max() < 0.0


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, [1.0, 0.0], []])
def test_temperatures_must_be_positive(wrong: float | list[float]) -> None:
    with pytest.raises(InvalidInputError, match="temperature"):
        Entropy(wrong)


def test_weights_of_kl() -> None:
    KL(policy(), 0.0)
    for wrong in (-1.0, [1.0, 2.0]):
        with pytest.raises(InvalidInputError, match="weight"):
            KL(policy(), wrong)
    with pytest.raises(InvalidInputError, match="weight"):
        KL(policy(), 0.0, learnable=True)
    with pytest.raises(InvalidInputError, match=r"\[E, B\]"):
        KL(policy(), lambda x: x.exp()).weight(draw(E, B, X))
    with pytest.raises(InvalidInputError, match="learnable"):
        Entropy(lambda x: x.sum(-1), learnable=True)

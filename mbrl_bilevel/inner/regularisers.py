"""Regularisers of the inner problem, the one home of λ.

G = E[r] + λ_H(x)·H(p_θ) − λ_K(x)·KL(p_θ ‖ p_ref); its curvature weight is Λ(x) = λ_H + λ_K.
Source: From Data to Rewards (arXiv 2510.07624), the inner problem; there λ_K = 0.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.policies.distributions import DiagonalGaussian, Distribution

#: A weight λ: a number, one per target dimension, or a function x [E, B, X] -> [E, B] (or
#: [E, B, D]) such as PositiveFunction, whose trainable parameters are then part of φ.
Weight = float | Sequence[float] | Callable[[Tensor], Tensor]


@runtime_checkable
class Regulariser(Protocol):
    """The slot: what is added to the mean reward, and how much it curves the inner problem."""

    def bonus(self, dist: Distribution, x: Tensor) -> Tensor:
        """λ_H(x)·H(dist) − λ_K(x)·KL(dist ‖ p_ref), [E, B]."""
        ...

    def weight(self, x: Tensor) -> Tensor:
        """Λ(x) = λ_H(x) + λ_K(x), [E, B] or a scalar: −∇²_θθ G = E_x[Λ(x)·Fisher_x(θ)]."""
        ...

    def integrand(self, dist: Distribution, y_hat: Tensor, x: Tensor) -> Tensor:
        """What has ``bonus`` as its mean over ``y_hat`` [K, E, B, D] ~ dist, [K, E, B].

        For policies whose entropy and KL have no closed form: mixtures.
        """
        ...


class Source(Protocol):
    """Anything that predicts a distribution: a policy."""

    def dist(self, x: Tensor) -> Distribution: ...


class Entropy(nn.Module):
    """λ·H(p_θ(·|x)): keeps the policy stochastic.

    ``temperature`` λ > 0 is a number, a sequence of one number per target dimension (Σ_d λ_d H_d,
    diagonal Gaussians only), or a function of x. With ``learnable=True`` a number or sequence is
    part of φ (its logarithm is the parameter). (U, λ) → c·(U, λ) leaves the inner optimum
    unchanged; λ = 1 fixes this gauge where U is learned, tr U = D where λ is.

    Raises InvalidInputError for a temperature that is not positive and finite.
    """

    def __init__(self, temperature: Weight = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        self._temperature = _weight(temperature, "temperature", learnable, zero_allowed=False)

    @property
    def is_number(self) -> bool:
        """Whether λ is one number, not a vector or a function of x."""
        return isinstance(self._temperature, _Constant) and self._temperature.scalar

    @property
    def temperature(self) -> float:
        """λ where it is one number. Raises UnsupportedCombinationError where it is not."""
        if isinstance(self._temperature, _Constant) and self.is_number:
            return self._temperature.value().item()
        raise UnsupportedCombinationError(
            "temperature is not one number here but a vector or a function of x; "
            "use weight(x), or Entropy with a number"
        )

    def bonus(self, dist: Distribution, x: Tensor) -> Tensor:
        """λ(x)·H or Σ_d λ_d(x)·H_d, [E, B]; of a bound of H where ``dist.entropy_is`` one.

        Raises UnsupportedCombinationError for one λ per dimension with another policy than a
        diagonal Gaussian: H is then no sum over dimensions.
        """
        weight = self._temperature(x)
        if not _per_dimension(weight):
            return weight * dist.entropy()
        if not isinstance(dist, DiagonalGaussian):
            raise UnsupportedCombinationError(
                f"one temperature per dimension needs a DiagonalGaussian, got "
                f"{type(dist).__name__}: use one number or a function x -> [E, B]"
            )
        per_dimension = dist.log_std + 0.5 * (1.0 + math.log(2.0 * math.pi))
        return (weight * per_dimension).sum(-1)

    def weight(self, x: Tensor) -> Tensor:
        """λ(x), [E, B] or a scalar.

        Raises UnsupportedCombinationError for one λ per dimension: the curvature is then no single
        multiple of the Fisher matrix.
        """
        weight = self._temperature(x)
        if _per_dimension(weight):
            raise UnsupportedCombinationError(
                "one temperature per dimension has no single curvature weight: use one number or a "
                "function x -> [E, B], or a solver that differentiates G itself (ExactImplicit)"
            )
        return weight

    def integrand(self, dist: Distribution, y_hat: Tensor, x: Tensor) -> Tensor:
        """−λ(x)·log p(ŷ), [K, E, B]."""
        return -self.weight(x) * dist.log_prob(y_hat)


class KL(nn.Module):
    """−λ_K·KL(p_θ(·|x) ‖ p_ref(·|x)): stays near a frozen reference, such as the previous policy.

    ``reference`` is copied and frozen here, so training the original later changes nothing; the
    copy's tensors are buffers, so they are never part of φ. Alone, KL can only sharpen the reference
    (its precision never falls): add Entropy by ``Sum``. ``weight`` λ_K >= 0 is a number (learnable
    if asked) or a function of x.

    Raises InvalidInputError for a weight that is negative or one per dimension.
    """

    def __init__(self, reference: Source, weight: Weight = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        self._weight = _weight(weight, "weight", learnable, zero_allowed=True)
        if isinstance(self._weight, _Constant) and not self._weight.scalar:
            raise InvalidInputError(
                "weight of KL must be one number or a function x -> [E, B], not one per dimension"
            )
        self.reference: Source = _frozen(reference)

    @property
    def strength(self) -> float | None:
        """λ_K where it is a number."""
        return self._weight.value().item() if isinstance(self._weight, _Constant) else None

    def bonus(self, dist: Distribution, x: Tensor) -> Tensor:
        """−λ_K(x)·KL(dist ‖ reference.dist(x)), [E, B]; of a bound where ``dist.kl_is`` one.

        Raises UnsupportedCombinationError where the two kinds have no formula.
        """
        return -self.weight(x) * dist.kl(self.reference.dist(x))

    def weight(self, x: Tensor) -> Tensor:
        """λ_K(x), [E, B] or a scalar."""
        weight = self._weight(x)
        if _per_dimension(weight):
            raise InvalidInputError(
                f"weight of KL must give [E, B]; got shape {tuple(weight.shape)}: drop the last "
                "dimension"
            )
        return weight

    def integrand(self, dist: Distribution, y_hat: Tensor, x: Tensor) -> Tensor:
        """−λ_K(x)·(log p(ŷ) − log p_ref(ŷ)), [K, E, B]."""
        ratio = dist.log_prob(y_hat) - self.reference.dist(x).log_prob(y_hat)
        return -self.weight(x) * ratio


class Sum(nn.Module):
    """Several regularisers at once: the bonuses add up, and so do the curvature weights.

    ``Sum(Entropy(0.5), KL(previous, 0.5))`` is the inner problem of a continual learner.
    """

    def __init__(self, *parts: Regulariser) -> None:
        super().__init__()
        if not parts:
            raise InvalidInputError("Sum needs at least one regulariser; got none")
        self.parts = parts
        self._modules_of_parts = nn.ModuleList(p for p in parts if isinstance(p, nn.Module))

    def bonus(self, dist: Distribution, x: Tensor) -> Tensor:
        """The sum of the parts' bonuses, [E, B]."""
        return functools.reduce(operator.add, (part.bonus(dist, x) for part in self.parts))

    def weight(self, x: Tensor) -> Tensor:
        """The sum of the parts' Λ(x), [E, B] or a scalar."""
        return functools.reduce(operator.add, (part.weight(x) for part in self.parts))

    def integrand(self, dist: Distribution, y_hat: Tensor, x: Tensor) -> Tensor:
        """The sum of the parts' integrands, [K, E, B]."""
        return functools.reduce(operator.add, (p.integrand(dist, y_hat, x) for p in self.parts))


class _Constant(nn.Module):
    """A non-negative number or vector; learnable ones are kept as logarithms."""

    def __init__(self, values: Tensor, learnable: bool) -> None:
        super().__init__()
        self.scalar, self.learnable = values.ndim == 0, learnable
        # A learned number has φ's dtype; a fixed one keeps all digits for float64 data.
        if learnable:
            self.log_value = nn.Parameter(values.log().to(torch.get_default_dtype()))
        else:
            self.fixed: Tensor
            self.register_buffer("fixed", values)

    def value(self) -> Tensor:
        return self.log_value.exp() if self.learnable else self.fixed

    def forward(self, x: Tensor) -> Tensor:
        return self.value().to(x.dtype)


def _frozen(source: Source) -> Source:
    """A copy that no optimiser can reach: its parameters are made buffers, which follow ``to()``."""
    frozen = copy.deepcopy(source)
    if isinstance(frozen, nn.Module):
        for module in frozen.eval().modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
    return frozen


def _weight(
    value: Weight, name: str, learnable: bool, zero_allowed: bool
) -> Callable[[Tensor], Tensor]:
    """The weight as a callable of x. Raises InvalidInputError, naming the argument ``name``."""
    if callable(value):
        if learnable:
            raise InvalidInputError(
                f"learnable is for numbers; a function as {name} is learnable where its parameters "
                "require gradients"
            )
        return value
    values = torch.tensor(value, dtype=torch.float64)
    least_ok = (values >= 0.0) if zero_allowed and not learnable else (values > 0.0)
    if values.ndim > 1 or values.numel() == 0 or not (values.isfinite() & least_ok).all():
        raise InvalidInputError(
            f"{name} must be {'non-negative' if zero_allowed else 'positive'} and finite, one "
            f"number or one per target dimension; got {value}"
        )
    return _Constant(values, learnable)


def _per_dimension(weight: Tensor) -> bool:
    """[D] and [E, B, D] are one weight per dimension; a scalar and [E, B] are not."""
    return weight.ndim in (1, 3)

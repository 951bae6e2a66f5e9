"""Estimators of ∇_θ E_{ŷ~p_θ}[r(ŷ, y, x)], each as a surrogate whose gradient it is.

``surrogate(dist, reward, y, x, generator) -> [E, B]``. The value of a score-function surrogate means
nothing; its first derivative in θ does, and so does ∂²/∂θ∂φ. Each says so by two attributes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.reward_transforms import Transform
from mbrl_bilevel.inner.rewards import (
    AnalyticReward,
    LogTangent,
    Reward,
    RewardMatrix,
    checked_shape,
    expected_reward,
)
from mbrl_bilevel.policies.distributions import Categorical, Distribution, Reparameterised

#: What REINFORCE takes off the reward: a number, or a function x [E, B, X] -> broadcastable to
#: [E, B]. It must not depend on the samples it is used with.
Baseline = float | Callable[[Tensor], Tensor]


class Estimator(Protocol):
    """The slot: a surrogate, whether its gradient is unbiased, and its second derivative right."""

    @property
    def unbiased(self) -> bool: ...

    @property
    def second_derivative(self) -> bool: ...

    def surrogate(
        self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor: ...


@dataclass(frozen=True)
class Analytic:
    """The exact expectation, for rewards that offer ``expected``: no samples, no variance."""

    unbiased: ClassVar[bool] = True
    second_derivative: ClassVar[bool] = True

    def surrogate(
        self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """E[r] itself, [E, B]. Raises UnsupportedCombinationError without a closed form."""
        return expected_reward(reward, dist, y, x)


@dataclass(frozen=True)
class _Sampled:
    """What all sampled estimators share: K ``samples`` per row, and ``transforms`` of the reward."""

    samples: int = 8
    transforms: tuple[Transform, ...] = ()

    least_samples: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.samples < self.least_samples:
            raise InvalidInputError(
                f"samples must be at least {self.least_samples} for {type(self).__name__}; "
                f"got {self.samples}"
            )

    @property
    def unbiased(self) -> bool:
        return not self.transforms

    def _rewards(self, reward: Reward, draws: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """The transformed rewards of ``draws`` [K, E, B, D]: [K, E, B], differentiable in φ."""
        value = checked_shape(reward(draws, y, x), draws.shape[:-1])
        for transform in self.transforms:
            value = transform(value)
        return value


@dataclass(frozen=True)
class Pathwise(_Sampled):
    """The reparameterised estimator: the mean of r(ŷ_θ, y, x) over draws that carry the gradient.

    Unbiased with all its derivatives (Kingma & Welling 2014, section 2.4), for rewards that are
    differentiable in ŷ.
    """

    @property
    def second_derivative(self) -> bool:
        return True

    def surrogate(
        self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(1/K) Σ_k r(ŷ_k, y, x), [E, B].

        Raises UnsupportedCombinationError for a policy without reparameterised draws.
        """
        if not isinstance(dist, Reparameterised):
            raise UnsupportedCombinationError(
                f"estimator Pathwise needs draws that carry a gradient; a "
                f"{type(dist).__name__} has none: use LeaveOneOut"
            )
        return self._rewards(reward, dist.rsample(self.samples, generator), y, x).mean(0)


@dataclass(frozen=True)
class _ScoreFunction(_Sampled):
    """Surrogates of the form (1/K) Σ_k A_k · log p_θ(ŷ_k|x), with an advantage A free of θ.

    ``clip`` (low, high) clamps log p_θ, which drops the gradient of the samples beyond: a bias.
    Their Hessian lacks E[A ∇log p ∇log pᵀ], so ``second_derivative`` is False.
    """

    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise InvalidInputError(f"clip must be (low, high) with low < high; got {self.clip}")

    @property
    def unbiased(self) -> bool:
        return super().unbiased and self.clip is None

    @property
    def second_derivative(self) -> bool:
        return False

    def surrogate(
        self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(1/K) Σ_k A_k · log p_θ(ŷ_k|x), [E, B]."""
        draws = dist.sample(self.samples, generator)
        advantage = self._advantage(self._rewards(reward, draws, y, x), x)
        log_prob = dist.log_prob(draws)
        if self.clip is not None:
            log_prob = log_prob.clamp(*self.clip)
        return (advantage * log_prob).mean(0)

    def _advantage(self, value: Tensor, x: Tensor) -> Tensor:
        """From the rewards [K, E, B] of a row's samples: [K, E, B]."""
        raise NotImplementedError


@dataclass(frozen=True)
class REINFORCE(_ScoreFunction):
    """A = r − b, with a ``baseline`` b that does not depend on the samples (Williams 1992).

    b is a number, a function of x, or a MovingAverage, whose state is the caller's; None is zero.
    """

    baseline: Baseline | None = None

    def _advantage(self, value: Tensor, x: Tensor) -> Tensor:
        if self.baseline is None:
            return value
        if not callable(self.baseline):
            return value - self.baseline
        advantage = value - self.baseline(x).detach()
        if isinstance(self.baseline, MovingAverage):
            # After its use, so that the baseline never depends on the samples it is used with.
            self.baseline.update(value)
        return advantage


@dataclass(frozen=True)
class LeaveOneOut(_ScoreFunction):
    """A_k = r_k − the mean reward of the other samples (Kool et al. 2019, eq. 8).

    Unbiased, because the baseline of a sample does not depend on it.
    """

    least_samples: ClassVar[int] = 2

    def _advantage(self, value: Tensor, x: Tensor) -> Tensor:
        return _leave_one_out(value)


@dataclass(frozen=True)
class GroupNormalised(_ScoreFunction):
    """A_k = (r_k − mean)/(std + ``epsilon``) over a row's samples (GRPO, Shao et al. 2024, eq. 3).

    Dividing by the spread takes the size of the reward away, and with it the balance against the
    entropy: biased, and with a quadratic reward at λ = 1 the variance falls without end.
    """

    epsilon: float = 1e-8
    least_samples: ClassVar[int] = 2

    @property
    def unbiased(self) -> bool:
        return False

    def _advantage(self, value: Tensor, x: Tensor) -> Tensor:
        return (value - value.mean(0)) / (value.std(0) + self.epsilon)


@dataclass(frozen=True)
class DiCE(_Sampled):
    """Score function with all derivatives right: (1/K) Σ_k (□_k (r_k − b_k) + b_k).

    □ = exp(log p − stop(log p)) is one in value (Foerster et al. 2018, eq. 7); b_k is the mean
    reward of the other samples. Its value is the mean reward, and it needs no reparameterised draws.
    """

    least_samples: ClassVar[int] = 2

    @property
    def second_derivative(self) -> bool:
        return True

    def surrogate(
        self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(1/K) Σ_k (□_k (r_k − b_k) + b_k), [E, B]."""
        draws = dist.sample(self.samples, generator)
        value = self._rewards(reward, draws, y, x)
        log_prob = dist.log_prob(draws)
        box = torch.exp(log_prob - log_prob.detach())
        advantage = _leave_one_out(value)
        return (box * advantage + (value - advantage)).mean(0)


@dataclass
class Automatic:
    """Analytic where the reward has a closed form under the policy at hand; else ``samples`` draws, and it says so.

    Pathwise where draws and reward carry a gradient in ŷ, else DiCE: either is right in all derivatives. It is
    found out at the first call and kept. A reward that is differentiable in part only (a smooth one with steps)
    needs ``DiCE`` by name: Pathwise does not see the steps.
    """

    samples: int = 8
    chosen: Estimator | None = None

    unbiased: ClassVar[bool] = True
    second_derivative: ClassVar[bool] = True

    def surrogate(
        self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """That of the estimator that was chosen, [E, B]."""
        if self.chosen is None:
            self.chosen = self._choice(dist, reward, y, x)
        return self.chosen.surrogate(dist, reward, y, x, generator)

    def _choice(self, dist: Distribution, reward: Reward, y: Tensor, x: Tensor) -> Estimator:
        try:
            expected_reward(reward, dist, y, x)
        except UnsupportedCombinationError:
            of_classes = isinstance(reward, RewardMatrix | LogTangent)
            if isinstance(reward, AnalyticReward) and of_classes != isinstance(dist, Categorical):
                raise  # a reward of classes for numbers, or the reverse: draws would not mend that
            smooth = isinstance(dist, Reparameterised) and _differentiable(reward, dist, y, x)
            found: Estimator = Pathwise(self.samples) if smooth else DiCE(self.samples)
            name = getattr(reward, "__name__", type(reward).__name__)
            warnings.warn(
                f"reward {name} has no closed-form mean under a {type(dist).__name__}: its gradient is "
                f"estimated by {type(found).__name__}({self.samples}), from {self.samples} draws a row; "
                "pass estimator= to choose another",
                stacklevel=2,
            )
            return found
        return Analytic()


def _differentiable(reward: Reward, dist: Distribution, y: Tensor, x: Tensor) -> bool:
    """Whether the reward of a draw of its own has a gradient in ŷ."""
    with torch.enable_grad():
        y_hat = dist.sample(1, torch.Generator(y.device).manual_seed(0)).requires_grad_()
        value = reward(y_hat, y, x)
        if not value.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(value.sum(), y_hat, allow_unused=True)
    return gradient is not None and bool((gradient != 0.0).any())


class MovingAverage(nn.Module):
    """A baseline: the exponential moving average of the mean reward, updated after each use.

    Its state is here, in the open: ``value`` and ``count``. ``eval()`` stops the updates, as is
    needed under ``torch.func``, where state may not change.

    Raises InvalidInputError unless 0 <= decay < 1.
    """

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise InvalidInputError(f"decay must be at least 0 and below 1; got {decay}")
        self.decay = decay
        self.value: Tensor
        self.count: Tensor
        self.register_buffer("value", torch.zeros(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.value

    @torch.no_grad()
    def update(self, reward: Tensor) -> None:
        """Take in the rewards [K, E, B]. The first ones are taken whole."""
        if self.training:
            share = torch.where(self.count == 0, 1.0, 1.0 - self.decay)
            self.value.lerp_(reward.mean().to(self.value.dtype), share.to(self.value.dtype))
            self.count.add_(1)


def _leave_one_out(value: Tensor) -> Tensor:
    """r_k − the mean of the other r, for rewards [K, E, B]."""
    samples = len(value)
    return (value - value.mean(0)) * (samples / (samples - 1))

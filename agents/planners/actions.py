"""The actions that a planner chooses among: a box, or one of n, seen as a vector [A] either way.

A plan's distribution at a step is N(μ, σ²) clipped to the box, or the probabilities μ of n one-hot
vectors. So the mean over one-hot candidates is a distribution, and one refit serves both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy.typing as npt
import torch
from torch import Tensor

from agents.planners.checks import require


@dataclass(frozen=True)
class BoxActions:
    """Real vectors between ``low`` and ``high`` [A]: own copies in float32, on the device of ``low``.

    Raises InvalidInputError unless both are finite, of one shape [A], and low < high.
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor | npt.ArrayLike, high: Tensor | npt.ArrayLike) -> None:
        low = torch.as_tensor(low, dtype=torch.float32).detach().clone()
        high = torch.as_tensor(high, dtype=torch.float32, device=low.device).detach().clone()
        require(low.ndim == 1 and len(low) > 0, "low", f"shape {tuple(low.shape)}", "of shape [A]")
        same = f"of shape {tuple(low.shape)} like low"
        require(high.shape == low.shape, "high", f"shape {tuple(high.shape)}", same)
        for name, bound in (("low", low), ("high", high)):
            finite = bool(bound.isfinite().all())
            require(finite, name, bound.tolist(), "finite (rescale or bound the action space)")
        below = bool((low < high).all())
        require(below, "low", low.tolist(), f"below high {high.tolist()} in every action")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def width(self) -> int:
        """A."""
        return len(self.low)

    @property
    def device(self) -> torch.device:
        """Where plans live."""
        return self.low.device

    @property
    def middle(self) -> Tensor:
        """Where a plan starts that knows nothing, [A]."""
        return self.low / 2 + self.high / 2

    def widened(self, mean: Tensor, spread: float) -> tuple[Tensor, Tensor]:
        """μ and σ [S, H, A] of a new search around ``mean``; σ is ``spread`` half-ranges."""
        return mean, (spread * (self.high / 2 - self.low / 2)).expand_as(mean)

    def draw(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Candidates [S, N, H, A] from standard normal ``noise`` of that shape."""
        return (mean[:, None] + std[:, None] * noise).clamp(self.low, self.high)

    def uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform actions [*shape, A]."""
        share = torch.rand((*shape, self.width), generator=generator, device=self.device)
        return (self.low + (self.high - self.low) * share).clamp(self.low, self.high)

    def explored(self, actions: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """With Gaussian noise of ``strength`` half-ranges on [S, A]; it may leave the box."""
        noise = torch.randn(actions.shape, generator=generator, device=self.device)
        return actions + strength * (self.high - self.low) / 2.0 * noise

    def averaged(self, mean: Tensor) -> Tensor:
        """An average of actions within the box again: it can be off by a rounding."""
        return mean.clamp(self.low, self.high)

    def chosen(self, mean: Tensor) -> Tensor:
        """The actions [..., A] that a plan's μ [..., A] stands for: μ itself."""
        return mean


@dataclass(frozen=True)
class DiscreteActions:
    """One of ``width`` actions, each a one-hot vector [A] of float32; for the CPU.

    Raises InvalidInputError for fewer than two, or more than 100,000.
    """

    width: int

    def __post_init__(self) -> None:
        require(2 <= self.width <= 100_000, "actions", self.width, "from 2 to 100,000")

    @property
    def device(self) -> torch.device:
        """Where plans live."""
        return torch.device("cpu")

    @property
    def middle(self) -> Tensor:
        """Where a plan starts that knows nothing: all alike, [A]."""
        return torch.full((self.width,), 1.0 / self.width)

    def widened(self, mean: Tensor, spread: float) -> tuple[Tensor, Tensor]:
        """Probabilities (1 − s)·μ + s·uniform, s = min(spread, 1), and the one-hots' deviation."""
        mix = min(spread, 1.0)
        mean = (1.0 - mix) * mean + mix / self.width
        return mean, (mean * (1.0 - mean)).clamp(min=0.0).sqrt()

    def draw(self, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """One-hot candidates [S, N, H, A]: argmax_a log μ_a + g_a, g_a = −log(−log Φ(noise_a)).

        Φ turns normal noise into uniform and −log(−log ·) that into Gumbel noise, so each step is an
        exact draw from μ (Gumbel-max), and noise that is coloured in time makes choices that last.
        """
        gumbel = -torch.log(-torch.special.log_ndtr(noise))
        return self._one_hot((mean.log()[:, None] + gumbel).argmax(-1))

    def uniform(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Uniform choices [*shape, A]."""
        return self._one_hot(torch.randint(self.width, shape, generator=generator))

    def explored(self, actions: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Each of [S, A] replaced by a uniform one with probability ``strength``."""
        anew = torch.rand(len(actions), 1, generator=generator) < strength
        return torch.where(anew, self.uniform((len(actions),), generator), actions)

    def averaged(self, mean: Tensor) -> Tensor:
        """Averaged probabilities that sum to one again: they can be off by a rounding."""
        return mean / mean.sum(-1, keepdim=True)

    def chosen(self, mean: Tensor) -> Tensor:
        """The likeliest action, as one-hot [..., A]."""
        return self._one_hot(mean.argmax(-1))

    def _one_hot(self, index: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(index, self.width).float()


ActionSet = BoxActions | DiscreteActions

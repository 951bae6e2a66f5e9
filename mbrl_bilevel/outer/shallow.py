"""A shallow model of the same rows, solved in closed form: what the outer level asks before the network is trained.

Ridge regression on x, x² and random features tanh(Wx + b) (Rahimi & Recht 2008), cross-fitted by the folds; each
target has the penalty of its own that generalised cross-validation likes best (Golub, Heath & Wahba 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.data.splits import FitData, IntArray, evenly_spaced

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)

#: Normalised inputs count within this: the square of an outlier would rule the fit.
_REACH = 5.0


@dataclass(frozen=True)
class Features:
    """[B, X] -> [B, 1 + 2X + F], in float64."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def drawn(inputs: int, count: int, generator: torch.Generator) -> Features:
        """``count`` random ones."""
        weight = torch.randn(inputs, count, generator=generator, dtype=torch.float64)
        bias = torch.randn(count, generator=generator, dtype=torch.float64)
        return Features(weight / math.sqrt(inputs), bias)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.double().clamp(-_REACH, _REACH)
        ones = x.new_ones(len(x), 1)
        return torch.cat([ones, x, x.square(), torch.tanh(x @ self.weight + self.bias)], 1)


def ridge(features: Tensor, y: Tensor, penalties: Sequence[float] = PENALTIES) -> Tensor:
    """The coefficients [F, D] of ``y`` [B, D] on ``features`` [B, F]; for each target, the penalty with the least
    B·RSS/(B − degrees of freedom)²."""
    values, vectors = torch.linalg.eigh(features.T @ features)
    values = values.clamp(min=0.0)
    along = vectors.T @ (features.T @ y)
    best = y.new_full((y.shape[1],), math.inf)
    found = torch.zeros_like(along)
    for penalty in penalties:
        scaled = along / (values + penalty).unsqueeze(1)
        residual = (
            y.square().sum(0)
            - 2.0 * (along * scaled).sum(0)
            + (scaled.square() * values.unsqueeze(1)).sum(0)
        )
        freedom = (values / (values + penalty)).sum()
        criterion = residual / (1.0 - freedom / len(y)).clamp(min=1e-6).square()
        better = criterion < best
        best = torch.where(better, criterion, best)
        found[:, better] = scaled[:, better]
    coefficients: Tensor = vectors @ found
    return coefficients


@dataclass(frozen=True)
class Shallow:
    """A ridge regression for each member, of its training rows, and the rows ``x`` [R, X] and ``y`` [R, D] that it has
    not seen, in order of time."""

    features: Features
    coefficients: tuple[Tensor, ...]
    x: tuple[Tensor, ...]
    y: tuple[Tensor, ...]

    @staticmethod
    @torch.no_grad()
    def fitted(data: FitData, targets: Tensor, count: int, most: int, judged: int) -> Shallow:
        """Of ``targets`` [N, D], with ``count`` random features. A member takes ``most`` rows at most for training,
        and ``judged`` to be judged on, evenly spaced."""
        features = Features.drawn(data.x.shape[1], count, torch.Generator().manual_seed(0))
        features = Features(features.weight.to(data.x.device), features.bias.to(data.x.device))
        targets = targets.double()
        held_out = data.folds.with_stop_as_outer().outer
        coefficients, x, y = [], [], []
        for seen, unseen in zip(data.folds.train, held_out, strict=True):
            rows = _thinned(seen, most).to(data.x.device)
            others = _thinned(unseen, judged).to(data.x.device)
            coefficients.append(ridge(features(data.x[rows]), targets[rows]))
            x.append(data.x[others])
            y.append(targets[others])
        return Shallow(features, tuple(coefficients), tuple(x), tuple(y))

    def residuals(self) -> list[Tensor]:
        """y − ŷ on the rows that each member has not seen."""
        return self._off(self.x)

    def shuffled(self, inputs: Sequence[int], generator: torch.Generator) -> list[Tensor]:
        """The same where these ``inputs`` are those of another unseen row, drawn anew, all of them of the same one."""
        columns = torch.tensor(inputs)
        mixed = []
        for x in self.x:
            other = torch.randperm(len(x), generator=generator).to(x.device)
            moved = x.clone()
            moved[:, columns] = x[other][:, columns]
            mixed.append(moved)
        return self._off(mixed)

    def _off(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        each = zip(inputs, self.y, self.coefficients, strict=True)
        return [y - self.features(x) @ coefficients for x, y, coefficients in each]


def _thinned(rows: IntArray, most: int) -> Tensor:
    return torch.from_numpy(rows)[evenly_spaced(len(rows), most)]

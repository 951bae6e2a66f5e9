"""A policy over classes behind the normaliser of its inputs: raw x in, the ensemble's probabilities out."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import FitData, IntArray
from mbrl_bilevel.data.table_folds import row_folds
from mbrl_bilevel.policies.tempered import TemperedPolicy

#: Normalised features beyond this are taken for this: a network says nothing sensible further out.
FAR = 10.0
#: Rows predicted at once.
CHUNK = 4096


@dataclass(frozen=True)
class Classification:
    """An ensemble p(y|x) over classes 0 … C − 1, kept as floats."""

    policy: TemperedPolicy
    inputs: Normaliser

    @property
    def members(self) -> int:
        """E."""
        return self.policy.members

    def normalise(self, x: Tensor) -> Tensor:
        """Raw features [N, X] as the policy sees them."""
        return self.inputs.normalise(x).clamp(-FAR, FAR)

    def rows(
        self, x: Tensor, y: Tensor, groups: IntArray | None, random: np.random.Generator
    ) -> FitData:
        """Raw x [N, X] and classes y [N, 1] to learn from, in folds that hold every class.

        Raises InvalidInputError for ``groups``: the rows of a table are independent.
        """
        if groups is not None:
            raise InvalidInputError("groups: rows with classes are independent; leave it out")
        folds = row_folds(y[:, 0].long().numpy(), self.members, random)
        return FitData(self.normalise(x).float(), y.float(), folds)

    def probs(self, x: Tensor) -> Tensor:
        """Probabilities [N, C] at raw x [N, X], the mean over the members, in float64."""
        policy = copy.deepcopy(self.policy).double()
        with torch.inference_mode():
            parts = [
                policy.dist(part.double().expand(self.members, -1, -1)).probs.mean(0)
                for part in torch.split(self.normalise(x), CHUNK)
            ]
        return torch.cat(parts)

"""A classifier whose temperature can be moved after training: p ∝ p_θ^{λ/λ(x)}.

With entropy alone the inner optimum at temperature λ is p* ∝ exp(r̄/λ) (arXiv 2510.07624), so the one
at another λ(x) is a power of it, x by x: nothing has to be trained again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mbrl_bilevel.policies.distributions import Categorical
from mbrl_bilevel.policies.policies import CategoricalPolicy

#: Saturation beyond this is read as this: off the data logits may reach further than in training.
_MOST_SATURATION = 1.5


class TemperedPolicy(CategoricalPolicy):
    """CategoricalPolicy with log λ/λ(x) = a + b·(t² − ½), untrained and zero at first.

    t(x) is the range of the logits over ``reach``, the range that the reward asks for: R = βI, λ = 1
    bounds it by β. A bounded reward bends the link between true probability and logit: for two
    classes it asks for the logit β·(2q − 1) where 2·atanh(2q − 1) is calibrated, and the logarithm of
    their ratio is t²/3 + O(t⁴) up to a constant. So b near ⅓ straightens what a constant λ cannot.

    Raises InvalidInputError as CategoricalPolicy.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        generator: torch.Generator,
        members: int = 1,
        hidden: Sequence[int] = (64,),
        reach: float = 1.0,
    ) -> None:
        super().__init__(inputs, classes, generator=generator, members=members, hidden=hidden)
        self.reach = reach
        self.temper = nn.Parameter(torch.zeros(members, 2), requires_grad=False)

    def dist(self, x: Tensor) -> Categorical:
        """The predicted distribution at ``x`` [E, B, X]: logits [E, B, C]."""
        return Categorical(tempered(self.logits(x), self.temper, self.reach))

    def untempered(self) -> TemperedPolicy:
        """A copy at λ, the temperature of training."""
        found = copy.deepcopy(self)
        found.temper.data.zero_()
        return found

    def logits(self, x: Tensor) -> Tensor:
        """Before any temperature, [E, B, C], of mean zero over the classes."""
        output: Tensor = self.network(x)
        return output - output.mean(-1, keepdim=True)


def tempered(logits: Tensor, temper: Tensor, reach: float) -> Tensor:
    """λ/λ(x) times ``logits`` [E, B, C], for ``temper`` = (a, b) [E, 2] or [2]."""
    saturation = (logits.amax(-1) - logits.amin(-1)) / reach
    bend = saturation.clamp(max=_MOST_SATURATION).square() - 0.5
    log_factor = temper[..., :1] + temper[..., 1:] * bend
    return log_factor.exp().unsqueeze(-1) * logits

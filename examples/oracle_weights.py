"""A method that is told what does not matter: the weights that ``bilevel-return`` has to infer.

    python scripts/compare.py --import-module examples.oracle_weights --distractor HalfCheetah-v5 \\
        --methods bilevel-return oracle bilevel mse

It is ``bilevel`` with a weight of .02 on the 17 dimensions of a HalfCheetah that is appended to the task.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from mbrl_bilevel import get_method, register_method
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.inner.dimension_weights import DimensionWeights
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.outer.held_out_spread import SharedSpread
from mbrl_bilevel.policies.policies import GaussianPolicy

#: Dimensions of the distractor; behind them comes the reward.
APPENDED = 17


def told(policy: GaussianPolicy, data: FitData) -> PolicyGradient:
    """Fixed weights: .02 on the distractor, 1 on all else."""
    weights = DimensionWeights(policy.outputs).requires_grad_(False)
    with torch.no_grad():
        weights.log_w[-1 - APPENDED : -1] = torch.tensor(0.02).log()
    return PolicyGradient(SharedSpread(policy, 0.5, weights))


register_method(
    "oracle",
    replace(
        get_method("bilevel"),
        make_loss=told,
        summary="bilevel, told the weights: .02 on the distractor",
    ),
    overwrite=True,
)

"""How much of the spread the reward takes: shares that are given, and one that held-out data infer.

    python scripts/compare.py --import-module examples.shares --methods share-0 share-25 bilevel share-75 share-100 share-inferred

The reward of ``bilevel`` weighs squared errors by σ(x)^(−2a) with a = ½. At 0 that is squared error, at 1 likelihood. ``share-inferred``
starts at ½ and moves a along the gradient of held-out likelihood one step ahead (``LookAhead``, Ren et al. 2018, arXiv 1803.09050).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mbrl_bilevel import get_method, register_method
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.outer.held_out_spread import SharedSpread
from mbrl_bilevel.outer.objectives import OneStepNLL
from mbrl_bilevel.policies.policies import GaussianPolicy


def _with_share(policy: GaussianPolicy, data: FitData, *, share: float) -> PolicyGradient:
    return PolicyGradient(SharedSpread(policy, share))


def _inferring(policy: GaussianPolicy, data: FitData) -> PolicyGradient:
    return PolicyGradient(SharedSpread(policy, infer_share=True))


OURS = get_method("bilevel")
LOOKING_AHEAD = get_method("bilevel-look-ahead").outer
assert LOOKING_AHEAD is not None

for percent in (0, 25, 75, 100):
    register_method(
        f"share-{percent}",
        replace(
            OURS,
            make_loss=partial(_with_share, share=percent / 100.0),
            summary=f"bilevel, whose reward takes {percent} % of the spread",
        ),
    )
register_method(
    "share-inferred",
    replace(
        OURS,
        make_loss=_inferring,
        outer=replace(LOOKING_AHEAD, objective=OneStepNLL(), until=1.0),
        summary="bilevel, whose share of the spread is inferred on held-out data one step ahead",
    ),
)

"""Other ways to train a model for returns, and one that is told what to do: what ``bilevel-return`` is held against.

    python scripts/compare.py --import-module examples.return_rivals --distractor HalfCheetah-v5 \\
        --methods bilevel-return oracle vagram k-step-return bilevel mse

``vagram`` weighs squared errors by the slope of a value function (Voelcker et al. 2022, arXiv 2204.01464), here that of
the policy that collected the data. ``k-step-return`` trains on the error of the return after 1 to 10 steps itself, beside
the squared error. Both get their spread as ``mse-network`` does, from held-out residuals. ``oracle`` is ``bilevel`` with a
weight of .02 on the 17 dimensions of a HalfCheetah that is appended to the task. ``nll-told``, ``beta-nll-told`` and ``mse-told``
are kept from seeing what ``bilevel-return`` lets go, all else as ever: what is left between them and it is the reward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mbrl_bilevel import get_method, register_method
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.data.splits import Chain, FitData
from mbrl_bilevel.inner.dimension_weights import DimensionWeights
from mbrl_bilevel.inner.losses import MSE, Metrics, PolicyGradient
from mbrl_bilevel.outer.held_out_spread import SharedSpread
from mbrl_bilevel.outer.objectives import OpenLoopReturn
from mbrl_bilevel.outer.relevance import Relevance
from mbrl_bilevel.outer.shallow import Features
from mbrl_bilevel.policies.policies import GaussianPolicy, Policy

#: Dimensions of the distractor; behind them comes the reward.
APPENDED = 17

DISCOUNT = 0.99
#: What the squared coefficients of the value function cost, and its random features.
PENALTY, FEATURES = 100.0, 100


@dataclass(frozen=True)
class Value:
    """V(s) = coefficients · features(s) of normalised states."""

    features: Features
    coefficients: Tensor

    @staticmethod
    def of(data: FitData, chain: Chain) -> Value:
        """Of the policy that made the steps, by least-squares temporal differences (Bradtke & Barto 1996):
        Σ φ(φ − γφ')ᵀ w = Σ φr over steps that have a next one. Rewards are standardised."""
        assert chain.outcome is not None
        reward = chain.outcome(data.x.unsqueeze(0), data.y.unsqueeze(0)).reward[0].double()
        reward = (reward - reward.mean()) / reward.std().clamp(min=1e-8)
        states = data.x[:, : chain.gain.shape[1]]
        features = Features.drawn(states.shape[1], FEATURES, torch.Generator().manual_seed(0))
        rows = (chain.successor >= 0).nonzero().squeeze(1)
        here, after = features(states[rows]), features(states[chain.successor[rows]])
        moments = here.T @ (here - DISCOUNT * after)
        moments += PENALTY * torch.eye(len(moments), dtype=moments.dtype)
        return Value(features, torch.linalg.solve(moments, here.T @ reward[rows]))

    def slope(self, states: Tensor) -> Tensor:
        """∂V/∂s [..., S] at ``states`` [..., S]."""
        with torch.enable_grad():
            at = states.detach().double().reshape(-1, states.shape[-1]).requires_grad_()
            (found,) = torch.autograd.grad((self.features(at) @ self.coefficients).sum(), at)
        return found.reshape(states.shape).to(states)


class ValueWeighed:
    """Squared errors, each target's weighed by the squared slope of the value at the true next state (VaGraM, eq. 7:
    the bound by Cauchy & Schwarz); slopes above their 95th percentile count as that. What moves no state, the reward,
    counts as they do on average."""

    looks_ahead = False

    def __init__(self, data: FitData) -> None:
        self._value: Value | None = None
        if data.chain is not None:  # None: to be asked what it is, not to be trained
            self._chain, self._value = data.chain, Value.of(data, data.chain)
            slopes = self._slopes(data.x, data.y)
            self._most = slopes.quantile(0.95)
            self._scale = self._kept(slopes).square().mean().clamp(min=1e-12)

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        assert self._value is not None
        weight = self._kept(self._slopes(batch.x, batch.y)).square() / self._scale
        mean = policy.dist(batch.x).mean  # type: ignore[union-attr]
        moves = (self._chain.gain != 0.0).any(1)
        weight = torch.where(moves, weight, torch.ones_like(weight))
        loss = batch.mean((weight * (mean - batch.y).square()).mean(-1))
        return loss, {}

    def _slopes(self, x: Tensor, y: Tensor) -> Tensor:
        """|∂V/∂y| at the next state, [..., D]."""
        assert self._value is not None
        gain, drift = self._chain.gain, self._chain.drift
        after = x[..., : gain.shape[1]] + y @ gain + drift
        return (self._value.slope(after) @ gain.T).abs()

    def _kept(self, slopes: Tensor) -> Tensor:
        return slopes.clamp(max=self._most)


class WithReturn:
    """Squared error of one step plus that of the returns after 1 to k steps in open loop, in their own units."""

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        loss = MSE()(policy, batch, generator)[0] + OpenLoopReturn()(policy, batch)
        return loss, {}


def told(policy: GaussianPolicy, data: FitData) -> PolicyGradient:
    """Fixed weights: .02 on the distractor, 1 on all else."""
    weights = torch.ones(policy.outputs)
    weights[-1 - APPENDED : -1] = 0.02
    return PolicyGradient(SharedSpread(policy, 0.5, DimensionWeights.fixed(weights)))


def value_weighed(policy: GaussianPolicy, data: FitData) -> ValueWeighed:
    """VaGraM's loss for these data."""
    return ValueWeighed(data)


for name in ("nll", "beta-nll", "mse"):
    register_method(
        f"{name}-told",
        replace(
            get_method(name),
            relevance=Relevance().weights,
            summary=f"{name}, kept from seeing what bilevel-return lets go",
        ),
        overwrite=True,
    )
register_method(
    "oracle",
    replace(
        get_method("bilevel"),
        make_loss=told,
        summary="bilevel, told the weights: .02 on the distractor",
    ),
    overwrite=True,
)
register_method(
    "vagram",
    replace(
        get_method("mse-network"),
        make_loss=value_weighed,
        criterion=None,
        relevance=lambda data: torch.ones(data.y.shape[1]),  # it asks the steps itself
        summary="squared error weighed by the slope of a value function (Voelcker 2022)",
    ),
    overwrite=True,
)
register_method(
    "k-step-return",
    replace(
        get_method("mse-network"),
        make_loss=lambda policy, data: WithReturn(),
        criterion=None,
        horizon=10,
        summary="squared error of a step, and of returns of 10 steps in open loop",
    ),
    overwrite=True,
)

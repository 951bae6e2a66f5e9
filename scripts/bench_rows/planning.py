"""The row of bench on planning in a learned model, beside a loop over members in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from agents.planners.actions import BoxActions
from bench_rows.eager import alone, eager_log_std
from bench_rows.pair import ACTION, INPUTS, OBS, TARGETS, Pair, Sizes, make_policy
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.imagination.particles import imagined_returns
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression


def plan(sizes: Sizes, seed: int) -> Pair:
    """A whole iCEM plan in a probabilistic ensemble, one particle per member."""
    generator = torch.Generator().manual_seed(seed)
    policy = make_policy(sizes, generator, "network")
    shift = torch.randn(INPUTS, generator=generator)
    inputs = Normaliser(shift, torch.full_like(shift, 1.5), shift > torch.inf)
    targets = Normaliser(0.1 * shift[:TARGETS], inputs.scale[:TARGETS], shift[:TARGETS].isnan())
    model = DynamicsModel(Regression(policy, inputs, targets), OBS).frozen()
    eager = EagerDynamics([alone(policy, e) for e in range(sizes.members)], inputs, targets)
    obs = torch.randn(1, OBS, generator=generator)
    planner, imagination = sizes.planner, Imagination(particles=sizes.members)
    start = planner.initial_state(1, BoxActions([-1.0] * ACTION, [1.0] * ACTION))

    def ours(actions: Tensor, random: torch.Generator) -> Tensor:
        return imagined_returns(model, obs, actions, imagination, random)

    def peer(actions: Tensor, random: torch.Generator) -> Tensor:
        return eager.returns(obs[0], actions[0], random).unsqueeze(0)

    def whole_plan(score: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[], object]:
        random = torch.Generator().manual_seed(seed)
        return lambda: planner.plan(lambda actions: score(actions, random), start, random)

    def check() -> None:
        actions = torch.rand(1, 50, planner.horizon, ACTION, generator=generator) * 2.0 - 1.0
        state = generator.get_state()
        expected = peer(actions, generator)
        torch.testing.assert_close(
            ours(actions, generator.set_state(state)), expected, rtol=1e-3, atol=1e-3
        )

    return Pair(
        whole_plan(ours),
        whole_plan(peer),
        check,
        peer_name="loop over a list of nn.Sequential, same planner and particles",
        amount=float(sum(planner.populations()) * planner.horizon * sizes.members),
        unit="model steps/s",
    )


class EagerDynamics:
    """The peer of ``imagined_returns``: what one writes in plain PyTorch, member by member.

    Particle k follows member k, and all candidates share its noise, as in ours: that costs less
    than noise for every row, and lets the returns be compared.
    """

    def __init__(
        self, networks: Sequence[nn.Module], inputs: Normaliser, targets: Normaliser
    ) -> None:
        self.networks, self.inputs, self.targets = networks, inputs, targets

    @torch.inference_mode()
    def returns(self, obs: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Mean return [N] of actions [N, H, A] from obs [O]."""
        inputs, targets = self.inputs, self.targets
        states = [obs.expand(len(actions), -1) for _ in self.networks]
        totals = [obs.new_zeros(len(actions)) for _ in self.networks]
        for h in range(actions.shape[1]):
            noise = torch.randn(len(self.networks), 1, TARGETS, generator=generator)
            for e, network in enumerate(self.networks):
                x = (torch.cat([states[e], actions[:, h]], -1) - inputs.shift) / inputs.scale
                mean, raw = network(x).chunk(2, -1)
                sample = mean + eager_log_std(raw).exp() * noise[e]
                target = sample * targets.scale + targets.shift
                states[e] = states[e] + target[:, :OBS]
                totals[e] = totals[e] + target[:, OBS]
        return torch.stack(totals).mean(0)

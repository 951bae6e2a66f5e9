"""Time each hot path beside what a user would pick instead; ratio = our throughput / the peer's.

Before any timing both sides are checked to compute the same. Then they alternate, after a warm-up,
and each number is taken at the median of its times: above 1 we are faster, the peer below it.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from _bench_continual import continual_task
from _bench_oracle import oracle
from _bench_outer import fisher_vector_product, outer_solve, train_bilevel_fisher
from _bench_pair import ACTION, INPUTS, OBS, TARGETS, Pair, Sizes, make_data, make_policy
from _bench_peers import BESIDE_ROWS, PeerMissingError
from _bench_sac import sac_updates, sac_updates_fast
from _run import Result, RunArgs, RunFolder, launch
from bench_acting import act_by_plan, act_by_policy
from torch import Tensor, nn

from agents.planners import ICEM
from agents.planners.actions import BoxActions
from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.rows import FitData, Minibatches
from mbrl_bilevel.imagination.particles import Imagination, imagined_returns
from mbrl_bilevel.inner.losses import NLL
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.networks import EnsembleLinear
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.training.fit import Schedule, fit
from mbrl_bilevel.training.methods import get_method

_QUICK = Sizes(
    members=2,
    hidden=(8,),
    planner=ICEM(horizon=3, population=10, iterations=2),
    rows=300,
    batch_size=16,
    steps=5,
)


def plan(sizes: Sizes, seed: int) -> Pair:
    """A whole iCEM plan in a probabilistic ensemble, one particle per member."""
    generator = torch.Generator().manual_seed(seed)
    policy = make_policy(sizes, generator, "network")
    shift = torch.randn(INPUTS, generator=generator)
    inputs = Normaliser(shift, torch.full_like(shift, 1.5), shift > torch.inf)
    targets = Normaliser(0.1 * shift[:TARGETS], inputs.scale[:TARGETS], shift[:TARGETS].isnan())
    model = DynamicsModel(Regression(policy, inputs, targets), OBS).frozen()
    eager = EagerDynamics([_alone(policy, e) for e in range(sizes.members)], inputs, targets)
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


def train_nll(sizes: Sizes, seed: int) -> Pair:
    """``fit`` by likelihood, on the same minibatches as the peer."""
    generator = torch.Generator().manual_seed(seed)
    data = make_data(sizes, seed)
    policy = make_policy(sizes, generator, "network")
    networks = [_alone(policy, e) for e in range(sizes.members)]
    steps = min(sizes.steps, 100)
    schedule = Schedule(steps, sizes.batch_size, evaluate_every=steps)

    def check() -> None:
        random = torch.Generator().manual_seed(seed)
        short = Schedule(5, sizes.batch_size, evaluate_every=1)
        fresh = make_policy(sizes, random, "network")
        copies = [_alone(fresh, e) for e in range(sizes.members)]
        state = random.get_state()
        expected = train_eagerly(copies, data, short, random)
        result = fit(fresh, NLL(), data, generator=random.set_state(state), schedule=short)
        losses = dict(result.history["loss"])
        torch.testing.assert_close(
            torch.tensor([losses[step + 1] for step in range(5)]), expected, rtol=1e-3, atol=1e-3
        )

    return Pair(
        lambda: fit(policy, NLL(), data, generator=generator, schedule=schedule),
        lambda: train_eagerly(networks, data, schedule, generator),
        check,
        peer_name="loop over a list of nn.Sequential, a torch.optim.Adam each",
        amount=float(steps * sizes.batch_size * sizes.members),
        unit="training samples/s",
    )


def train_bilevel(sizes: Sizes, seed: int) -> Pair:
    """``fit`` by the method bilevel, outer level and all; the peer is our own likelihood.

    1 / ratio is the time of bilevel in units of that of maximum likelihood.
    """
    data = make_data(sizes, seed)

    def trainer(name: str) -> Callable[[], FitResult]:
        method = get_method(name)
        # Never stopped early: a method that learns sooner would look faster.
        schedule = Schedule(sizes.steps, sizes.batch_size, patience=sizes.steps)

        def train() -> FitResult:
            generator = torch.Generator().manual_seed(seed)
            policy = method.make_policy(
                INPUTS,
                TARGETS,
                generator=generator,
                members=sizes.members,
                hidden=sizes.hidden,
            )
            return method.fit(policy, data, generator=generator, schedule=schedule)

        return train

    return Pair(
        trainer("bilevel"),
        trainer("nll"),
        check=lambda: None,  # two methods: they are not to agree
        peer_name="fit() by likelihood, same network and steps",
        amount=float(sizes.steps * sizes.batch_size * sizes.members),
        unit="training samples/s",
        slow=True,
    )


#: Every row by name. To add one, write a function as those above.
ROWS: dict[str, Callable[[Sizes, int], Pair]] = {
    "plan": plan,
    "oracle": oracle,
    "train-nll": train_nll,
    "train-bilevel": train_bilevel,
    "train-bilevel-fisher": train_bilevel_fisher,
    "fisher-vector-product": fisher_vector_product,
    "outer-solve": outer_solve,
    **BESIDE_ROWS,
    "sac-updates": sac_updates,
    "sac-updates-fast": sac_updates_fast,
    "act-by-plan": act_by_plan,
    "act-by-policy": act_by_policy,
    "continual-task": continual_task,
}


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of bench."""

    only: tuple[str, ...] = tuple(ROWS)
    """The rows to measure; those beside other libraries need what ``make peers`` installs."""
    repeats: int = 20
    """Timed calls of each side; of train-bilevel, where a call takes long, at most 5."""
    quick: bool = False
    """Tiny sizes, to see that it runs: the times then mean nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "repeats")
        for name in self.only:
            look_up(ROWS, name, "--only: unknown row")


def main(args: Args, run: RunFolder) -> Result:
    """Measure the rows that are missing."""
    # A resumed run may use other threads: a row counts for the threads it was measured with.
    key: dict[str, Any] = {"threads": torch.get_num_threads()}
    missing: list[PeerMissingError] = []
    for name in run.progress(args.only, "bench"):
        if run.rows.find(name=name, **key) is None:
            try:
                pair = ROWS[name](_QUICK if args.quick else Sizes(), args.seed)
            except PeerMissingError as error:
                missing.append(error)
                continue
            try:
                run.rows.append({"name": name, **measure(pair, args.repeats), **key})
            finally:
                pair.close()
    rows = [run.rows.require(row, "ours", "peer", "ratio") for row in run.rows]
    if missing and not rows:
        raise InvalidInputError(f"--only: no row could be measured: {missing[0]}")
    run.close()  # the bar, before what is told
    for peer in missing:
        print(f"left out: {peer}", file=sys.stderr)
    if not args.quiet:
        print(_table(rows), file=sys.stderr)
    return Result({"rows": rows}, {"ratio": {row["name"]: round(row["ratio"], 3) for row in rows}})


def measure(pair: Pair, repeats: int) -> dict[str, object]:
    """Check the pair, warm both sides up, time them in turn; what a row says of them.

    ``ours`` and ``peer`` are throughputs in ``unit`` at the median time, ``ratio`` is ours / peer;
    ``ours_seconds`` and ``peer_seconds`` tell min, median and max of one call.
    """
    pair.check()
    warmup, repeats = (1, min(repeats, 5)) if pair.slow else (2, repeats)
    sides = (pair.ours, pair.peer)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(warmup + repeats):
        for side, kept in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                kept.append(elapsed)
    if pair.peer_seconds is not None:
        times = (times[0], [pair.peer_seconds] * repeats)
    ours, peer = (pair.amount / statistics.median(kept) for kept in times)
    return {
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "unit": pair.unit,
        "peer_name": pair.peer_name,
        "repeats": repeats,
        "ours_seconds": _spread(times[0]),
        "peer_seconds": _spread(times[1]),
        **pair.facts(),
    }


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
                sample = mean + _eager_log_std(raw).exp() * noise[e]
                target = sample * targets.scale + targets.shift
                states[e] = states[e] + target[:, :OBS]
                totals[e] = totals[e] + target[:, OBS]
        return torch.stack(totals).mean(0)


def train_eagerly(
    networks: Sequence[nn.Module], data: FitData, schedule: Schedule, generator: torch.Generator
) -> Tensor:
    """The peer of ``fit``: one network and one Adam after the other; the mean loss of each step.

    It takes our minibatches and our cosine, so that both sides do the same sums.
    """
    optimisers = [torch.optim.Adam(n.parameters(), lr=schedule.learning_rate) for n in networks]
    batches = Minibatches(data, schedule.batch_size)
    losses = []
    for step in range(schedule.steps):
        batch = batches.draw(generator)
        cosine = 0.5 * (1.0 + math.cos(math.pi * step / schedule.steps))
        total = torch.zeros(())
        for e, (network, optimiser) in enumerate(zip(networks, optimisers, strict=True)):
            mean, raw = network(batch.x[e]).chunk(2, -1)
            log_std = _eager_log_std(raw)
            error = (batch.y[e] - mean) / log_std.exp()
            loss = (0.5 * error.square() + log_std + 0.5 * math.log(2.0 * math.pi)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = schedule.learning_rate * cosine
            optimiser.step()
            total = total + loss.detach()
        losses.append(total / len(networks))
    return torch.stack(losses)


def _alone(policy: GaussianPolicy, member: int) -> nn.Sequential:
    """One member's network as a user would build it, with the same weights."""
    linear: list[nn.Module] = []
    for layer in policy.network.layers:
        assert isinstance(layer, EnsembleLinear)
        plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
        with torch.no_grad():
            plain.weight.copy_(layer.weight[member].T)
            plain.bias.copy_(layer.bias[member, 0])
        linear.append(plain)
    return nn.Sequential(
        *chain.from_iterable((layer, nn.SiLU()) for layer in linear[:-1]), linear[-1]
    )


def _eager_log_std(raw: Tensor) -> Tensor:
    """log σ in [−10, 3] with raw 0 at σ = 1: the default bounds of GaussianPolicy."""
    return 13.0 * torch.sigmoid(raw + math.log(10.0 / 3.0)) - 10.0


def _spread(times: Sequence[float]) -> dict[str, float]:
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a human, one line each."""
    lines = [f"{'row':<22}{'ours':>12}{'peer':>12}{'ratio':>8}  {'threads':>7}  unit; peer"]
    for row in rows:
        lines.append(
            f"{row['name']:<22}{row['ours']:>12,.0f}{row['peer']:>12,.0f}{row['ratio']:>8.2f}"
            f"  {row['threads']:>7}  {row['unit']}; {row['peer_name']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    launch(Args, main)

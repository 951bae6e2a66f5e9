"""The rows of bench on training a model: beside plain PyTorch, and by reward beside by likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bench_rows.eager import alone, eager_log_std
from bench_rows.pair import INPUTS, TARGETS, Pair, Sizes, make_data, make_policy
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.splits import FitData, Minibatches
from mbrl_bilevel.inner.losses import NLL
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule


def train_nll(sizes: Sizes, seed: int) -> Pair:
    """``fit`` by likelihood, on the same minibatches as the peer."""
    generator = torch.Generator().manual_seed(seed)
    data = make_data(sizes, seed)
    policy = make_policy(sizes, generator, "network")
    networks = [alone(policy, e) for e in range(sizes.members)]
    steps = min(sizes.steps, 100)
    schedule = Schedule(steps, sizes.batch_size, evaluate_every=steps)

    def check() -> None:
        random = torch.Generator().manual_seed(seed)
        short = Schedule(5, sizes.batch_size, evaluate_every=1)
        fresh = make_policy(sizes, random, "network")
        copies = [alone(fresh, e) for e in range(sizes.members)]
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
            log_std = eager_log_std(raw)
            error = (batch.y[e] - mean) / log_std.exp()
            loss = (0.5 * error.square() + log_std + 0.5 * math.log(2.0 * math.pi)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.param_groups[0]["lr"] = schedule.learning_rate * cosine
            optimiser.step()
            total = total + loss.detach()
        losses.append(total / len(networks))
    return torch.stack(losses)

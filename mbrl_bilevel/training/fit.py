"""The one training loop: gradient steps on the inner loss, an outer step now and then.

``outer=None`` is plain training, so comparing a reward-trained model with a likelihood-trained one
changes one argument. The best state of each member, by held-out data, is kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError
from mbrl_bilevel.base.records import Batch, FitResult
from mbrl_bilevel.data.splits import FitData, Minibatches
from mbrl_bilevel.inner.losses import Loss
from mbrl_bilevel.outer.level import Outer, OuterState
from mbrl_bilevel.outer.objectives import Objective, OneStepNLL
from mbrl_bilevel.outer.problem import Problem, Report
from mbrl_bilevel.policies.policies import Policy
from mbrl_bilevel.training.settings import Schedule

#: Called with (metric name, value, step): TensorBoard's ``add_scalar`` fits.
Log = Callable[[str, float, int], object]


#: Rows at most that a member's early stopping, and its outer level, look at: the millionth tells
#: nothing that the first twenty thousand did not, but each costs memory for all of its activations.
HELD_OUT_ROWS = 20_000


def fit(
    policy: Policy,
    loss: Loss,
    data: FitData,
    *,
    generator: torch.Generator,
    outer: Outer | None = None,
    criterion: Objective | None = None,
    schedule: Schedule | None = None,
    progress: bool = False,
    log: Log | None = None,
) -> FitResult:
    """Fit ``policy`` in place to ``data`` by ``loss``, and the reward in it by ``outer``.

    ``criterion`` (one-step NLL by default) is watched on each member's stopping sample; the state
    where it was lowest is kept, member by member. All draws come from ``generator``. ``schedule``: steps,
    minibatches, learning rate and patience (None: ``Schedule()``). ``progress`` shows a bar on stderr; ``log(name, value, step)`` hears the
    training curves.

    However it ends, by Ctrl-C or an error too, the policy is left in the best state until then.

    Raises DivergedError if a member's criterion or the outer level stops being finite,
    InvalidInputError for folds that do not fit, and what ``outer`` refuses before the first step.
    """
    schedule = schedule or Schedule()
    loop = _Loop(policy, loss, data, outer, criterion or OneStepNLL(), schedule, generator, log)
    bar = tqdm(range(schedule.steps), desc="fit", leave=False, disable=not progress)
    try:
        for step in bar:
            loop.train_step(step)
            last = step + 1 == schedule.steps
            if (step + 1) % schedule.evaluate_every == 0 or last:
                loop.evaluate(step + 1)
                bar.set_postfix(held_out=f"{loop.best.criterion.mean().item():.3f}", refresh=False)
                if loop.best.stale >= schedule.patience and not last and loop.may_stop(step + 1):
                    break
    finally:
        bar.close()
        loop.best.restore(policy)
    return loop.result()


@dataclass
class _Best:
    """The best state of each member so far, by the criterion on its stopping sample."""

    criterion: Tensor
    step: Tensor
    state: dict[str, Tensor]
    stale: int = 0

    @staticmethod
    def start(policy: nn.Module, members: int) -> _Best:
        state = {name: p.detach().clone() for name, p in policy.named_parameters()}
        return _Best(
            torch.full((members,), math.inf), torch.zeros(members, dtype=torch.int64), state
        )

    @torch.no_grad()
    def offer(self, policy: nn.Module, criterion: Tensor, step: int) -> None:
        """Keep the present state of the members that improved. NaN is never an improvement."""
        improved = criterion < self.criterion
        self.stale = 0 if bool(improved.any()) else self.stale + 1
        self.criterion = torch.where(improved, criterion, self.criterion)
        self.step = torch.where(improved, step, self.step)
        for name, parameter in policy.named_parameters():
            self.state[name][improved] = parameter[improved]

    def forget(self) -> None:
        """Let any state be better than those so far, which were trained for another reward."""
        self.criterion, self.stale = torch.full_like(self.criterion, math.inf), 0

    @torch.no_grad()
    def restore(self, policy: nn.Module) -> None:
        for name, parameter in policy.named_parameters():
            parameter.copy_(self.state[name])


@dataclass
class _OuterLoop:
    """The outer level inside the loop: its problem, its state, its last report.

    The inner rows are drawn anew for each update, or every ``outer.refresh`` updates where a linear
    solution is handed on: it is a good start for the next solve only on the same rows. φ's learning
    rate falls by a cosine too: θ, whose own falls to zero, could not follow it in the end.
    """

    outer: Outer
    policy: Policy
    loss: Loss
    held_out: Batch
    lent: Batch | None
    batches: Minibatches
    generator: torch.Generator
    steps: int
    report: Report = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last = self.outer.until * self.steps
        # Checked on a generator of its own: a refusal comes before the first draw of training.
        first = self.batches.draw(torch.Generator().manual_seed(0))
        self.state: OuterState = self.outer.start(self._problem(first))
        self.train = first
        updates = max(1, math.ceil((self.last - self.outer.warmup) / self.outer.every))
        self.cosine = self.state.optimiser and torch.optim.lr_scheduler.CosineAnnealingLR(
            self.state.optimiser, updates
        )

    def step(self, at: int) -> None:
        """The update before inner step ``at``."""
        resting = at >= self.last
        if self.state.warm.solution is None or self.state.updates % self.outer.refresh == 0:
            self.train = self.batches.draw(self.generator)
        self.state, self.report = self.outer.update(
            self._problem(self.train), self.state, self.generator, resting=resting
        )
        if self.cosine is not None and not resting:
            self.cosine.step()

    def finish(self) -> None:
        finished = self.outer.finish(self._problem(self.batches.draw(self.generator)))
        self.report = {**self.report, **finished, "updates": float(self.state.updates)}

    def _problem(self, train: Batch) -> Problem:
        objective = self.outer.objective
        return Problem(self.policy, self.loss, train, self.held_out, objective, self.lent)


@contextmanager
def _told_as_divergence(step: int) -> Iterator[None]:
    """What was checked at the start and is refused now, a σ out of its bounds say, has run away."""
    try:
        yield
    except InvalidInputError as error:
        raise DivergedError(
            f"training diverged at step {step}: the outer level was refused: {error}; or lower "
            "learning_rate"
        ) from error


@dataclass
class _Loop:
    policy: Policy
    loss: Loss
    data: FitData
    outer: Outer | None
    criterion: Objective
    schedule: Schedule
    generator: torch.Generator
    log: Log | None
    history: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        schedule, folds = self.schedule, self.data.folds
        if len(folds.train) != self.policy.members:
            raise InvalidInputError(
                f"folds are for {len(folds.train)} members but the policy has {self.policy.members}"
            )
        if min(map(len, folds.stop)) == 0:
            raise InvalidInputError(
                "every member needs rows to stop by, but a member's stop sample is empty: give folds "
                "with a stop part"
            )
        if self.outer is not None and min(map(len, folds.outer)) == 0:
            raise InvalidInputError(
                "the outer level needs held-out rows for every member, but a member's outer sample "
                "is empty: give folds with an outer part"
            )
        ahead = getattr(self.loss, "looks_ahead", True)
        rows = self.data if ahead else replace(self.data, chain=None)
        self.batches = Minibatches(rows, schedule.batch_size)
        self.stop_sample = self.data.sample(folds.stop, HELD_OUT_ROWS)
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, schedule.steps)
        self.best = _Best.start(self.policy, self.policy.members)
        self.steps_run = 0
        self.level: _OuterLoop | None = None
        if self.outer is not None:
            held_out = self.data.sample(folds.outer, HELD_OUT_ROWS)
            lent = None
            if self.outer.with_stop:
                lent = self.data.sample(folds.with_stop_as_outer().outer, HELD_OUT_ROWS)
            self.level = _OuterLoop(
                self.outer,
                self.policy,
                self.loss,
                held_out,
                lent,
                Minibatches(rows, self.outer.batch_size),
                self.generator,
                schedule.steps,
            )

    def train_step(self, step: int) -> None:
        if self.level is not None and step == math.ceil(self.level.last):
            self.best.forget()
        if self.level is not None and self.level.outer.due(step):
            with _told_as_divergence(step):
                self.level.step(step)
        batch = self.batches.draw(self.generator)
        value, _ = self.loss(self.policy, batch, self.generator)
        # autograd.grad, not backward(): φ inside the loss must not gather a gradient here.
        gradients = torch.autograd.grad(value.sum(), self.parameters, materialize_grads=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.cosine.step()
        self.steps_run = step + 1
        if (step + 1) % self.schedule.evaluate_every == 0 or step == 0:
            self._record("loss", value.mean().item(), step + 1)
            norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
            self._record("inner_gradient_norm", norm.item(), step + 1)

    def may_stop(self, step: int) -> bool:
        """Whether the reward is what it will be."""
        return self.level is None or self.level.outer.until == 1.0 or step > self.level.last

    def evaluate(self, step: int) -> None:
        with torch.no_grad():
            criterion = self.criterion(self.policy, self.stop_sample)
        if not criterion.isfinite().all():
            raise DivergedError(
                f"training diverged at step {step} (the held-out criterion is {criterion.tolist()}); "
                "the best state before it is kept: lower learning_rate, and look for NaN in the data"
            )
        self.best.offer(self.policy, criterion, step)
        self._record("held_out", criterion.mean().item(), step)
        if self.level is not None:
            for name, value in self.level.report.items():
                self._record(f"outer/{name}", value, step)

    def result(self) -> FitResult:
        if self.level is not None:
            with _told_as_divergence(self.steps_run):
                self.level.finish()
        return FitResult(
            criterion=tuple(self.best.criterion.tolist()),
            best_step=tuple(self.best.step.tolist()),
            steps=self.steps_run,
            stopped_early=self.steps_run < self.schedule.steps,
            history={name: tuple(points) for name, points in self.history.items()},
            outer={} if self.level is None else dict(self.level.report),
        )

    def _record(self, name: str, value: float, step: int) -> None:
        self.history[name].append((step, value))
        if self.log is not None:
            self.log(f"fit/{name}", value, step)

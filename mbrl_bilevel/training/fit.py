"""The one training loop: gradient steps on the inner loss, an outer step now and then.

``outer=None`` is plain training, so comparing a reward-trained model with a likelihood-trained one
changes one argument. The best state of each member, by held-out data, is kept.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mbrl_bilevel.base.errors import BilevelError, DivergedError, InvalidInputError
from mbrl_bilevel.base.records import Batch, FitResult
from mbrl_bilevel.data.splits import FitData, Minibatches
from mbrl_bilevel.inner.losses import Loss
from mbrl_bilevel.outer.level import Outer, OuterState
from mbrl_bilevel.outer.objectives import Objective, OneStepNLL
from mbrl_bilevel.outer.problem import Problem, Report
from mbrl_bilevel.policies.joined import Joined, joined
from mbrl_bilevel.policies.policies import Policy
from mbrl_bilevel.training.settings import Schedule

T = TypeVar("T")

#: Called with (metric name, value, step): TensorBoard's ``add_scalar`` fits.
Log = Callable[[str, float, int], object]


#: Rows at most that a member's early stopping, and its outer level, look at: the millionth tells
#: nothing that the first twenty thousand did not, but each costs memory for all of its activations.
HELD_OUT_ROWS = 20_000


@dataclass(frozen=True)
class Job:
    """One fit: ``policy`` in place to ``data`` by ``loss``, and the reward in it by ``outer``. The rest as of ``fit``."""

    policy: Policy
    loss: Loss
    data: FitData
    generator: torch.Generator
    outer: Outer | None = None
    criterion: Objective | None = None
    log: Log | None = None


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
    job = Job(policy, loss, data, generator, outer, criterion, log)
    (found,) = fit_side_by_side([job], schedule=schedule, progress=progress)
    if isinstance(found, BilevelError):
        raise found
    return found


def fit_side_by_side(
    jobs: Sequence[Job], *, schedule: Schedule | None = None, progress: bool = False
) -> list[FitResult | BilevelError]:
    """Make several fits as one, of an ensemble that has the members of all their policies, which must be alike: a
    step is one batched product a layer for all of them. Each has its own rows, reward, draws and early stopping, and
    ends as it does alone, to the rounding of these products.

    What becomes of each job: its result, or the error that it failed by; the others go on. Raises InvalidInputError
    for policies of different forms, and UnsupportedCombinationError for a loss that asks the policy at other inputs
    than its minibatch's (one that looks ahead) or reads its parameters (EWC): make such fits one after another.
    """
    if not jobs:
        return []
    schedule = schedule or Schedule()
    sides = [_Side.of(job, schedule) for job in jobs]
    bar = tqdm(range(schedule.steps), desc="fit", leave=False, disable=not progress)
    try:
        with joined([job.policy for job in jobs]) as policies:
            together = _Together(sides, policies, schedule)
            for step in bar:
                together.step(step)
                if not together.going:
                    break
                if progress and (step + 1) % schedule.evaluate_every == 0:
                    bar.set_postfix(held_out=f"{together.criterion:.3f}", refresh=False)
    finally:
        bar.close()
        for side in sides:
            side.best.restore(side.job.policy)
    return [side.outcome() for side in sides]


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
        device = next(policy.parameters()).device
        nothing = torch.full((members,), math.inf, device=device)
        return _Best(nothing, torch.zeros_like(nothing, dtype=torch.int64), state)

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

    @staticmethod
    def of(job: Job, outer: Outer, rows: FitData, steps: int) -> _OuterLoop:
        """Of a job whose minibatches are of ``rows``."""
        folds = job.data.folds
        held_out = job.data.sample(folds.outer, HELD_OUT_ROWS)
        lent = None
        if outer.with_stop:
            lent = job.data.sample(folds.with_stop_as_outer().outer, HELD_OUT_ROWS)
        batches = Minibatches(rows, outer.batch_size)
        return _OuterLoop(
            outer, job.policy, job.loss, held_out, lent, batches, job.generator, steps
        )

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
class _Side:
    """One of the fits that are made together: who sees which rows, the outer level, the best state so far."""

    job: Job
    schedule: Schedule
    criterion: Objective
    batches: Minibatches
    stop_sample: Batch
    best: _Best
    level: _OuterLoop | None
    history: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    steps_run: int = 0
    over: bool = False
    error: BilevelError | None = None

    @staticmethod
    def of(job: Job, schedule: Schedule) -> _Side:
        data, folds = job.data, job.data.folds
        _require_samples(job)
        ahead = getattr(job.loss, "looks_ahead", True)
        rows = data if ahead else replace(data, chain=None)
        batches = Minibatches(rows, schedule.batch_size)
        stop_sample = data.sample(folds.stop, HELD_OUT_ROWS)
        best = _Best.start(job.policy, job.policy.members)
        level = None if job.outer is None else _OuterLoop.of(job, job.outer, rows, schedule.steps)
        criterion = job.criterion or OneStepNLL()
        return _Side(job, schedule, criterion, batches, stop_sample, best, level)

    def before(self, step: int) -> Batch:
        """The outer level's turn, if it is due; then the minibatch of this step."""
        if self.level is not None and step == math.ceil(self.level.last):
            self.best.forget()
        if self.level is not None and self.level.outer.due(step):
            with _told_as_divergence(step):
                self.level.step(step)
        return self.batches.draw(self.job.generator)

    def after(self, step: int, value: Tensor, gradients: Sequence[Tensor], rows: slice) -> None:
        """Note what the step was like: its loss [E], and its ``rows`` of the gradients."""
        self.steps_run = step + 1
        if (step + 1) % self.schedule.evaluate_every == 0 or step == 0:
            self._record("loss", value.mean().item(), step + 1)
            norm = torch.linalg.vector_norm(torch.stack([g[rows].norm() for g in gradients]))
            self._record("inner_gradient_norm", norm.item(), step + 1)

    def judge(self, step: int) -> None:
        """Read the criterion where that is due, and see whether to go on."""
        last = step == self.schedule.steps
        if step % self.schedule.evaluate_every == 0 or last:
            self._evaluate(step)
            stale = self.best.stale >= self.schedule.patience
            self.over = last or (stale and self._may_stop(step))

    def fail(self, error: BilevelError) -> None:
        """It ends here."""
        self.over, self.error = True, error

    def outcome(self) -> FitResult | BilevelError:
        """What became of it; its policy is in the best state by now."""
        if self.error is not None:
            return self.error
        if self.level is not None:
            try:
                with _told_as_divergence(self.steps_run):
                    self.level.finish()
            except BilevelError as error:
                return error
        return FitResult(
            criterion=tuple(self.best.criterion.tolist()),
            best_step=tuple(self.best.step.tolist()),
            steps=self.steps_run,
            stopped_early=self.steps_run < self.schedule.steps,
            history={name: tuple(points) for name, points in self.history.items()},
            outer={} if self.level is None else dict(self.level.report),
        )

    def _may_stop(self, step: int) -> bool:
        """Whether the reward is what it will be."""
        return self.level is None or self.level.outer.until == 1.0 or step > self.level.last

    def _evaluate(self, step: int) -> None:
        with torch.no_grad():
            criterion = self.criterion(self.job.policy, self.stop_sample)
        if not criterion.isfinite().all():
            raise DivergedError(
                f"training diverged at step {step} (the held-out criterion is {criterion.tolist()}); "
                "the best state before it is kept: lower learning_rate, and look for NaN in the data"
            )
        self.best.offer(self.job.policy, criterion, step)
        self._record("held_out", criterion.mean().item(), step)
        if self.level is not None:
            for name, value in self.level.report.items():
                self._record(f"outer/{name}", value, step)

    def _record(self, name: str, value: float, step: int) -> None:
        self.history[name].append((step, value))
        if self.job.log is not None:
            self.job.log(f"fit/{name}", value, step)


def _require_samples(job: Job) -> None:
    """Raises InvalidInputError for folds that leave a level of some member without rows."""
    folds = job.data.folds
    if len(folds.train) != job.policy.members:
        raise InvalidInputError(
            f"folds are for {len(folds.train)} members but the policy has {job.policy.members}"
        )
    if min(map(len, folds.stop)) == 0:
        raise InvalidInputError(
            "every member needs rows to stop by, but a member's stop sample is empty: give folds "
            "with a stop part"
        )
    if job.outer is not None and min(map(len, folds.outer)) == 0:
        raise InvalidInputError(
            "the outer level needs held-out rows for every member, but a member's outer sample "
            "is empty: give folds with an outer part"
        )


class _Together:
    """Gradient steps on the inner losses of all sides that are still ``going``."""

    def __init__(self, sides: Sequence[_Side], joined: Joined, schedule: Schedule) -> None:
        self.going, self._joined = list(sides), joined
        self._optimiser = torch.optim.AdamW(
            joined.trained,
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        self._cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, schedule.steps)

    @property
    def criterion(self) -> float:
        """The best so far, on average."""
        return sum(side.best.criterion.mean().item() for side in self.going) / len(self.going)

    def step(self, step: int) -> None:
        """The step with this number, and all that is due before it and behind it."""
        batches = self._each(lambda side: side.before(step))
        if self.going:
            self._descend(step, batches)
            self._each(lambda side: side.judge(step + 1))

    def _descend(self, step: int, batches: Sequence[Batch]) -> None:
        asked = self._joined.asked(batches)
        values = [
            side.job.loss(policy, batch, side.job.generator)[0]
            for side, policy, batch in zip(self.going, asked, batches, strict=True)
        ]
        total = values[0].sum() if len(values) == 1 else torch.cat(values).sum()
        parameters = self._joined.trained
        if step == 0:
            self._joined.require_asked(total)
        # autograd.grad, not backward(): φ inside the loss must not gather a gradient here.
        gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimiser.step()
        self._cosine.step()
        for side, value, rows in zip(self.going, values, self._joined.rows, strict=True):
            side.after(step, value.detach(), gradients, rows)

    def _each(self, work: Callable[[_Side], T]) -> list[T]:
        """What ``work`` gives for each side; a side that it fails for is over, and those that are over leave."""
        found = []
        for side in self.going:
            try:
                found.append(work(side))
            except BilevelError as error:
                side.fail(error)
        still = [k for k, side in enumerate(self.going) if not side.over]
        if len(still) < len(self.going):
            self.going = [self.going[k] for k in still]
            if still:
                self._keep(still)
        return found

    def _keep(self, still: Sequence[int]) -> None:
        """Go on with the members of these sides alone; what Adam knows of them stays."""
        rows = torch.cat(
            [torch.arange(s.start, s.stop) for s in (self._joined.rows[k] for k in still)]
        )
        before = self._joined.trained
        self._joined.keep(still)
        state = self._optimiser.state
        for old, new in zip(before, self._joined.trained, strict=True):
            state[new] = {
                name: value[rows] if value.ndim else value
                for name, value in state.pop(old, {}).items()
            }
        self._optimiser.param_groups[0]["params"] = self._joined.trained

"""What theory does, once its options are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from options.theory import Args
from torch import Tensor

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.data.splits import FitData, Folds
from mbrl_bilevel.figures.theory import draw_convergence, draw_hypergradients, draw_moments
from mbrl_bilevel.inner.estimators import LeaveOneOut
from mbrl_bilevel.inner.losses import NLL, Loss, PolicyGradient
from mbrl_bilevel.inner.positive import Form
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.closed_form import ClosedForm
from mbrl_bilevel.outer.implicit import FisherImplicit, Neumann
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import neumann_series
from mbrl_bilevel.outer.problem import Solver
from mbrl_bilevel.outer.unrolled import Unrolled
from mbrl_bilevel.policies.policies import FullGaussianPolicy
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder
from mbrl_bilevel.theory.brute_force import relative_error
from mbrl_bilevel.theory.catalogue import catalogue, hypergradient_errors, sampled, solvers
from mbrl_bilevel.theory.linear_gaussian import Setting, build, linear_gaussian, optimal, settle
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.settings import Schedule


def check_theory(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then tabulate and draw."""
    work = _work(args)
    for key in run.progress(work, "theory"):
        if run.rows.find(**key) is None:
            run.rows.append(key | _PARTS[key["part"]](args, key))
    found = [row for key in work if (row := run.rows.find(**key)) is not None]
    rows = [run.rows.require(row, *_COLUMNS[row["part"]]) for row in found]
    recovered = [row for row in rows if row["part"] == "recover"]
    checked = [row for row in rows if row["part"] == "hypergradient"]
    matched = [row for row in rows if row["part"] == "moments"]
    hypergradients = _by_solver(checked)
    metrics = {
        "u_star_relative_error": _table(recovered, "error"),
        "u_star_relative_error_to_truth": _table(recovered, "error_to_truth"),
        "sample_optimum_relative_error_to_truth": {
            row["problem"]: row["optimum_to_truth"] for row in recovered
        },
        "convergence_rate": _table(recovered, "rate"),
        "predicted_convergence_rate": {row["problem"]: row["predicted"] for row in recovered},
        "hypergradient_relative_error": hypergradients,
        "well_specified": [row["problem"] for row in checked if row["well_specified"]],
        "free": [row["problem"] for row in checked if row["free"]],
        "moments": matched,
        "rows": recovered,
    }
    figures = [
        draw_convergence(run.figures / "u_star.png", recovered, "distance"),
        draw_convergence(run.figures / "outer_objective.png", recovered, "gap"),
        draw_moments(run.figures / "moments.png", matched, MOMENT_METHODS),
        draw_hypergradients(run.figures / "hypergradients.png", hypergradients, checked),
    ]
    return Result(metrics, _summary(recovered, checked) | {"figures": [str(f) for f in figures]})


Row = dict[str, Any]


#: Draws of ŷ per (condensed) row where the reward's mean is estimated.
_DRAWS = 1024


#: How the moment-matching curves are trained.
MOMENT_METHODS = ("PG, U = U*", "PG, U learned", "PG, U = I", "NLL")


_SAMPLED = "fisher_implicit_sampled"


_QUICK_PROBLEMS = ("gaussian_1d", "categorical_2", "misspecified_rbf")


def recover(args: Args, key: Mapping[str, Any]) -> Row:
    """Learn U from ½I with one solver, the inner problem solved before each outer step."""
    form, dim, name = key["form"], key["dim"], key["solver"]
    setting = build(dim, form, args.n, args.seed)
    steps = 60 if name == _SAMPLED or (form == "full" and dim > 2) else 25
    outer, from_draws = _outer(name, setting)
    problem = sampled(setting.problem, _DRAWS) if from_draws else setting.problem
    state = outer.start(problem)
    generator = torch.Generator().manual_seed(args.seed)
    distance, gap = [_distance(setting)], [_gap(setting)]
    for _ in range(1 if name == "closed_form" else steps):
        state, _ = outer.update(problem, state, generator)
        distance.append(_distance(setting))
        gap.append(_gap(setting))
    matrix = setting.reward.matrix.detach()
    return {
        "error": distance[-1],
        "error_to_truth": relative_error(matrix, setting.truth),
        "optimum_to_truth": relative_error(setting.optimum, setting.truth),
        "predicted": setting.descent.rate,
        "rate": None if from_draws else _rate(distance),
        "distance": distance,
        "gap": gap,
    }


def check_hypergradients(args: Args, key: Mapping[str, Any]) -> Row:
    """Every solver on one problem of the catalogue, against finite differences."""
    name = key["problem"]
    entry = catalogue(args.seed)[name]()
    found = hypergradient_errors([name], args.seed)
    errors = {solver: values[name] for solver, values in found.items()}
    return {"errors": errors, "well_specified": entry.well_specified, "free": entry.free}


def match_moments(args: Args, key: Mapping[str, Any]) -> Row:
    """Errors of mean and covariance, epoch by epoch, of one training by ``fit`` in two dimensions."""
    rows, epochs = (args.n, args.epochs) if not args.quick else (min(args.n, 1000), 40)
    seed = args.seed + key["repeat"]
    train, held_out, mean, covariance = linear_gaussian(rows, 2, seed)
    generator = torch.Generator().manual_seed(seed)
    policy = FullGaussianPolicy(2, 2, generator=generator, members=1, hidden=())
    loss, outer = _moment_loss(key["method"], covariance)
    x = held_out.x.float()
    curves: dict[str, list[float]] = {"mean_error": [], "covariance_error": []}

    def measure() -> None:
        with torch.no_grad():
            dist = policy.dist(x)
            factor = dist.scale_tril[0, 0].double()
            off = (dist.mean[0].double() - mean[0]).square().mean()
        curves["mean_error"].append(math.sqrt(float(off / mean[0].square().mean())))
        curves["covariance_error"].append(relative_error(factor @ factor.mT, covariance))

    def log(name: str, value: float, step: int) -> None:
        if name == "fit/held_out":
            measure()

    measure()
    per_epoch = math.ceil(rows / 256)
    schedule = Schedule(
        epochs * per_epoch, 256, 1e-2, evaluate_every=per_epoch, patience=epochs + 1
    )
    data = _fit_data(train, held_out)
    fit(policy, loss, data, generator=generator, outer=outer, schedule=schedule, log=log)
    return {**curves, **_learned(loss, outer, covariance)}


#: Each part of the work by name: it makes the rest of a row from its key.
_PARTS = {"recover": recover, "hypergradient": check_hypergradients, "moments": match_moments}


#: What their rows hold, for a resumed run to rely on.
_COLUMNS = {
    "recover": (
        "error",
        "error_to_truth",
        "optimum_to_truth",
        "predicted",
        "rate",
        "distance",
        "gap",
    ),
    "hypergradient": ("errors", "well_specified", "free"),
    "moments": ("mean_error", "covariance_error"),
}


def _work(args: Args) -> list[Row]:
    """The keys of all rows."""
    names = ("closed_form", *solvers(), _SAMPLED)
    dims = [dim for dim in args.dims if not args.quick or dim <= 2]
    problems = _QUICK_PROBLEMS if args.quick else tuple(catalogue())
    # In one dimension the forms are one.
    settings: list[tuple[int, Form]] = [(1, "diagonal")] if 1 in dims else []
    wider: tuple[Form, ...] = ("full",) if args.quick else ("scaled_identity", "diagonal", "full")
    settings += [(dim, form) for dim in dims if dim > 1 for form in wider]
    keys: list[Row] = [
        {
            "part": "recover",
            "problem": f"{dim}d" if dim == 1 else f"{dim}d_{form}",
            "dim": dim,
            "form": form,
            "solver": name,
        }
        for dim, form in settings
        for name in names
    ]
    keys += [{"part": "hypergradient", "problem": name} for name in problems]
    return keys + [
        {"part": "moments", "method": method, "repeat": repeat}
        for repeat in range(1 if args.quick else args.repeats)
        for method in MOMENT_METHODS
    ]


def _outer(name: str, setting: Setting) -> tuple[Outer, bool]:
    """The outer level with that solver, and whether it is to see draws instead of closed forms."""
    if name == "closed_form":
        return Outer(ClosedForm()), False
    # Shorter steps average the noise of the draws.
    length = setting.descent.learning_rate * (0.3 if name == _SAMPLED else 1.0)
    descent = partial(torch.optim.SGD, lr=length, momentum=setting.descent.momentum)
    # Truncating the series makes the steps smaller, but leaves their zero at U*: there ∇F vanishes
    # in the covariance, and the mean does not depend on U.
    series = partial(neumann_series, tolerance=1e-4, max_iterations=300)
    every: dict[str, Solver] = {
        **solvers(),
        "neumann": Neumann(series),
        "unrolled": Unrolled(steps=60),
        _SAMPLED: replace(_fisher(), samples=_DRAWS),
    }
    return Outer(every[name], optimiser=descent), name == _SAMPLED


def _fisher() -> FisherImplicit:
    solver = solvers()["fisher_implicit"]
    assert isinstance(solver, FisherImplicit)
    return solver


def _distance(setting: Setting) -> float:
    settle(setting.problem)
    return relative_error(setting.reward.matrix.detach(), setting.optimum)


def _gap(setting: Setting) -> float:
    """How far the outer objective is above its least value, in nats per dimension."""
    return setting.objective() - setting.best_objective


def _rate(distance: Sequence[float]) -> float | None:
    """The factor per step, between the first distance below 3 % and the last above 1e-8."""
    inside = [i for i, d in enumerate(distance) if 1e-8 < d < 0.03]
    if len(inside) < 4:
        return None
    first, last = inside[0], inside[-1]
    return float((distance[last] / distance[first]) ** (1.0 / (last - first)))


def _moment_loss(method: str, covariance: Tensor) -> tuple[Loss, Outer | None]:
    if method == "NLL":
        return NLL(), None
    reward = Mahalanobis(2, "full", initial=1.0)
    if method == "PG, U = U*":
        reward.set_matrix(optimal("full", covariance).float())
    loss = PolicyGradient(reward, LeaveOneOut(8))
    # Many short steps: the inner problem is easy to follow here.
    outer = Outer(optimiser=partial(torch.optim.Adam, lr=0.05), every=5)
    return loss, outer if method == "PG, U learned" else None


def _fit_data(train: Batch, held_out: Batch) -> FitData:
    """All of ``train`` for the inner level; ``held_out`` is halved for stopping and the outer."""
    x = torch.cat([train.x[0], held_out.x[0]]).float()
    y = torch.cat([train.y[0], held_out.y[0]]).float()
    inner, stop, outer = np.split(np.arange(len(x)), [train.x.shape[1], train.x.shape[1] * 3 // 2])
    return FitData(x, y, Folds((inner,), (stop,), (outer,)))


def _learned(loss: Loss, outer: Outer | None, covariance: Tensor) -> Row:
    """The error of a U that was learned, against that of the truth."""
    if outer is None or not isinstance(loss, PolicyGradient):
        return {}
    assert isinstance(loss.reward, Mahalanobis)
    matrix = loss.reward.matrix.detach().double()
    return {"u_star_error_to_truth": relative_error(matrix, optimal("full", covariance))}


def _table(rows: Sequence[Row], name: str) -> dict[str, dict[str, float]]:
    """{solver: {problem: value}}."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        if row[name] is not None:
            table.setdefault(row["solver"], {})[row["problem"]] = row[name]
    return table


def _by_solver(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        for solver, error in row["errors"].items():
            table.setdefault(solver, {})[row["problem"]] = error
    return table


def _summary(recovered: Sequence[Row], checked: Sequence[Row]) -> Row:
    """The worst cases of what is claimed."""
    errors = _by_solver(checked)
    well = {row["problem"] for row in checked if row["well_specified"]}
    free = {row["problem"] for row in checked if row["free"]}

    def worst(solver: str, problems: set[str]) -> float:
        return max(value for name, value in errors[solver].items() if name in problems)

    drawn = [row["error"] for row in recovered if row["solver"] == _SAMPLED]
    exact = [row["error"] for row in recovered if row["solver"] != _SAMPLED]
    every = {row["problem"] for row in checked}
    return {
        "u_star_exact_solvers": max(exact),
        "u_star_from_draws": max(drawn),
        "hypergradient_exact_implicit": worst("exact_implicit", every),
        "hypergradient_fisher_well_specified": worst("fisher_implicit", well),
        "hypergradient_function_space_free": worst("function_space", free),
    }

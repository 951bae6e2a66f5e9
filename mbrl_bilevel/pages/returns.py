"""What agents earn: learning curves of train with reference lines, planners, policies learned offline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mbrl_bilevel.pages.blocks import Block, Cell, Column, Line, Plot, Section, Table
from mbrl_bilevel.pages.contract import Row
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import Mean, grouped, thinned
from mbrl_bilevel.pages.ranking import best_of
from mbrl_bilevel.pages.together import Key, together

_BASELINES = {"nothing": "doing nothing", "random-actions": "random actions"}
_RETURN = "return of an episode"
_STEPS = "real environment steps"


def learning(runs: Sequence[Run]) -> Section | None:
    """Return against real steps, and the last return of each agent; None where no agent was trained."""
    frame = evaluations(runs)
    if frame.empty:
        return None
    blocks: list[Block] = []
    final: list[tuple[str, str, float, Mean]] = []
    references = reference_lines(runs)
    for env_id, here in frame.groupby("env_id", sort=False):
        lines = list(curves(here, "mean"))
        blocks.append(
            Plot(
                title=f"{env_id}: return while learning",
                x_title=_STEPS,
                y_title=_RETURN,
                lines=lines,
                better="higher",
                references=references.get(str(env_id), {}),
                log_x=_far_apart(lines),
                note=_of_repeats(lines),
            )
        )
        final += [(str(env_id), line.name, *_end(line)) for line in lines]
    blocks.append(_final_table(final, references))
    lead = (
        "Lines are means over repeats (seeds), bands their 95 % bootstrap intervals. Every evaluation is made of "
        "episodes that training never sees."
    )
    return Section("Learning curves", lead, blocks)


def evaluations(runs: Sequence[Run]) -> pd.DataFrame:
    """A row an evaluation of train: env_id, label, step, mean, policy_mean, health, outer."""
    found = [
        {**row, "env_id": _env_id(run), "label": label}
        for label, run, row in together([run for run in runs if run.script == "train"], _train_key)
    ]
    return pd.DataFrame(found).sort_values("step", kind="stable") if found else pd.DataFrame()


def curves(frame: pd.DataFrame, value: str) -> Iterator[Line]:
    """A line for each label, in the order in which they first come in the runs."""
    for label, mine in frame.groupby("label", sort=False):
        mine = mine[mine[value].map(lambda v: isinstance(v, float))]
        steps = thinned(sorted(mine["step"].unique()))
        found = dict(grouped(mine[mine["step"].isin(steps)], ["step"], value))
        means = [found[(step,)] for step in steps]
        if means:
            yield Line(str(label), steps, means)


def reference_lines(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Environment -> name -> mean return: what plan and demo measured beside the agents."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        if run.script == "demo":
            for row in run.rows:
                if row.get("name") == "references":
                    values = {k: v for k, v in row.items() if type(v) is float and math.isfinite(v)}
                    found.setdefault(_env_id(run), {}).update(values)
    frame = _planned(runs)
    if not frame.empty:
        for (env_id, label), mean in grouped(frame, ["env_id", "label"], "return"):
            if label in _BASELINES.values() and not mean.lost:
                found.setdefault(env_id, {})[label] = mean.mean
    return found


def planning(runs: Sequence[Run]) -> Section | None:
    """The return of each planner; None where none was compared."""
    frame = _planned(runs)
    if frame.empty:
        return None
    return _of_policies(
        "Planning",
        frame,
        "Returns of whole episodes, the same starts for every planner. Points are means over episodes, bars "
        "their 95 % bootstrap intervals.",
        reference_lines(runs),
    )


def offline(runs: Sequence[Run]) -> Section | None:
    """The return of each policy that was learned from data alone; None where there is none."""
    mine = [run for run in runs if run.script == "offline"]
    found = [
        {**row, "env_id": _env_id(run), "label": label, "return": row["mean"]}
        for label, run, row in together(
            mine, lambda run, row: (row["policy"], _env_id(run), row["seed"])
        )
    ]
    if not found:
        return None
    references: dict[str, dict[str, float]] = {}
    for run in mine:
        data = (run.metrics or {}).get("data")
        mean = data.get("mean") if isinstance(data, dict) else None
        if type(mean) is float and math.isfinite(mean):
            references.setdefault(_env_id(run), {})["the data itself"] = mean
    return _of_policies(
        "Policies learned offline",
        pd.DataFrame(found),
        "Returns in the real environment of policies that were learned from logged data alone. Points are "
        "means over repeats, bars their 95 % bootstrap intervals.",
        references,
    )


def agent_label(run: Run) -> str:
    """What acts: ``sac``, or the agent and how its model is trained: ``mpc, nll``."""
    agent = str(run.options.get("agent", "agent"))
    if agent == "sac":
        return agent
    resolved: Any = run.config.get("resolved")
    settings = resolved.get("settings") if isinstance(resolved, Mapping) else None
    method = settings.get("method") if isinstance(settings, Mapping) else None
    return f"{agent}, {run.options.get('model') or method or 'bilevel'}"


def _train_key(run: Run, row: Row) -> Key:
    return agent_label(run), _env_id(run), (row["seed"], row["step"])


def _env_id(run: Run) -> str:
    return str(run.options.get("env_id", "environment"))


def _planned(runs: Sequence[Run]) -> pd.DataFrame:
    def key(run: Run, row: Row) -> Key:
        # The baselines plan nothing: whatever was planned in beside them, they are the same.
        if row["planner"] in _BASELINES:
            return _BASELINES[row["planner"]], run.path, row["seed"]
        oracle = run.options.get("model", "oracle") == "oracle"
        inside = "true simulator" if oracle else "saved model"
        return f"{row['planner']} in the {inside}", row["env_id"], row["seed"]

    mine = [run for run in runs if run.script == "plan"]
    frame = pd.DataFrame([{**row, "label": label} for label, _, row in together(mine, key)])
    return frame if frame.empty else frame.drop_duplicates(["env_id", "label", "seed", "return"])


def _of_policies(
    title: str,
    frame: pd.DataFrame,
    lead: str,
    references: Mapping[str, Mapping[str, float]],
) -> Section:
    blocks: list[Block] = []
    found: list[tuple[str, str, float, Mean]] = []
    for env_id, here in frame.groupby("env_id", sort=False):
        means = {label: mean for (label,), mean in grouped(here, ["label"], "return")}
        shown = references.get(str(env_id), {})
        lines = [Line(name, [name], [mean]) for name, mean in means.items() if name not in shown]
        if lines:
            plot = Plot(f"{env_id}: return", "", _RETURN, lines, "higher", shown, joined=False)
            blocks.append(plot)
        found += [(str(env_id), name, math.nan, mean) for name, mean in means.items()]
    return Section(title, lead, [*blocks, _final_table(found, {})])


def _final_table(
    final: Sequence[tuple[str, str, float, Mean]], references: Mapping[str, Mapping[str, float]]
) -> Table:
    """The best agent of each environment is marked; references compete with nobody."""
    best = best_of([(env_id, mean.mean) for env_id, _, _, mean in final], "higher")
    stepped = any(math.isfinite(steps) for *_, steps, _ in final)
    rows = []
    for place, (env_id, name, steps, mean) in enumerate(final):
        row = [Cell(env_id), Cell(name, look=name)]
        if stepped:
            row.append(Cell(f"{steps:,.0f}", steps))
        rows.append([*row, Cell.of(mean, best[place]), Cell(f"{mean.n}", mean.n)])
    for env_id, lines in references.items():
        for name, value in lines.items():
            if stepped and any(env_id == other for other, *_ in final):
                rows.append(
                    [Cell(env_id), Cell(name), Cell("–"), Cell(f"{value:,.1f}", value), Cell("–")]
                )
    columns = [Column("environment"), Column("what acts")]
    columns += [Column(_STEPS)] if stepped else []
    columns += [Column("return [95 % interval]", "higher"), Column("repeats")]
    return Table("Return at the end" if stepped else "Returns", columns, rows)


def _end(line: Line) -> tuple[float, Mean]:
    """The last step that all repeats have come to."""
    most = max(mean.n for mean in line.y)
    place = max(i for i, mean in enumerate(line.y) if mean.n == most)
    return float(line.x[place]), line.y[place]


def _far_apart(lines: Sequence[Line]) -> bool:
    """Whether some line ends so early that a linear axis would squeeze it."""
    ends = [float(line.x[-1]) for line in lines]
    return bool(ends) and max(ends) >= 5.0 * min(ends)


def _of_repeats(lines: Sequence[Line]) -> str:
    """What the reader must know of the intervals."""
    single = [line.name for line in lines if all(mean.n == 1 for mean in line.y)]
    uneven = [line.name for line in lines if len({mean.n for mean in line.y}) > 1]
    said = []
    if single:
        said.append(f"One repeat, so no interval: {', '.join(single)}.")
    if uneven:
        said.append(f"Not all repeats have come to the end: {', '.join(uneven)}.")
    return " ".join(said)

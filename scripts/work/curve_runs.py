"""What curves reads: the evaluations of train and the episodes of plan, each once, repeats together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from options.shared import MODEL_IS_METHOD
from options.train import label_of

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.reading import (
    Tests,
    config_in,
    is_number,
    is_seed,
    is_text,
    misfit,
    read_rows,
)
from mbrl_bilevel.studies.arguments import naming, option_name
from mbrl_bilevel.studies.run_folder import FREE_ON_RESUME

#: Options in which repeats may differ.
_FREE = (
    *(*FREE_ON_RESUME, "seed", "seeds", "save_minari", "keep_checkpoints"),
    *("env_id", "planners"),  # of plan: there they are in the rows
)

_BASELINES = {"nothing": "doing nothing", "random-actions": "random actions"}

#: An environment and what is drawn in its panel.
Line = tuple[str, str]

#: The points of one repeat, step -> mean return of its evaluation.
Curve = dict[int, float]

T = TypeVar("T")


def read_runs(
    runs: Sequence[tuple[str, Path]],
) -> tuple[dict[Line, dict[int, Curve]], dict[Line, dict[int, float]]]:
    """The curves of train and the returns of plan by their seeds, from labels and folders.

    Raises InvalidInputError for a folder of anything else, odd rows, runs that are no repeats though they
    have one name, and a seed that would count twice.
    """
    curves: dict[Line, dict[int, Curve]] = {}
    lines: dict[Line, dict[int, float]] = {}
    first: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for label, folder in _with_parts(runs):
        script, options = _config(folder)
        if script == "train":
            line = options["env_id"], label or label_of(options["agent"], options["method"])
            _require_alike(first.setdefault((script, *line), options), options, line)
            for seed, curve in _repeats(folder, options).items():
                _add(curves, line, seed, curve)
            continue
        inside = label or ("true simulator" if options["model"] == "oracle" else "saved model")
        # Planning is no part of the baselines: runs that differ in it have the same ones.
        plain = {"max_episode_steps": options.get("max_episode_steps")}
        for row in _rows(folder, _EPISODE):
            baseline = _BASELINES.get(row["planner"])
            line, mine = (row["env_id"], baseline or inside), plain if baseline else options
            _require_alike(first.setdefault((script, *line), mine), mine, line)
            if baseline and lines.get(line, {}).get(row["seed"]) == row["return"]:
                continue
            line = row["env_id"], baseline or f"{row['planner']}, {inside}"
            _add(lines, line, row["seed"], row["return"])
    return curves, lines


def _with_parts(runs: Sequence[tuple[str, Path]]) -> Iterator[tuple[str, Path]]:
    """The runs, and in place of one of demo the agents that it trained."""
    for label, folder in runs:
        parts = sorted(path.parent for path in folder.glob("train-*/config.json"))
        if not parts or config_in(folder).get("script") != "demo":
            yield label, folder
            continue
        yield from ((f"{label} {part.name}" if label else "", part) for part in parts)


def _add(found: dict[Line, dict[int, T]], line: Line, seed: int, value: T) -> None:
    """Raises InvalidInputError for a seed that is there already."""
    if seed in (seeds := found.setdefault(line, {})):
        raise InvalidInputError(
            f"--runs: seed {seed} of {_said(line)} is in two folders; leave one out"
        )
    seeds[seed] = value


def _said(line: Line) -> str:
    return f"{line[1]!r} on {line[0]}"


#: Of the rows of train and of plan.
_POINT: Tests = {
    "step": lambda value: type(value) is int and 0 < value <= 10**12,
    "mean": lambda value: value is None or is_number(value),
}
_EPISODE: Tests = {
    **{"env_id": is_text, "planner": is_text},
    **{"seed": is_seed, "return": is_number},
}

#: Of their options.
_OPTIONS: dict[str, Tests] = {
    "train": {
        "env_id": is_text,
        # None, the default, is the preset's.
        "method": lambda value: value is None or is_text(value),
        "agent": lambda value: value in ("planning", "mpc", "mbpo", "sac"),
        "seeds": lambda value: type(value) is int and 1 <= value <= 100_000,
        "seed": is_seed,
    },
    "plan": {"model": is_text},
}


def _config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Which script filled the folder, and its options."""
    config = config_in(folder)
    try:
        script, options = config["script"], dict(config["args"])
        if script == "train":
            options = {MODEL_IS_METHOD.get(name, name): value for name, value in options.items()}
        known = misfit(options, _OPTIONS[script]) is None
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InvalidInputError(
            f"--runs: {folder} holds no run of train or plan; give folders that these or demo have filled "
            "(scripts/report.py draws any run)"
        )
    return script, options


def _require_alike(first: Mapping[str, Any], options: Mapping[str, Any], line: Line) -> None:
    """Raises InvalidInputError unless the two runs are repeats."""
    for name in first:
        # An option that one of them did not know yet had its default there.
        if name in options and name not in _FREE and first[name] != options[name]:
            raise InvalidInputError(
                f"--runs: two runs of {_said(line)} differ in {option_name(name)} ({first[name]} and "
                f"{options[name]}); leave one out, or tell them apart: LABEL=FOLDER"
            )


def _repeats(folder: Path, options: Mapping[str, Any]) -> dict[int, Curve]:
    """One curve a seed, as far as each has come."""
    seeds, first = options["seeds"], options["seed"]
    folders = {seed: folder / f"seed-{seed}" for seed in range(first, first + seeds)}
    return {
        seed: {row["step"]: row["mean"] for row in _rows(place, _POINT) if row["mean"] is not None}
        for seed, place in (folders if seeds > 1 else {first: folder}).items()
    }


def _rows(folder: Path, tests: Tests) -> list[dict[str, Any]]:
    with naming("--runs"):
        return read_rows(folder, tests)

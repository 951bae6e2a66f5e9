"""Draw finished or unfinished runs of train together: return against real steps, and who gets where first.

Runs of one environment that differ in their seeds alone are repeats; where agents of the same --agent and
--model were trained otherwise, LABEL=FOLDER tells them apart. Runs of plan give the reference lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _args import option_name
from _curve_figures import draw_curves
from _folder import FREE_ON_RESUME
from _reading import read_rows
from _run import Result, RunArgs, RunFolder, launch
from _train_args import label_of

from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.statistics import interval

#: Options in which repeats may differ.
_FREE = (*FREE_ON_RESUME, "seed", "seeds", "save_minari", "keep_checkpoints")

#: The points of one repeat, step -> mean return of its evaluation.
Curve = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of curves."""

    runs: tuple[str, ...]
    """Folders that train and plan have filled, or are still filling; LABEL=FOLDER names the curve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({folder.resolve() for _, folder in self.named}) < len(self.runs):
            raise InvalidInputError("--runs: a folder is named twice; leave one out")

    @property
    def named(self) -> list[tuple[str, Path]]:
        """The label, empty where none was given, and the folder of each."""
        # A folder's own name may hold an equals sign.
        split = [("", run) if Path(run).is_dir() else run.rpartition("=")[::2] for run in self.runs]
        return [(label, Path(folder)) for label, folder in split]


def main(args: Args, run: RunFolder) -> Result:
    """Read, sum up, draw."""
    curves: dict[str, dict[str, list[Curve]]] = {}
    lines: dict[str, dict[str, list[float]]] = {}
    trained: dict[tuple[str, str], dict[str, Any]] = {}
    for label, folder in args.named:
        script, options = _config(folder)
        if script == "train":
            label = label or label_of(options["agent"], options["model"])
            _require_alike(trained.setdefault((options["env_id"], label), options), options, label)
            found = [curve for curve in _repeats(folder, options) if curve]
            curves.setdefault(options["env_id"], {}).setdefault(label, []).extend(found)
        else:
            for row in read_rows(folder):
                name = label or _reference(row["planner"], options["model"])
                lines.setdefault(row["env_id"], {}).setdefault(name, []).append(row["return"])
    points = [
        {"env_id": env_id, "label": label, "step": step, **interval(values)}
        for env_id, labels in curves.items()
        for label, repeats in labels.items()
        for step, values in _by_step(repeats).items()
    ]
    if not points:
        raise InvalidInputError("--runs: no evaluation of train is in them yet; let train go on")
    references = [
        {"env_id": env_id, "label": label, **interval(values)}
        for env_id, labels in lines.items()
        for label, values in labels.items()
    ]
    reached = _reached(points)
    figure = draw_curves(run.figures / "returns.png", points, references)
    metrics = {"points": points, "references": references, "reached": reached}
    return Result(metrics, {"reached": reached, "figure": str(figure)})


def _config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Which script filled the folder, and its options."""
    try:
        config = json.loads((folder / "config.json").read_text())
        script, options = config["script"], config["args"]
        needed = {"train": ("env_id", "agent", "model", "seeds", "seed"), "plan": ("model",)}
        known = all(name in options for name in needed[script])
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InvalidInputError(
            f"--runs: {folder} holds no run of train or plan; give folders that these have filled"
        )
    return script, options


def _require_alike(first: Mapping[str, Any], options: Mapping[str, Any], label: str) -> None:
    """Raises InvalidInputError unless the two runs are repeats."""
    for name in {**first, **options}:
        # An option that one of them did not know yet had its default there.
        if name in first and name in options and name not in _FREE and first[name] != options[name]:
            raise InvalidInputError(
                f"--runs: two runs of {label!r} on {options['env_id']} differ in {option_name(name)} "
                f"({first[name]} and {options[name]}); tell them apart: LABEL=FOLDER"
            )


def _repeats(folder: Path, options: Mapping[str, Any]) -> list[Curve]:
    """One curve a seed, as far as each has come."""
    seeds, first = options["seeds"], options["seed"]
    folders = [folder / f"seed-{seed}" for seed in range(first, first + seeds)]
    return [
        {row["step"]: row["mean"] for row in read_rows(place) if row["mean"] is not None}
        for place in (folders if seeds > 1 else [folder])
    ]


def _reference(planner: str, model: str) -> str:
    names = {"nothing": "doing nothing", "random-actions": "random actions"}
    inside = "true simulator" if model == "oracle" else "saved model"
    return names.get(planner, f"{planner}, {inside}")


def _by_step(repeats: Sequence[Curve]) -> dict[int, list[float]]:
    """The returns of all repeats that have come to a step."""
    steps = sorted({step for curve in repeats for step in curve})
    return {step: [curve[step] for curve in repeats if step in curve] for step in steps}


def _reached(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """After how many real steps each agent's mean is first at that of another's last evaluation.

    Points that not all repeats have come to do not count; ``steps`` is None where it never is.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in points:
        groups.setdefault((point["env_id"], point["label"]), []).append(point)
    whole = {
        key: [point for point in found if point["n"] == max(p["n"] for p in found)]
        for key, found in groups.items()
    }
    return [
        {
            "env_id": env_id,
            "label": label,
            "rival": rival,
            "rival_steps": other[-1]["step"],
            "rival_return": other[-1]["mean"],
            "steps": next((p["step"] for p in mine if p["mean"] >= other[-1]["mean"]), None),
        }
        for (env_id, label), mine in whole.items()
        for (their_env, rival), other in whole.items()
        if their_env == env_id and rival != label
    ]


if __name__ == "__main__":
    launch(Args, main)

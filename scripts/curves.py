"""Draw finished or unfinished runs of train together: return against real steps, and who gets where first.

Runs of one environment that differ in their seeds alone are repeats; where agents of the same --agent and
--method were trained otherwise, LABEL=FOLDER tells them apart. Runs of plan give the reference lines; there
LABEL stands for the simulator or the model that was planned in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from options.curves import Args
from work.curve_runs import Curve, read_runs

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Read, sum up, draw."""
    # Once the options are read: they bring in matplotlib and SciPy.
    from mbrl_bilevel.evaluation.statistics import interval
    from mbrl_bilevel.figures.curves import draw_curves

    curves, lines = read_runs(args.named)
    points = [
        {"env_id": env_id, "label": label, "step": step, **interval(values)}
        for (env_id, label), repeats in curves.items()
        for step, values in _by_step(list(repeats.values())).items()
    ]
    if not points:
        raise InvalidInputError("--runs: no evaluation of train is in them yet; let train go on")
    references = [
        {"env_id": env_id, "label": label, **interval(list(returns.values()))}
        for (env_id, label), returns in lines.items()
    ]
    reached = _reached(points)
    figure = draw_curves(run.figures / "returns.png", points, references)
    metrics = {"points": points, "references": references, "reached": reached}
    return Result(metrics, {"reached": reached, "figure": str(figure)})


def _by_step(repeats: Sequence[Curve]) -> dict[int, list[float]]:
    """The returns of all repeats that have come to a step."""
    steps = sorted({step for curve in repeats for step in curve})
    return {step: [curve[step] for curve in repeats if step in curve] for step in steps}


def _reached(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """After how many real steps each agent's mean is first at that of another's last evaluation. It may
    fall again later: the curve tells.

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

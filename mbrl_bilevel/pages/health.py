"""How a model was while its agent learned: its error on new steps, and what it imagined against what came."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from mbrl_bilevel.pages.blocks import Better, Block, Line, Plot, Section
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.looks import SEPARATOR
from mbrl_bilevel.pages.returns import curves, evaluations

#: Of ``health``: name -> (title, unit, which is good, value that is best).
_PLOTS: dict[str, tuple[str, str, Better, float | None]] = {
    "model_rmse": ("error one step ahead, on new steps", "RMSE (target std)", "lower", None),
    "model_coverage": (
        "coverage of the 90 % interval, on new steps",
        "share covered",
        "level",
        0.9,
    ),
    "return_error": (
        *(
            "error of imagined ten-step returns",
            "RMSE (std of all ten-step returns)",
            "lower",
            None,
        ),
    ),
}
_TOLD = (*_PLOTS, "imagined_return", "real_return")
_STEPS = "real environment steps"


def model_health(runs: Sequence[Run]) -> Section | None:
    """None where no agent with a model was trained."""
    frame = evaluations(runs)
    if frame.empty or "health" not in frame:
        return None
    told = pd.DataFrame(
        [row if isinstance(row, dict) else {} for row in frame["health"]], index=frame.index
    ).astype(float)
    frame = frame[["env_id", "label", "step"]].join(told[[n for n in _TOLD if n in told]])
    blocks = [
        plot
        for env_id, here in frame.groupby("env_id", sort=False)
        for plot in _plots(str(env_id), here)
    ]
    if not blocks:
        return None
    lead = (
        "Looked at before each fit, on the real steps since the last one, which the model has not seen. Imagined "
        "returns are of the same ten actions that were taken: where they lie above the real ones, plans promise "
        "what they cannot keep."
    )
    return Section("The model while learning", lead, blocks)


def by_policy(runs: Sequence[Run]) -> Section | None:
    """The return by plan and by the policy alone; None where no agent has both."""
    frame = evaluations(runs)
    if frame.empty or "policy_mean" not in frame:
        return None
    frame = frame[frame["policy_mean"].notna()]
    blocks: list[Block] = []
    for (env_id, label), mine in frame.groupby(["env_id", "label"], sort=False):
        lines = [*curves(mine, "mean"), *_named(mine, "policy_mean", "policy alone")]
        title = f"{env_id}, {label}: by plan, and by its policy alone"
        blocks.append(Plot(title, _STEPS, "return of an episode", lines, "higher"))
    lead = "The same agent evaluated twice: as it acts, and by its policy without a plan."
    return Section("What planning adds", lead, blocks) if blocks else None


def _plots(env_id: str, frame: pd.DataFrame) -> Iterator[Block]:
    for name, (title, unit, better, level) in _PLOTS.items():
        lines = _finite(curves(frame, name)) if name in frame else []
        if lines:
            references = {} if level is None else {"wanted": level}
            yield Plot(f"{env_id}: {title}", _STEPS, unit, lines, better, references)
    if not {"imagined_return", "real_return"} <= set(frame):
        return
    for label, mine in frame.groupby("label", sort=False):
        lines = _finite(
            [*_named(mine, "real_return", "real"), *_named(mine, "imagined_return", "imagined")]
        )
        if lines:
            title = f"{env_id}, {label}: imagined and real return of ten steps"
            yield Plot(
                title, _STEPS, "return of ten steps", lines, note="Best where the two lines meet."
            )


def _named(frame: pd.DataFrame, value: str, what: str) -> list[Line]:
    return [Line(f"{line.name}{SEPARATOR}{what}", line.x, line.y) for line in curves(frame, value)]


def _finite(lines: Iterator[Line] | Sequence[Line]) -> list[Line]:
    """Lines with a point to draw, and of each only where all repeats had been looked at."""
    found = []
    for line in lines:
        kept = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y.mean)]
        if kept:
            found.append(Line(line.name, [x for x, _ in kept], [y for _, y in kept]))
    return found

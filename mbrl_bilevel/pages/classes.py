"""What classify found: the table, reliability, and the rewards that were inferred."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mbrl_bilevel.pages.blocks import Block, Line, Plot, Section
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import Mean, mean_of
from mbrl_bilevel.pages.tables import METRICS, comparison_table, lines_of
from mbrl_bilevel.pages.together import together

_COLUMNS = ("accuracy", "balanced_accuracy", "nll", "ece", "brier", "train_seconds")
_BINS = ("count", "confidence", "correct")


def classified(runs: Sequence[Run]) -> pd.DataFrame:
    """The rows of classify, of several runs together; ``method`` is what the page calls it."""
    mine = [run for run in runs if run.script == "classify"]
    found = together(
        mine,
        lambda _, row: (
            row["method"],
            (row["dataset"], row["n_train"], row.get("learning_rate")),
            row["seed"],
        ),
    )
    return pd.DataFrame([{**row, "method": label} for label, _, row in found])


def classes(runs: Sequence[Run]) -> list[Section]:
    """None of them where nothing was classified."""
    frame = classified(runs)
    if frame.empty:
        return []
    by = [
        "dataset",
        *(n for n in ("n_train", "learning_rate") if n in frame and frame[n].nunique() > 1),
    ]
    metrics = [name for name in _COLUMNS if name in frame]
    blocks: list[Block] = [comparison_table(frame, by, metrics)]
    here = frame
    for name in by[1:]:
        here = here[here[name] == here[name].iloc[0]]
    for name in ("accuracy", "nll", "ece"):
        title, better = METRICS[name]
        blocks.append(
            Plot(title, "", title, list(lines_of(here, "dataset", name)), better, joined=False)
        )
    lead = (
        "Every method gets the same rows, folds and network, and is judged on rows it has not seen. Means over "
        "repeats with 95 % bootstrap intervals; the best mean on each data set is marked."
    )
    sections = [Section("Comparison of classifiers", lead, blocks)]
    plot = _reliability(here)
    if plot is not None:
        lead = (
            "Best on the diagonal: of the answers given with a probability of 0.8, 80 % are right. Below it a "
            "classifier is too sure of itself. All data sets together."
        )
        sections.append(Section("Reliability of classifiers", lead, [plot]))
    return sections


def _reliability(frame: pd.DataFrame) -> Plot | None:
    """Of the answers in a bin of confidence, the share that is right: over all data sets of a repeat, then over
    repeats."""
    if not set(_BINS) <= set(frame):
        return None
    for name in _BINS:
        frame = frame[frame[name].map(lambda c: isinstance(c, list))]
    lines = []
    for method, mine in frame.groupby("method", sort=False):
        bins = len(mine["count"].iloc[0])
        mine = mine[mine["count"].map(len) == bins]
        found: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
        for _, repeat in mine.groupby("seed"):
            count, confidence, correct = (np.array(list(repeat[n])) for n in _BINS)
            for i, rows in enumerate(count.sum(0)):
                if rows > 0:
                    where = [
                        float((v[:, i] * count[:, i]).sum() / rows) for v in (confidence, correct)
                    ]
                    found[i].append((where[0], where[1]))
        points: list[tuple[float, Mean]] = [
            (float(np.mean([x for x, _ in one])), mean_of([y for _, y in one]))
            for one in found
            if one
        ]
        points = [(x, y) for x, y in points if math.isfinite(x)]
        lines.append(Line(str(method), [x for x, _ in points], [y for _, y in points]))
    if not lines:
        return None
    return Plot(
        title="Reliability",
        x_title="confidence: the largest probability",
        y_title="share of these answers that is right",
        lines=lines,
        diagonal=True,
        y_range=(0.0, 1.0),
        note="Few answers are given with low confidence: there the points scatter.",
    )

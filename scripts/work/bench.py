"""What bench does, once its options are read: check, time in turn, tell."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from bench_rows import load_row
from bench_rows.pair import Pair, Sizes
from bench_rows.peers import PeerMissingError
from options.bench import Args

from agents.planners import ICEM
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder

#: Tiny sizes, for --quick.
QUICK = Sizes(
    members=2,
    hidden=(8,),
    planner=ICEM(horizon=3, population=10, iterations=2),
    rows=300,
    batch_size=16,
    steps=5,
)


def bench(args: Args, run: RunFolder) -> Result:
    """Measure the rows that are missing."""
    # A resumed run may use other threads: a row counts for the threads it was measured with.
    key: dict[str, Any] = {"threads": torch.get_num_threads()}
    missing: list[PeerMissingError] = []
    for name in run.progress(args.only, "bench"):
        if run.rows.find(name=name, **key) is None:
            try:
                pair = load_row(name)(QUICK if args.quick else Sizes(), args.seed)
            except PeerMissingError as error:
                missing.append(error)
                continue
            try:
                run.rows.append({"name": name, **measure(pair, args.repeats), **key})
            finally:
                pair.close()
    rows = [run.rows.require(row, "ours", "peer", "ratio") for row in run.rows]
    if missing and not rows:
        raise InvalidInputError(f"--only: no row could be measured: {missing[0]}")
    run.close()  # the bar, before what is told
    for peer in missing:
        print(f"left out: {peer}", file=sys.stderr)
    if not args.quiet:
        print(_table(rows), file=sys.stderr)
    return Result({"rows": rows}, {"ratio": {row["name"]: round(row["ratio"], 3) for row in rows}})


def measure(pair: Pair, repeats: int) -> dict[str, object]:
    """Check the pair, warm both sides up, time them in turn; what a row says of them.

    ``ours`` and ``peer`` are throughputs in ``unit`` at the median time, ``ratio`` is ours / peer;
    ``ours_seconds`` and ``peer_seconds`` tell min, median and max of one call.
    """
    pair.check()
    warmup, repeats = (1, min(repeats, 5)) if pair.slow else (2, repeats)
    sides = (pair.ours, pair.peer)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(warmup + repeats):
        for side, kept in zip(sides, times, strict=True):
            start = time.perf_counter()
            side()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                kept.append(elapsed)
    if pair.peer_seconds is not None:
        times = (times[0], [pair.peer_seconds] * repeats)
    ours, peer = (pair.amount / statistics.median(kept) for kept in times)
    return {
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "unit": pair.unit,
        "peer_name": pair.peer_name,
        "repeats": repeats,
        "ours_seconds": _spread(times[0]),
        "peer_seconds": _spread(times[1]),
        **pair.facts(),
    }


def _spread(times: Sequence[float]) -> dict[str, float]:
    return {"min": min(times), "median": statistics.median(times), "max": max(times)}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a human, one line each."""
    lines = [f"{'row':<22}{'ours':>12}{'peer':>12}{'ratio':>8}  {'threads':>7}  unit; peer"]
    for row in rows:
        lines.append(
            f"{row['name']:<22}{row['ours']:>12,.0f}{row['peer']:>12,.0f}{row['ratio']:>8.2f}"
            f"  {row['threads']:>7}  {row['unit']}; {row['peer_name']}"
        )
    return "\n".join(lines)

"""Time each hot path beside what a user would pick instead; ratio = our throughput / the peer's.

Before any timing both sides are checked to compute the same. Then they alternate, after a warm-up,
and each number is taken at the median of its times: above 1 we are faster, the peer below it.
"""

from __future__ import annotations

from options.bench import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Measure the rows that are missing."""
    from work.bench import bench  # once the options are read: it brings in PyTorch

    return bench(args, run)


if __name__ == "__main__":
    launch(Args, main)

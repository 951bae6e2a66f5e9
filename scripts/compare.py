"""Train dynamics models by several methods on the same data and compare them on unseen episodes.

Each repeat is a new collection, a new split and a new initialisation; within it every method gets
the same rows, the same network and the same number of gradient steps.
"""

from __future__ import annotations

from options.compare import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    from work.compare import compare  # once the options are read: it brings in PyTorch

    return compare(args, run)


if __name__ == "__main__":
    launch(Args, main)

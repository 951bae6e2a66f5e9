"""Train classifiers by several methods on the same rows of a table and compare them on the others.

Each repeat is a new split and a new initialisation; within it every method gets the same rows, the
same folds, the same network and the same number of gradient steps.
"""

from __future__ import annotations

from options.classify import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    from work.classify import classify  # once the options are read: it brings in PyTorch

    return classify(args, run)


if __name__ == "__main__":
    launch(Args, main)

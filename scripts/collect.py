"""Behaviour data for comparing models: a half-trained SAC policy mixed with random actions.

The share of steps on which the policy acts is drawn anew for each episode; the rest are random, so
that the data covers what the policy reaches and what it does not do. Saved as a Minari data set.
"""

from __future__ import annotations

from options.collect import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Train, act, save."""
    from work.collect import collect_data  # once the options are read: it brings in PyTorch

    return collect_data(args, run)


if __name__ == "__main__":
    launch(Args, main)

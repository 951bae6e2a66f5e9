"""Plan with the true simulator, or with the model of a saved agent, and compare the planners.

Each planner scores the same number of candidate plans at every step. Beside them are doing nothing and
acting at random. An episode is a planner and a seed: they start alike, and draw alike whatever --jobs.
"""

from __future__ import annotations

from options.plan import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """An episode a cell; then the table and the figure."""
    from work.plan import plan_episodes  # once the options are read: it brings in PyTorch

    return plan_episodes(args, run)


if __name__ == "__main__":
    launch(Args, main)

"""The main job in a few minutes: an agent that plans with its policy, and what its model is worth.

Trains the planning agent with a model by reward and with one by likelihood, and its learner alone, beside
three reference policies: doing nothing, acting at random, and planning with the true simulator. Compares
the models by themselves as well.
"""

from __future__ import annotations

from options.demo import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Start the parts as processes of their own, watch their rows, then draw."""
    from work.demo import demonstrate  # once the options are read: it brings in PyTorch

    return demonstrate(args, run)


if __name__ == "__main__":
    launch(Args, main)

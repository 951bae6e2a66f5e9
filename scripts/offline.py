"""Learn a policy from a Minari data set alone, and see what it earns in the real environment.

mopo: MBPO on the data's steps and on branches imagined from them, less a penalty where the model is not
to be trusted (Yu et al. 2020); mbpo: the same without the penalty; clone: behaviour cloning. What MBPO
learned is saved under checkpoints/, for MBPO.load.
"""

from __future__ import annotations

from options.offline import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """A policy and a seed a cell, beside what the data itself earned."""
    from work.offline import learn_offline  # once the options are read: it brings in PyTorch

    return learn_offline(args, run)


if __name__ == "__main__":
    launch(Args, main)

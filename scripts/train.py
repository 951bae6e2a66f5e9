"""Train an agent on a Gymnasium environment and report its return against real steps.

Every --eval-every steps the agent is evaluated on episodes of its own and saved; --resume goes on
from there after any stop, and ends with the same metrics.
"""

from __future__ import annotations

from options.train import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """One agent, or several seeds of it, each in a run folder of its own inside this one."""
    from work.train import train  # once the options are read: it brings in PyTorch

    return train(args, run)


if __name__ == "__main__":
    launch(Args, main)

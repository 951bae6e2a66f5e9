"""What a fit and a plan cost in time and memory as one size grows at a time, and what a study costs on many machines.

Each row is measured in a process of its own, with one thread; what a size is while another grows stands in the options.
"""

from __future__ import annotations

from options.scaling import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Measure the rows that are missing."""
    from work.scaling import scale  # once the options are read: it brings in PyTorch

    return scale(args, run)


if __name__ == "__main__":
    launch(Args, main)

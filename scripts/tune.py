"""Tune every method with the same budget of trials, on data sets that no result is reported on.

Half of a method's trials are a Halton sequence, the same settings for each method; the others are
proposed by Optuna's TPE (Bergstra 2011) in rounds of fixed size, so that nothing depends on --jobs.
"""

from __future__ import annotations

from options.tune import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Propose, try, tell, in rounds; then the best settings of each method."""
    from work.tune import tune  # once the options are read: it brings in PyTorch

    return tune(args, run)


if __name__ == "__main__":
    launch(Args, main)

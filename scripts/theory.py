"""The setting where everything is known: recovers U*, checks hypergradients, matches moments.

Linear-Gaussian data with U* = ½Σ⁻¹ for the first and the last, a catalogue of small problems with
brute-force truth for the second. Source: arXiv 2510.07624.
"""

from __future__ import annotations

from options.theory import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then tabulate and draw."""
    from work.theory import check_theory  # once the options are read: it brings in PyTorch

    return check_theory(args, run)


if __name__ == "__main__":
    launch(Args, main)

"""Learn the tasks of a sequence one after another by several methods, and tell what each forgets.

A method is written METHOD+KEEP: how the model is trained, and what is kept of earlier tasks. Each
repeat is a new collection, a new split and a new initialisation, the same for every method.
"""

from __future__ import annotations

from options.continual import Args

from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    from work.continual import learn_sequences  # once the options are read: it brings in PyTorch

    return learn_sequences(args, run)


if __name__ == "__main__":
    launch(Args, main)

"""Where an agent logs: Stable-Baselines3's logger, in a folder for each run."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import configure_logger, get_latest_run_id

from mbrl_bilevel.base.errors import InvalidInputError


def silent_logger() -> Logger:
    """Takes everything and writes nothing."""
    return Logger(folder=None, output_formats=[])


def open_logger(
    folder: str | Path | None, name: str, verbose: int, *, new_run: bool = True
) -> Logger:
    """As in SB3: to TensorBoard in ``folder``/``name``_1, _2, …, if there is a folder; to the terminal if
    ``verbose``.

    ``new_run`` False goes on in the latest of these runs, if there is one. Raises InvalidInputError where
    TensorBoard is not installed.
    """
    if folder is None and not verbose:
        return silent_logger()
    if folder is None:
        return configure_logger(verbose)
    new = new_run or get_latest_run_id(str(folder), name) == 0
    try:
        return configure_logger(verbose, str(folder), name, reset_num_timesteps=new)
    except ImportError as error:
        raise InvalidInputError(
            "tensorboard_log: TensorBoard is not installed: pip install tensorboard, or leave it out"
        ) from error

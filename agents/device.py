"""The device that plans are imagined on."""

from __future__ import annotations

import torch
from stable_baselines3.common.utils import get_device

from mbrl_bilevel.errors import InvalidInputError


def planning_device(device: torch.device | str) -> torch.device:
    """As in SB3, "auto" is CUDA where there is one; CUDA that is asked for has to be there.

    Raises InvalidInputError for another device than the CPU or a CUDA that is there.
    """
    try:
        wanted = torch.device("cpu" if device == "auto" else device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f'device must be "auto", "cpu" or "cuda"; got {device!r}'
        ) from error
    if wanted.type not in ("cpu", "cuda"):
        raise InvalidInputError(f'device must be "auto", "cpu" or "cuda"; got {device!r}')
    if wanted.type == "cuda":
        # SB3 would go on without a word.
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not 0 <= (wanted.index or 0) < count:
            raise InvalidInputError(
                f'device {str(device)!r} is not there: {count} CUDA devices were found; use "auto" or "cpu"'
            )
    return get_device(device) if device == "auto" else wanted

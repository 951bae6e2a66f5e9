"""The best settings of each method as tune left them, to train with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

#: Method -> options of its Schedule.
Settings = Mapping[str, Mapping[str, Any]]


@lru_cache(maxsize=2)
def read_settings(path: Path) -> Settings:
    """``best`` of tune's metrics.json. Raises InvalidInputError for anything else."""
    try:
        found = json.loads(path.read_text())
        best = found["best"]
        settings = {str(name): dict(mine["settings"]) for name, mine in best.items()}
    except OSError as error:
        raise InvalidInputError(
            f"--settings: {path}: {error.strerror}; give tune's file"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInputError(
            f'--settings: {path} is not metrics.json of tune: it needs "best" with "settings" for each '
            "method"
        ) from error
    known = {field.name for field in fields(Schedule)}
    for name, mine in settings.items():
        get_method(name)
        if unknown := sorted(mine.keys() - known):
            raise InvalidInputError(
                f"--settings: {path}: {name} has an unknown setting {unknown[0]}"
            )
        try:
            Schedule(**mine)
        except (TypeError, InvalidInputError) as error:
            raise InvalidInputError(f"--settings: {path}: {name}: {error}") from error
    return settings

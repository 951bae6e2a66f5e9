"""A module of the user's own, which registers environments or holds rules."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType

from mbrl_bilevel.base.errors import InvalidInputError


def import_user_module(name: str, what: str) -> ModuleType:
    """The module ``name``, looked for in the working directory as well.

    Raises ``InvalidInputError``, beginning with ``what``: no such module, or it fails on import.
    """
    here = os.getcwd()
    if here not in sys.path:
        # At the end: a file of the user's must not shadow an installed package.
        sys.path.append(here)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise InvalidInputError(
            f"{what} cannot import module {name!r} ({type(error).__name__}: {error}); "
            "give its dotted name without '.py', and run where its file is, or install it"
        ) from error

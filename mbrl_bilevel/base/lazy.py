"""A package whose names load on first use, so that importing it costs nothing.

The ``__getattr__`` of a module is PEP 562's; the names stand once more under TYPE_CHECKING, for type checkers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def exports(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The ``__getattr__``, ``__dir__`` and ``__all__`` of ``package``.

    ``names``: dotted name of a module -> what ``package`` exports of it. The module is imported when one of
    its names is first asked for.
    """
    home = {name: module for module, found in names.items() for name in found}
    exported = sorted(home)

    def load(name: str) -> Any:
        if name not in home:
            message = f"module {package!r} has no attribute {name!r}"
            # With these, Python itself proposes the nearest name.
            raise AttributeError(message, name=name, obj=sys.modules[package])
        return getattr(import_module(home[name]), name)

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exported})

    return load, listed, exported

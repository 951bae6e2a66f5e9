"""A colour, a dash and a marker for each method, the same on the whole page and apart for the colour-blind.

They are at least 0.09 apart in OKLab for normal, protan, deutan and tritan eyes (Machado et
al. 2009, severity 1), and have a contrast of 3 : 1 on the page's background; a test computes both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: (on light, on dark): blue, vermilion, green, violet, ochre, sky; grey for what has no model.
PALETTE = (
    *(("#1860cc", "#6ca8fc"), ("#cc420c", "#fc6c3c"), ("#004a14", "#a8fcd8")),
    *(("#6c0088", "#b84cfc"), ("#b88c50", "#fce454"), ("#0c98de", "#4090b4")),
    ("#777777", "#bcbcbc"),
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross")

#: Methods that come most often keep their place from page to page; the others take what is free.
_OWN = {
    **{"bilevel": 0, "nll": 1, "mse": 2, "beta-nll": 3, "faithful": 4, "bilevel-mixture": 5},
    "sac": 6,
}


@dataclass(frozen=True)
class Look:
    """A place in PALETTE, one of DASHES and one of MARKERS."""

    colour: int
    dash: str
    marker: str


class Looks:
    """The look of every method of a page, by its name."""

    def __init__(self, names: Iterable[str]) -> None:
        """``names`` in the order of their importance."""
        self._looks: dict[str, Look] = {}
        keys = list(dict.fromkeys(map(method_of, names := list(dict.fromkeys(names)))))
        own = {_OWN[key] for key in keys if key in _OWN}
        free = [i for i in range(len(PALETTE) - 1) if i not in own] or list(range(len(PALETTE) - 1))
        others = [key for key in keys if key not in _OWN]
        place = {key: i for i, key in enumerate(others)}
        used: dict[int, int] = {}
        for name in names:
            key = method_of(name)
            colour = _OWN[key] if key in _OWN else free[place[key] % len(free)]
            style = used.get(colour, 0)
            used[colour] = style + 1
            self._looks[name] = Look(
                colour, DASHES[style % len(DASHES)], MARKERS[style % len(MARKERS)]
            )

    def __getitem__(self, name: str) -> Look:
        return self._looks[name]

    def __contains__(self, name: str) -> bool:
        return name in self._looks


def method_of(name: str) -> str:
    """What the colour stands for: "mpc, nll · run-2" and "nll" are both nll."""
    return name.partition(SEPARATOR)[0].rpartition(", ")[2]


#: Between a method and the run that it is of, where runs differ in more than their seeds.
SEPARATOR = " · "

"""A colour, a dash and a marker for each method, the same on the whole page and apart for the colour-blind.

They are at least 0.09 apart in OKLab for normal, protan, deutan and tritan eyes (Machado et
al. 2009, severity 1), and have a contrast of 3 : 1 on the page's background; a test computes both.
"""

from __future__ import annotations

from collections.abc import Sequence
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
OWN = {
    **{"bilevel": 0, "nll": 1, "mse": 2, "beta-nll": 3, "faithful": 4, "bilevel-mixture": 5},
    **{"label-smoothing": 2, "sac": 6},
}


@dataclass(frozen=True)
class Look:
    """A place in PALETTE, one of DASHES and one of MARKERS."""

    colour: int
    dash: str
    marker: str


class Looks:
    """The look of every method of a page, by its name."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        """``groups``: the names that are drawn in one plot; the first ones are the most important."""
        names = list(dict.fromkeys(name for group in groups for name in group))
        beside = _beside(groups)
        colours: dict[str, int] = {}
        for key in sorted(
            beside, key=lambda key: key not in OWN
        ):  # stable: else as they first come
            taken = {colours[other] for other in beside[key] if other in colours}
            used = list(colours.values())
            # A colour that none beside it has; of these one that is free on the whole page.
            colours[key] = OWN.get(
                key, min(range(len(PALETTE) - 1), key=lambda c: (c in taken, used.count(c)))
            )
        self._looks: dict[str, Look] = {}
        of_colour = [0] * len(PALETTE)
        for name in names:
            colour = colours[method_of(name)]
            style = of_colour[colour]
            of_colour[colour] += 1
            self._looks[name] = Look(
                colour, DASHES[style % len(DASHES)], MARKERS[(style + style // 6) % len(MARKERS)]
            )

    def __getitem__(self, name: str) -> Look:
        return self._looks[name]

    def __contains__(self, name: str) -> bool:
        return name in self._looks


def _beside(groups: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    """Method -> those that it must be told apart from."""
    found: dict[str, set[str]] = {}
    for group in groups:
        keys = set(map(method_of, group))
        for name in group:
            found.setdefault(method_of(name), set()).update(keys - {method_of(name)})
    return found


def method_of(name: str) -> str:
    """What the colour stands for: "mpc, nll · run-2" and "nll" are both nll."""
    return name.partition(SEPARATOR)[0].rpartition(", ")[2]


#: Between a method and the run that it is of, where runs differ in more than their seeds.
SEPARATOR = " · "

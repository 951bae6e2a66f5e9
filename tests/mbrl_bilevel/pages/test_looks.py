"""Colours: one a method, far apart for every kind of eye, with enough contrast on either ground."""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from mbrl_bilevel.pages.looks import PALETTE, Looks

#: Machado, Oliveira & Fernandes 2009, table 1, severity 1.0, on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protan": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deutan": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritan": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def linear(colour: str) -> Any:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def oklab(rgb: Any) -> Any:
    """Ottosson 2020."""
    lms = np.cbrt(
        np.array(
            [
                [0.4122214708, 0.5363325363, 0.0514459929],
                [0.2119034982, 0.6806995451, 0.1073969566],
                [0.0883024619, 0.2817188376, 0.6299787005],
            ]
        )
        @ np.clip(rgb, 0.0, 1.0)
    )
    return (
        np.array(
            [
                [0.2104542553, 0.7936177850, -0.0040720468],
                [1.9779984951, -2.4285922050, 0.4505937099],
                [0.0259040371, 0.7827717662, -0.8086757660],
            ]
        )
        @ lms
    )


def contrast(one: str, other: str) -> float:
    """WCAG 2.2."""
    light = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear(c)) for c in (one, other))
    return (light[1] + 0.05) / (light[0] + 0.05)


def grounds() -> tuple[str, str]:
    """What plots are drawn on, light and dark, as the style sheet has it."""
    styles = (resources.files("mbrl_bilevel.pages") / "page.css").read_text()
    found = re.search(r"--card: light-dark\((#\w{6}), (#\w{6})\)", styles)
    assert found is not None
    return found[1], found[2]


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("eye", EYES)
def test_all_pairs_are_far_apart(theme: int, eye: str) -> None:
    seen = [oklab(EYES[eye] @ linear(colours[theme])) for colours in PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 0.09


@pytest.mark.parametrize("theme", [0, 1])
def test_lines_stand_out_from_their_ground(theme: int) -> None:
    assert min(contrast(colours[theme], grounds()[theme]) for colours in PALETTE) >= 3.0


def test_a_method_has_one_colour_and_every_line_a_look_of_its_own() -> None:
    names = ["planning, nll", "mbpo, nll", "nll", "bilevel · run-2", "sac", "nll+kl", "my own"]
    looks = Looks([names])
    assert len({looks[name] for name in names}) == len(names)
    assert looks["planning, nll"].colour == looks["mbpo, nll"].colour == looks["nll"].colour == 1
    assert looks["bilevel · run-2"].colour == Looks([["bilevel"]])["bilevel"].colour == 0
    others = {looks[name].colour for name in ("nll+kl", "my own")}
    assert len(others) == 2
    assert others.isdisjoint({0, 1, 6})


def test_methods_of_one_plot_differ_in_colour_though_the_page_has_many() -> None:
    well_known = ["bilevel", "nll", "mse", "beta-nll", "faithful", "bilevel-mixture"]
    plot = ["bilevel+kl", "bilevel", "nll+kl", "nll", "nll+ewc", "nll+replay"]
    looks = Looks([well_known, plot])
    assert len({looks[name].colour for name in plot}) == 6
    assert len({looks[name].colour for name in well_known}) == 6


def test_more_methods_than_colours_differ_in_dash_and_marker() -> None:
    names = [f"method {i}" for i in range(60)]
    looks = Looks([names])
    assert len({looks[name] for name in names}) == 60

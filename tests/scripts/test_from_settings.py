"""The options of train are the fields of the settings' dataclasses."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.planners import PLANNERS
from agents.planning_agent.settings import PlanningSettings, ValueSettings
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import parse
from mbrl_bilevel.training.settings import Schedule

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))  # where a script finds its neighbours

from options.from_settings import as_options, settings, with_settings  # noqa: E402
from options.train import Args, Start  # noqa: E402


def values_in_the_settings() -> Iterator[tuple[str, ...]]:
    """The place of every value that an agent's settings hold, with any planner and a fitted value."""
    for each in fields(PlanningSettings):
        value: Any = getattr(PlanningSettings, each.name)
        kinds = {"planner": list(PLANNERS.values()), "value": [ValueSettings]}.get(each.name)
        for kind in kinds or ([type(value)] if is_dataclass(value) else []):
            yield from ((each.name, inner.name) for inner in fields(kind))
        if kinds is not None or not is_dataclass(value):
            yield (each.name,)


def test_every_value_of_the_settings_is_an_option() -> None:
    reached = Counter(p for each in fields(Args) for p in each.metadata.get("places", ()))
    assert {place for place in reached if place[0] != "learner"} == set(values_in_the_settings())
    assert set(reached.values()) == {1}


@dataclass(frozen=True)
class LongerSchedule(Schedule):
    """With a field of its own."""

    warm_up: int = 5
    """Steps
    before all others."""


@dataclass(frozen=True)
class MoreSettings(PlanningSettings):
    """With fields of its own."""

    schedule: LongerSchedule = LongerSchedule()
    courage: float = 0.5
    """How brave it is."""
    hasty: bool = False
    """Let it hurry."""


def test_a_new_field_is_an_option_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    kind = with_settings(Start, MoreSettings)
    none: Any = parse(kind, [], None)
    assert (none.courage, none.hasty, none.schedule_warm_up, none.horizon) == (
        None,
        False,
        None,
        None,
    )
    argv = ["--courage", "0.5", "--hasty", "--schedule-warm-up", "7", "--rollout-length", "1", "3"]
    given: Any = parse(kind, argv, None)
    assert (given.courage, given.hasty, given.schedule_warm_up) == (0.5, True, 7)
    assert given.rollout_length == (1, 3)
    with pytest.raises(InvalidInputError, match="--courage: 'much' is not a number"):
        parse(kind, ["--courage", "much"], None)
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], None)
    said = capsys.readouterr().out
    for text in ("How brave it is.", "Let it hurry.", "Steps before all others."):
        assert text in said


def test_each_help_is_written_once() -> None:
    """Below the field, and neither among the options nor below another field."""
    found = list(settings())
    assert all(each.help for each in found)
    assert max(Counter(each.help for each in found).values()) == 1
    options = (
        (ROOT / "scripts" / "options").glob("*train.py"),
        (ROOT / "scripts" / "work").glob("*.py"),
    )
    written = " ".join(" ".join(path.read_text().split()) for paths in options for path in paths)
    assert [each.place for each in found if len(each.help) > 20 and each.help in written] == []


@pytest.mark.parametrize(
    ("text", "part", "told"),
    [
        ("schedule: steps must be 1; got 0", (), "--train-steps must be 1; got 0"),
        ("steps must be 1; got 0", ("value",), "--value-steps must be 1; got 0"),
        ("WarmStart: part must be 1", ("warm_start",), "--warm-part must be 1"),
        ("rollout: last must be 1", (), "--rollout-length must be 1"),
        ("elites must divide the 5 particles", (), "--elites must divide the 5 particles"),
        ("population times particles must be 1", (), "--population times --particles must be 1"),
        ("planner MPPI has no 'decay'; it", (), "--planner-decay: planner MPPI has no 'decay'; it"),
        ("unknown method 'x'", (), "unknown method 'x'"),
    ],
)
def test_a_mistake_names_the_option(text: str, part: tuple[str, ...], told: str) -> None:
    assert as_options(text, part) == told

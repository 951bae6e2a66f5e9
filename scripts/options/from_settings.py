"""Options that are the fields of the settings' dataclasses: a new field there is an option of train by itself.

The help is the string below the field. The default is None: what the preset says, or the agent.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from itertools import pairwise
from types import GenericAlias
from typing import Annotated, Any, Literal, get_type_hints

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from agents.planners import PLANNERS
from agents.planning_agent.settings import PlanningSettings, ValueSettings, require_in_range
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import option_name

Place = tuple[str, ...]
Part = Literal["model", "plan", "imagined", "learner"]

#: The fields that an agent without that part would ignore; of a field that is a dataclass, all in it.
OF_PART: Mapping[Part, tuple[str, ...]] = {
    "model": (
        *("method", "members", "hidden", "schedule", "refit_every"),
        *("fresh_every", "warm_start", "direct", "look_ahead", "look_ahead_lambda"),
    ),
    "plan": (
        *("planner", "imagination", "replan_every", "proposals", "value"),
        *("exploration", "plan_share", "elites"),
    ),
    "imagined": (
        *("imagine_every", "rollouts_per_step", "rollout", "rollout_cut"),
        *("branching", "imagined_rows", "least_real_share"),
    ),
    "learner": (
        *("updates_per_step", "real_rows", "n_steps", "proposals", "plan_share"),
        *("look_ahead", "look_ahead_lambda"),
    ),
}

#: Fields that are one of several things, by the words that choose it; each may have fields of its own.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "planner": (*PLANNERS, "none"),
    "value": ("critic", "fitted", "none"),
}
KINDS: Mapping[str, tuple[type[Any], ...]] = {
    "planner": tuple(PLANNERS.values()),
    "value": (ValueSettings,),
}

#: Names that are not those of the place, as schedule.patience is --schedule-patience. An option of several
#: places takes a value for each of them.
NAMES: Mapping[Place, str] = {
    ("schedule", "steps"): "train_steps",
    ("schedule", "learning_rate"): "learning_rate",
    ("warm_start", "part"): "warm_part",
    ("branching", "penalty"): "penalty",
    ("rollout", "first"): "rollout_length",
    ("rollout", "last"): "rollout_length",
    ("rollout", "begin"): "rollout_growth",
    ("rollout", "end"): "rollout_growth",
    **{("warm_start", name): name for name in ("shrink", "perturb")},
    **{("planner", n): n for n in ("horizon", "population", "iterations")},
    **{("planner", n): n for n in ("noise_beta", "add_middle")},
    **{
        ("imagination", n): n
        for n in ("particles", "propagation", "pessimism", "screen", "precision")
    },
}


@dataclass(frozen=True)
class Setting:
    """One value among the settings: its ``place``, ("schedule", "steps") say, the ``kind`` that it is a field
    of, the type that is typed for it, its help, and whether it is off unless it is switched on."""

    place: Place
    kind: type[Any]
    type: Any
    help: str
    switch: bool

    @property
    def option(self) -> str:
        """The field of the options that it is."""
        return NAMES.get(self.place, "_".join(self.place))


def settings(kind: type[Any] = PlanningSettings) -> Iterator[Setting]:
    """Every value within ``kind``, by the dataclasses in it."""
    for own in _fields(kind):
        (name,) = own.place
        if name in CHOICES:
            yield Setting(own.place, kind, Literal[CHOICES[name]], own.help, False)
        inside: tuple[Any, ...] = KINDS.get(name, (own.type,) if is_dataclass(own.type) else ())
        if not inside:
            yield own
        found: dict[str, Setting] = {}
        for each in (each for part in inside for each in _fields(part)):
            found.setdefault(each.place[0], each)
        for each in found.values():
            yield Setting((name, *each.place), each.kind, each.type, each.help, each.switch)


def with_settings(base: type[Any], kind: type[Any] = PlanningSettings) -> type[Any]:
    """The options of ``base`` and, behind them, one for every value in ``kind``."""
    options: dict[str, list[Setting]] = {}
    for each in settings(kind):
        options.setdefault(each.option, []).append(each)
    made = [(name, *_typed(values)) for name, values in options.items()]
    return make_dataclass("WithSettings", made, bases=(base,), frozen=True, kw_only=True)


def given_settings(args: Any) -> Iterator[tuple[Place, Any]]:
    """The place and the value of each option of ``args`` that was given."""
    for each in fields(args):
        places, value = each.metadata.get("places", ()), getattr(args, each.name)
        if places and value is not None and value is not each.default:
            yield from zip(places, value if len(places) > 1 else (value,), strict=True)


def require_settings_in_range(args: Any) -> None:
    """Raises InvalidInputError for the first option given that its dataclass refuses, whatever the preset."""
    kinds = {each.place: each.kind for each in settings() if each.place[-1] not in CHOICES}
    values: dict[tuple[type[Any], Place], dict[str, Any]] = {}
    for place, value in given_settings(args):
        if place in kinds:
            values.setdefault((kinds[place], place[:-1]), {})[place[-1]] = value
    for (kind, part), own in values.items():
        try:
            require_in_range(own) if kind is PlanningSettings else kind(**own)
        except InvalidInputError as error:
            raise InvalidInputError(as_options(str(error), part)) from error


def as_options(text: str, part: Place = ()) -> str:
    """What a dataclass refuses by the names of its fields, by those of the options.

    ``part``: where the dataclass is among the settings. Without it, that is what the text begins with:
    "schedule: steps must be …" is "--train-steps must be …".
    """
    if prefix := re.match(r"(\w+): ", text):
        part, text = part or (prefix[1],), text[prefix.end() :]
    if missing := re.match(r"planner \w+ has no '(\w+)'", text):
        return f"{_option(('planner',), missing[1])}: {text}"
    if head := re.match(r".*?(?= (?:must|needs) )", text):
        return re.sub(r"\w+", lambda word: _option(part, word[0]), head[0]) + text[head.end() :]
    return text


def _option(part: Place, name: str) -> str:
    """The option of the field ``name`` of that part of the settings, of the settings themselves, or of the
    one part that has it; the word itself where there is none."""
    known = {each.place: each.option for each in settings()}
    inside = [place for place in known if place[-1] == name]
    for place in ((*part, name), (name,), *(inside if len(inside) == 1 else ())):
        if place in known:
            return option_name(known[place])
    return name


def _fields(kind: Any) -> Iterator[Setting]:
    hints, texts = get_type_hints(kind), _help(kind)
    for each in fields(kind):
        hint = hints[each.name]
        off = hint is bool and each.default is False
        yield Setting((each.name,), kind, hint, texts.get(each.name, ""), off)


@cache
def _help(kind: Any) -> dict[str, str]:
    """The strings below the fields of a dataclass, those of its bases too."""
    found: dict[str, str] = {}
    for each in (base for base in reversed(kind.__mro__) if "__dataclass_fields__" in vars(base)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for pair in pairwise(tree.body):
            match pair:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    return found


def _typed(values: list[Setting]) -> tuple[Any, Any]:
    """Annotation and field of the option that these settings are."""
    first = values[0]
    kind = first.type
    if len(values) > 1:
        kind = GenericAlias(tuple, tuple(each.type for each in values))
    marks: list[Any] = [tyro.conf.arg(help=" ".join(each.help for each in values))]
    if kind == float | Literal["auto"]:
        marks.append(_SHARE)
    parts = tuple(part for part, names in OF_PART.items() if first.place[0] in names)
    metadata = {"parts": parts, "places": tuple(each.place for each in values)}
    default = False if first.switch else None
    annotated: Any = Annotated
    hint = annotated[(kind if first.switch else kind | None, *marks)]
    return hint, field(default=default, metadata=metadata)


def _share(words: list[str]) -> float | Literal["auto"] | None:
    """What is given as --real-share."""
    (word,) = words
    if word in ("auto", "None"):
        return "auto" if word == "auto" else None
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number; give one from 0 to 1, or auto") from None


_SHARE = PrimitiveConstructorSpec[float | Literal["auto"] | None](
    nargs=1,
    metavar="{None}|FLOAT|{auto}",
    instance_from_str=_share,
    is_instance=lambda value: value is None or value == "auto" or isinstance(value, float),
    str_from_instance=lambda value: [str(value)],
)

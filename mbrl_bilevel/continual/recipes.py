"""The named methods of continual learning: a way to train (``METHODS``) and what is kept (``KEEPS``).

Written ``bilevel+kl``; a number behind a colon is the strength, ``nll+ewc:1000``. All ways of keeping
go with all ways of training, so that what either adds is read with the other held fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.continual.keeping import (
    Draws,
    Elastic,
    Keep,
    Near,
    Nothing,
    Recalled,
    Replay,
    Slow,
)
from mbrl_bilevel.continual.least_squares import LOSSE, Followed
from mbrl_bilevel.continual.memory import Memory
from mbrl_bilevel.continual.packing import Packed
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.methods import get_method

#: More rows than a sequence has.
_ALL = 10**12


@dataclass(frozen=True)
class Keeping:
    """One way of keeping: ``build(strength, memory)``, the ``strength`` if none is named (None: it has
    none), and whether each task starts ``anew``."""

    build: Callable[[float, int], Keep]
    summary: str
    strength: float | None = None
    anew: bool = False


KEEPS: dict[str, Keeping] = {
    "none": Keeping(lambda s, m: Nothing(), "fine-tuning: only the parameters go on"),
    "kl": Keeping(lambda s, m: Near(s), "KL to the previous policy on the new task's inputs", 1.0),
    "kl-inferred": Keeping(
        lambda s, m: Near(s, inferred=True),
        "the same, its strength inferred by the outer loop on new rows and on draws of the previous policy",
        1.0,
    ),
    "kl-memory": Keeping(
        lambda s, m: Near(s, inferred=True, memory=Memory(m)),
        "the same, inferred on new rows and on a memory, which the inner loop does not see",
        1.0,
    ),
    "kl-seen": Keeping(
        lambda s, m: Recalled(s),
        "KL to the previous policy at inputs from a Gaussian for each earlier task, which the inferred "
        "spread sees as well",
        1.0,
    ),
    "kl-stored": Keeping(
        lambda s, m: Recalled(s, Memory(m)), "the same at the inputs of a memory", 1.0
    ),
    "lwf": Keeping(
        lambda s, m: Draws("new"), "learning without forgetting: forward KL on the new inputs"
    ),
    "generative": Keeping(
        lambda s, m: Draws("seen"),
        "generative replay: the previous policy's targets at inputs from a Gaussian for each task",
    ),
    "replay": Keeping(lambda s, m: Replay(Memory(m)), "experience replay from a reservoir"),
    "der": Keeping(
        lambda s, m: Replay(Memory(m), dark=True),
        "the same, half of the targets drawn from the policy that had just learned them (DER++)",
    ),
    "ewc": Keeping(lambda s, m: Elastic(s), "elastic weights, a penalty for each task", 100.0),
    "online-ewc": Keeping(
        lambda s, m: Elastic(s, decay=0.95), "elastic weights, one penalty for all", 100.0
    ),
    "packnet": Keeping(
        lambda s, m: Packed(s),
        "PackNet: each task keeps a share of the free weights, frozen; it is told the task at test",
        0.5,
    ),
    "slow": Keeping(
        lambda s, m: Slow(s),
        "fine-tuning at a fraction of the learning rate from the second task on",
        0.1,
    ),
    "ftl": Keeping(
        lambda s, m: Followed(), "the sums of all rows so far, for losse: follow the leader"
    ),
    "joint": Keeping(
        lambda s, m: Replay(Memory(_ALL)), "all data so far, from fresh parameters", anew=True
    ),
    "alone": Keeping(
        lambda s, m: Nothing(), "each task by itself, from fresh parameters", anew=True
    ),
}


@dataclass(frozen=True)
class Recipe:
    """How to train, what to keep, and whether each task starts ``anew``."""

    method: Method
    keep: Keep
    anew: bool = False

    @property
    def told_the_task(self) -> bool:
        """Whether it is told at test which task it is in, which the others are not."""
        return isinstance(self.keep, Packed)


#: Methods that only a sequence of tasks has a use for.
SHALLOW = {"losse": LOSSE}


def get_target_method(name: str) -> Method:
    """The method of that name for real targets. Raises InvalidInputError with the nearest name."""
    return SHALLOW.get(name) or get_method(name)


def get_recipe(
    name: str, memory: int = 500, way: Callable[[str], Method] = get_target_method
) -> Recipe:
    """The method called ``name``, "bilevel+kl" say; "bilevel" alone is "bilevel+none".

    ``memory`` rows are stored by those that store any. ``way`` finds what stands before the plus:
    ``get_class_method`` for classes. Raises InvalidInputError with the nearest name, for a strength that
    is no number or not positive, or a method that looks several steps ahead; UnsupportedCombinationError
    for two that do not go together.
    """
    trained, _, kept = name.partition("+")
    kind, colon, number = (kept or "none").partition(":")
    method = way(trained)
    keeping = look_up(KEEPS, kind, "unknown way of keeping")
    if method.horizon > 1:
        raise InvalidInputError(f"{trained}: sequences of tasks are learned by methods of one step")
    if method.relevance is not None:
        raise InvalidInputError(
            f"{trained}: it lets go what a task does not pay for, and the next task may; use bilevel"
        )
    if colon and keeping.strength is None:
        raise InvalidInputError(f"{name}: {kind} has no strength; leave out :{number}")
    try:
        strength = float(number) if colon else (keeping.strength or 0.0)
    except ValueError:
        raise InvalidInputError(f"{name}: the strength must be a number; got {number!r}") from None
    if colon and not 0.0 < strength < float("inf"):
        raise InvalidInputError(f"{name}: the strength must be positive; got {number}")
    keep = keeping.build(strength, memory)
    keep.require_for(method)
    return Recipe(method, keep, keeping.anew)

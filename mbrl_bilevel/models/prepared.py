"""Fits that wait for their gradient steps alone, made one by one or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.policies.joined import require_one_form
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy
from mbrl_bilevel.training.fit import Log
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.settings import Schedule

M = TypeVar("M")


@dataclass(frozen=True)
class Prepared(Generic[M]):
    """``policy`` is to be fitted to ``data`` as ``schedule`` says, by draws of ``generator``; all on one device.
    ``finish`` makes a model of the result, and tells the result in that model's terms."""

    policy: GaussianPolicy | MixturePolicy
    data: FitData
    schedule: Schedule | None
    generator: torch.Generator
    finish: Callable[[FitResult], tuple[M, FitResult]]

    def fit(self, method: Method, progress: bool, log: Log | None) -> tuple[M, FitResult]:
        """By ``method``; raises as ``Method.fit``."""
        result = method.fit(
            self.policy,
            self.data,
            generator=self.generator,
            schedule=self.schedule,
            progress=progress,
            log=log,
        )
        return self.finish(result)


def fit_each(
    method: Method,
    prepare: Iterable[Callable[[], Prepared[M]]],
    progress: bool,
    or_apart: bool = False,
) -> list[tuple[M, FitResult] | BilevelError]:
    """Prepare each and fit them side by side, those of one schedule; what became of each, or the error that it failed by.

    Raises as ``Method.fit_side_by_side``; with ``or_apart`` policies of different forms are fitted one after another.
    """
    ready = [attempted(one) for one in prepare]
    found: dict[int, FitResult | BilevelError] = {}
    going = {k: one for k, one in enumerate(ready) if isinstance(one, Prepared)}
    # One that goes on from an earlier fit has fewer steps.
    for schedule in dict.fromkeys(one.schedule for one in going.values()):
        alike = {k: one for k, one in going.items() if one.schedule == schedule}
        forms = [alike]
        if or_apart and not _of_one_form([one.policy for one in alike.values()]):
            forms = [{k: one} for k, one in alike.items()]
        for group in forms:
            results = method.fit_side_by_side(
                [one.policy for one in group.values()],
                [one.data for one in group.values()],
                generators=[one.generator for one in group.values()],
                schedule=schedule,
                progress=progress,
            )
            found |= zip(group, results, strict=True)

    def ended(k: int, one: Prepared[M] | BilevelError) -> tuple[M, FitResult] | BilevelError:
        if isinstance(one, BilevelError):
            return one
        result = found[k]
        return result if isinstance(result, BilevelError) else one.finish(result)

    return [ended(k, one) for k, one in enumerate(ready)]


def _of_one_form(policies: Sequence[GaussianPolicy | MixturePolicy]) -> bool:
    try:
        require_one_form(policies)
    except InvalidInputError:
        return False
    return True


def attempted(work: Callable[[], M]) -> M | BilevelError:
    """What it gives, or the error that it failed by."""
    try:
        return work()
    except BilevelError as error:
        return error

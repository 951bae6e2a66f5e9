"""Fits that wait for their gradient steps alone, made one by one or side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from mbrl_bilevel.base.errors import BilevelError
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.splits import FitData
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
    schedule: Schedule | None,
    progress: bool,
) -> list[tuple[M, FitResult] | BilevelError]:
    """Prepare each and fit them side by side; what became of each, or the error that it failed by.

    Raises as ``Method.fit_side_by_side``.
    """
    ready = [_attempted(one) for one in prepare]
    going = [one for one in ready if isinstance(one, Prepared)]
    found = iter(
        method.fit_side_by_side(
            [one.policy for one in going],
            [one.data for one in going],
            generators=[one.generator for one in going],
            schedule=schedule,
            progress=progress,
        )
    )
    ended: list[tuple[M, FitResult] | BilevelError] = []
    for one in ready:
        if isinstance(one, BilevelError):
            ended.append(one)
            continue
        result = next(found)
        ended.append(result if isinstance(result, BilevelError) else one.finish(result))
    return ended


def _attempted(prepare: Callable[[], Prepared[M]]) -> Prepared[M] | BilevelError:
    try:
        return prepare()
    except BilevelError as error:
        return error

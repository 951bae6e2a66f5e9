"""Several dynamics models as one larger ensemble, each with its own units and rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.joined import require_one_form
from mbrl_bilevel.policies.policies import stacked


def models_side_by_side(models: Sequence[DynamicsModel]) -> DynamicsModel:
    """One model with the members of all K, E each: its ``step`` takes rows [K·E, B, …], and gives those of the k-th
    model's members what that model gives them, by one batched product a layer. It is a copy, and made for ``step``
    alone.

    Raises InvalidInputError for models of different forms: of other sizes, or whose targets do not vary alike.
    """
    first = models[0]
    require_one_form([model.policy for model in models])
    for name in ("obs_dim", "action_dim", "direct"):
        found = {getattr(model, name) for model in models}
        if len(found) > 1:
            raise InvalidInputError(
                f"models side by side must be alike; their {name} are {sorted(found)}: step them one by one"
            )
    if any(not torch.equal(model.active, first.active) for model in models):
        raise InvalidInputError(
            "models side by side must be alike; not the same targets vary: step them one by one"
        )
    joined = Regression(
        stacked([model.policy for model in models]),
        _own_units([model.inputs for model in models], first.members),
        _own_units([model.targets for model in models], first.members),
    )
    return replace(
        first,
        regression=joined,
        termination=_own_rules([model.termination for model in models]),
        reward=_own_rules([model.reward for model in models]),
        terminal_jump=torch.tensor(
            [model.terminal_jump for model in models], device=first.device
        ).repeat_interleave(first.members)[:, None],
    )


def _own_units(units: Sequence[Normaliser], members: int) -> Normaliser:
    """Shift and scale [K·E, 1, D]: those of each model for all of its members."""

    def spread(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).repeat_interleave(members, 0).unsqueeze(1)

    return Normaliser(
        spread([each.shift for each in units]),
        spread([each.scale for each in units]),
        units[0].constant,
    )


def _own_rules(rules: Sequence[Rule | None]) -> Rule | None:
    """What each model's own rule says of its rows. Raises InvalidInputError where only some have one."""
    given = [rule for rule in rules if rule is not None]
    if len(given) not in (0, len(rules)):
        raise InvalidInputError(
            "models side by side must be alike; some know a rule that others do not: step them one by one"
        )
    if not given or all(rule is given[0] for rule in given):
        return rules[0]

    def each(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        parts = zip(*(rows.chunk(len(given)) for rows in (obs, action, next_obs)), strict=True)
        return torch.cat([rule(*own) for rule, own in zip(given, parts, strict=True)])

    return each

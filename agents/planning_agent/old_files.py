"""Files of version 0.1, when MPC and MBPO were two classes: read, never written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from stable_baselines3.common.vec_env import VecEnv

from agents.common.saved import Spaces, check_widths, count_of, random_states_told, read_model
from agents.learners.no_learner import NoLearner
from agents.planning_agent.base_agent import AgentParts
from agents.planning_agent.settings import RolloutLength
from agents.planning_agent.settings_file import settings_from_json
from agents.planning_agent.terminal_value import value_from_checkpoint
from mbrl_bilevel.base.checkpoint import Checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.base.records import Rule, Transitions
from mbrl_bilevel.imagination.settings import Branching, Imagination

#: What such a file says it holds.
MPC_AGENT, MBPO_AGENT = "mpc agent", "mbpo agent"

#: What every agent of that version did, where its file does not say so.
_SHARED: dict[str, Any] = {"proposals": 0, "fresh_every": 1, "plan_share": 1.0}
_OLD_DEFAULTS: dict[str, dict[str, Any]] = {
    MPC_AGENT: _SHARED
    | {
        "updates_per_step": 1,
        "real_share": 1.0,
        "rollout": asdict(RolloutLength()),
        "branching": asdict(Branching()),
    },
    MBPO_AGENT: _SHARED | {"planner": None, "value": None, "imagination": asdict(Imagination())},
}

A = TypeVar("A", bound=AgentParts)


def with_old_defaults(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a file of this ``kind``, completed where version 0.1 had nothing to say."""
    return _OLD_DEFAULTS.get(kind, {}) | dict(settings)


def read_mpc(
    kind: type[A],
    checkpoint: Checkpoint,
    env: VecEnv,
    spaces: Spaces,
    given: Mapping[str, Any],
    rules: Mapping[str, Rule | None],
) -> A:
    """The MPC agent in ``checkpoint``, as an agent of class ``kind`` without a learner; its model goes by
    ``rules``, and ``given`` are arguments of the constructor."""
    config = with_old_defaults(MPC_AGENT, checkpoint.setting("settings", dict))
    agent = kind(
        env,
        settings_from_json(checkpoint.path, kind._settings, config),
        algorithm=NoLearner,
        seed=count_of(checkpoint, "seed"),
        **given,
    )
    agent.model = read_model(checkpoint, "model", spaces, **rules)
    if checkpoint.config.get("value") is not None:
        agent.value = value_from_checkpoint(checkpoint, "value", spaces.obs_dim)
    if checkpoint.setting("has_experience", bool):
        _fill_experience(checkpoint, spaces, agent)
    agent.experience.episodes = count_of(checkpoint, "episodes")
    agent.algorithm.num_timesteps = count_of(checkpoint, "num_timesteps")
    first = checkpoint.config.get("first_planned")
    agent.note(
        fitted_on=count_of(checkpoint, "fitted_on"),
        first_planned=None if first is None else count_of(checkpoint, "first_planned"),
    )
    with random_states_told(checkpoint):
        agent.generator.set_state(checkpoint.require("generator", dtype=torch.uint8))
        agent.noise.bit_generator.state = checkpoint.setting("noise", dict)
    return agent


def _fill_experience(checkpoint: Checkpoint, spaces: Spaces, agent: AgentParts) -> None:
    columns = {
        name.removeprefix("experience."): tensor.numpy()
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("experience.")
    }
    try:
        found = Transitions(**columns)
    except (TypeError, InvalidInputError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its experience is damaged: {error}"
        ) from None
    check_widths(checkpoint, spaces, found.obs.shape[1], found.action.shape[1])
    agent.experience.extend(found)
    # Under the numbers they had: which of them were planned goes by these.
    stored = agent.experience.real.columns["episode"]
    stored[: len(found)] = torch.from_numpy(found.episode.copy())

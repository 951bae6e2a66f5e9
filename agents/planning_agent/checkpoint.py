"""A planning agent to and from one file: no pickle; rules and objects are code, and asked for again.

The file is a checkpoint of ``mbrl_bilevel.base.checkpoint``: the learner, the model, a fitted value, both rings
of the replay, settings, progress, random states.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.common.rules import RewardChoice, Rules, TerminationChoice
from agents.common.saved import (
    Spaces,
    check_spaces,
    count_of,
    random_states_told,
    read_model,
    saved_rules,
    spaces_of,
)
from agents.common.spaces import ActionSpace, action_bounds
from agents.learners.held import (
    algorithm_class,
    algorithm_to_checkpoint,
    fill_algorithm,
    storable,
)
from agents.learners.normalisation import fill_vec_normalize, vec_normalize_to_checkpoint
from agents.planning_agent.base_agent import AgentParts
from agents.planning_agent.old_files import MBPO_AGENT, MPC_AGENT, read_mpc, with_old_defaults
from agents.planning_agent.progress import Progress
from agents.planning_agent.refits import start_from_checkpoint, start_to_checkpoint
from agents.planning_agent.replay import GUESS, PLAN, POLICY, MixedReplay, Ring
from agents.planning_agent.settings import PlanningSettings
from agents.planning_agent.settings_file import settings_from_json, settings_to_json
from agents.planning_agent.terminal_value import Value, value_from_checkpoint, value_to_checkpoint
from mbrl_bilevel.base.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.dynamics_checkpoint import model_to_checkpoint

#: What the file says it holds.
PLANNING_AGENT = "planning agent"

A = TypeVar("A", bound=AgentParts)


def save_agent(path: str | Path, agent: AgentParts) -> None:
    """Write ``agent`` atomically. Raises InvalidInputError for a planner or a model that no file holds."""
    model = agent.model
    if model is not None and not isinstance(model, DynamicsModel):
        raise InvalidInputError(
            f"save: model is a {type(model).__name__}, and only a learned one fits in a file; "
            "set model to None before"
        )
    kept, asked = storable(agent.algorithm_kwargs)
    rules = _rules_used(agent)
    torch_state, numpy_state = agent._random.states
    tensors: dict[str, Any] = {"generator": agent.generator.get_state(), "torch": torch_state}
    config: dict[str, Any] = {
        "settings": settings_to_json(agent.settings),
        "algorithm_class": type(agent.algorithm).__name__,
        "algorithm_kwargs": kept,
        "asked_again": asked,
        "spaces": asdict(spaces_of(agent.env)),
        "rules": rules,
        "rules_from_env": {
            name: how for name, how in agent.rules.from_env.items() if name in rules
        },
        "seed": agent.seed,
        "numpy": numpy_state,
        "noise": dict(agent.noise.bit_generator.state),
        "model": None,
        "value": None,
        "episodes": agent.experience.episodes,
        "real_share": agent.experience.real_share,
        "progress": asdict(agent.progress) | {"health": dict(agent.progress.health)},
    }
    for name, ring in _rings(agent.experience).items():
        config[f"{name}_written"] = ring.written
        tensors |= {f"{name}.{key}": value.cpu() for key, value in ring.stored().items()}
    parts: dict[str, Any] = {"algorithm": algorithm_to_checkpoint(agent.algorithm)}
    if model is not None:
        parts["model"] = model_to_checkpoint(model.to("cpu"))
    if agent.fit_start is not None:
        parts["fit_start"] = start_to_checkpoint(agent.fit_start)
    if agent.value is not None:
        parts["value"] = value_to_checkpoint(agent.value)
    normalised = agent.get_vec_normalize_env()
    if normalised is not None:
        parts["vec_normalize"] = vec_normalize_to_checkpoint(normalised)
    for name, (own, facts) in parts.items():
        config[name] = dict(facts)
        tensors |= {f"{name}.{key}": value for key, value in own.items()}
    save_checkpoint(path, PLANNING_AGENT, tensors, config)


def _rules_used(agent: AgentParts) -> list[str]:
    """Names of the known rules; without a model nobody asks for them, and none has to be given again."""
    if not agent.settings.uses_model and agent.model is None:
        return []
    return [name for name in ("termination", "reward") if getattr(agent, name)]


def load_agent(
    kind: type[A],
    path: str | Path,
    env: VecEnv,
    algorithm: type[OffPolicyAlgorithm] | None,
    algorithm_kwargs: Mapping[str, Any],
    choices: Mapping[str, Any],
    given: Mapping[str, Any],
) -> A:
    """The agent of class ``kind`` in ``path``; ``choices``: of ``termination`` and ``reward``; ``given``: the
    constructor's arguments of where it works and logs.

    Raises CheckpointError if the file is damaged, of other spaces, or something is missing.
    """
    checkpoint, spaces, found = _opened(path, kind._reads, env, **choices)
    rules = {"termination": found.termination, "reward": found.reward}
    given = {**given, **rules, "termination": found.termination or "learned"}
    if checkpoint.kind == MPC_AGENT:
        agent = read_mpc(kind, checkpoint, env, spaces, given, rules)
        agent.rules = found
        return agent
    made = _made(kind, checkpoint, algorithm, algorithm_kwargs)
    agent = kind(env, **made, **given)
    agent.rules = found
    fill_algorithm(
        checkpoint,
        "algorithm",
        agent.algorithm,
        made_with=made["algorithm_kwargs"].keys(),
        asked_again=checkpoint.setting("asked_again", list),
    )
    model = read_model(checkpoint, "model", spaces, **rules)
    agent.model = None if model is None else model.to(agent.device)
    agent.fit_start = start_from_checkpoint(checkpoint, "fit_start", rules, spaces, agent.settings)
    agent.value = _value(checkpoint, spaces)
    agent.progress = _progress(checkpoint)
    _fill_replay(checkpoint, agent.experience, agent.action_space)
    _fill_states(checkpoint, agent)
    fill_vec_normalize(checkpoint, "vec_normalize", agent.get_vec_normalize_env())
    return agent


def read_for_planning(
    path: str | Path, env: VecEnv, *, termination: TerminationChoice, reward: RewardChoice
) -> tuple[DynamicsModel | None, Value | None, PlanningSettings]:
    """The model, the fitted value and the settings in any agent's file; the model is None where there was
    none (a learner alone has none).

    Raises CheckpointError as ``load_agent`` does, but asks for no class and no objects.
    """
    old = (MPC_AGENT, MBPO_AGENT)
    checkpoint, spaces, rules = _opened(path, old, env, termination=termination, reward=reward)
    config = with_old_defaults(checkpoint.kind, checkpoint.setting("settings", dict))
    settings = settings_from_json(checkpoint.path, PlanningSettings, config)
    model = read_model(checkpoint, "model", spaces, rules.termination, rules.reward)
    return model, _value(checkpoint, spaces), settings


def _opened(
    path: str | Path,
    old: Collection[str],
    env: VecEnv,
    *,
    termination: TerminationChoice,
    reward: RewardChoice,
) -> tuple[Checkpoint, Spaces, Rules]:
    """The file, of today or of an ``old`` kind, of this environment's spaces, and the rules to go on with."""
    checkpoint, spaces = load_checkpoint(path, PLANNING_AGENT, *old), spaces_of(env)
    check_spaces(checkpoint, spaces)
    return checkpoint, spaces, saved_rules(checkpoint, env, termination, reward)


def _value(checkpoint: Checkpoint, spaces: Spaces) -> Value | None:
    if checkpoint.config.get("value") is None:
        return None
    return value_from_checkpoint(checkpoint, "value", spaces.obs_dim)


def _made(
    kind: type[AgentParts],
    checkpoint: Checkpoint,
    algorithm: type[OffPolicyAlgorithm] | None,
    algorithm_kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """What the agent was made with, and what of it has to be given again."""
    asked_again = list(map(str, checkpoint.setting("asked_again", list)))
    for name in asked_again:
        if name not in algorithm_kwargs:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: the agent was made with an object as {name!r}, which no "
                "file holds; pass it to load() in algorithm_kwargs="
            )
    kept = checkpoint.setting("algorithm_kwargs", dict)
    _require_as_made(checkpoint, kept, algorithm_kwargs, asked_again)
    name = checkpoint.setting("algorithm_class", str)
    held = algorithm_class(checkpoint.path, name, algorithm)
    if kind._algorithm is not None and held is not kind._algorithm:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: the agent holds a {name}, which {kind.__name__} does not; "
            "load it with agents.PlanningAgent.load"
        )
    config = with_old_defaults(checkpoint.kind, checkpoint.setting("settings", dict))
    return {
        "settings": settings_from_json(checkpoint.path, kind._settings, config),
        "algorithm": held,
        "algorithm_kwargs": {**kept, **algorithm_kwargs},
        "seed": count_of(checkpoint, "seed"),
    }


def _require_as_made(
    checkpoint: Checkpoint,
    kept: Mapping[str, Any],
    algorithm_kwargs: Mapping[str, Any],
    asked_again: Collection[str],
) -> None:
    """Raises CheckpointError for an argument that differs from what the file holds: half of the agent would
    go by the one, half by the other."""
    counters = checkpoint.setting("algorithm", dict).get("counters")
    # What was not given to the agent is a default of its class, of which numbers are counters.
    held = {**(counters if isinstance(counters, dict) else {}), **kept}
    given, _ = storable(algorithm_kwargs)
    for name in algorithm_kwargs:
        if name in held and name not in asked_again:
            if name in given and given[name] == held[name]:
                continue
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: the agent was made with {name}={str(held[name])[:60]}; "
                "leave it out of algorithm_kwargs, or make a new agent"
            )


def _progress(checkpoint: Checkpoint) -> Progress:
    """Raises CheckpointError for counts that cannot be."""
    found: dict[str, Any] = checkpoint.config
    if checkpoint.kind == PLANNING_AGENT:
        found = checkpoint.setting("progress", dict)
    counts = {name: found.get(name) for name in ("fitted_on", "imagined_on", "offline_updates")}
    first, health = found.get("first_planned"), found.get("health", {})
    numbers = [*counts.values(), 0 if first is None else first]
    sound = all(type(value) is int and 0 <= value < 2**62 for value in numbers)
    said: list[Any] = list(health.values()) if isinstance(health, dict) else [None]
    numeric = all(type(value) in (int, float) and abs(value) < 1e300 for value in said)
    if not sound or not numeric:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its progress is damaged; restore a good copy or save it again"
        )
    pairs: Any = tuple(sorted((str(name), float(value)) for name, value in health.items()))
    return Progress(**counts, first_planned=first, health=pairs)  # type: ignore[arg-type]


def _rings(experience: MixedReplay) -> dict[str, Ring]:
    return {"real": experience.real, "imagined": experience.imagined}


def _fill_replay(checkpoint: Checkpoint, experience: MixedReplay, space: ActionSpace) -> None:
    """Give a fresh replay the rows of the file. Raises CheckpointError for a misfit."""
    experience.episodes = count_of(checkpoint, "episodes")
    share = checkpoint.config.get("real_share", experience.real_share)
    if type(share) not in (int, float) or not 0.0 <= share <= 1.0:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its real_share is {share!r}; restore a good copy"
        )
    experience.real_share = float(share)
    for name, ring in _rings(experience).items():
        ring.written = count_of(checkpoint, f"{name}_written")
        found = {}
        for key, column in ring.columns.items():
            if key == "planned" and checkpoint.kind == MBPO_AGENT:
                continue  # version 0.1 had no plans beside a policy
            shape = (len(ring), *column.shape[1:])
            found[key] = checkpoint.require(f"{name}.{key}", shape, column.dtype)
            _require_possible(checkpoint, f"{name}.{key}", found[key], space)
        # Only for rows that the file has: a forged count must not fill the memory.
        ring.reserve(len(ring))
        for key, rows in found.items():
            ring.columns[key][: len(ring)] = rows
    episode = experience.real.stored()["episode"]
    if len(episode) and experience.episodes <= int(episode.max()):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: it has a step of episode {int(episode.max())}, but its "
            f"episodes are {experience.episodes}; restore a good copy or save it again"
        )


def _require_possible(checkpoint: Checkpoint, name: str, rows: Tensor, space: ActionSpace) -> None:
    """Raises CheckpointError for rows of a column that no step can have."""
    key = name.rpartition(".")[2]
    if key == "ended":
        sound = (rows == 0.0) | (rows == 1.0)
    elif key == "planned":
        sound = torch.isin(rows, torch.tensor([POLICY, PLAN, GUESS]))
    elif key == "t":
        sound = rows >= 0
    elif key == "action" and isinstance(space, gym.spaces.Discrete):
        choice = rows - int(space.start)
        sound = (choice >= 0) & (choice < int(space.n)) & (rows == rows.round())
    elif key == "action":
        low, high = action_bounds(space)
        # Recorded actions are within the space but for rounding.
        slack = 1e-5 + 2e-5 * np.maximum(np.abs(low), np.abs(high)) / (high - low)
        sound = rows.abs() <= 1.0 + torch.from_numpy(slack)
    else:
        return
    if not bool(sound.all()):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its {name} holds what no step can have; "
            "restore a good copy or save it again"
        )


def _fill_states(checkpoint: Checkpoint, agent: AgentParts) -> None:
    own, others = (checkpoint.require(name, dtype=torch.uint8) for name in ("generator", "torch"))
    with random_states_told(checkpoint):
        agent.generator.set_state(own)
        agent._random.states = (others, checkpoint.setting("numpy", dict))
        if checkpoint.kind == PLANNING_AGENT:
            agent.noise.bit_generator.state = checkpoint.setting("noise", dict)

"""Agents in a sequence of tasks, by name: what acts, and what it keeps when the task changes.

``planning:nll+model=kl-seen+policy=1+replay=500``: AGENT, and of its model the method behind a colon; then each part
that is kept (``agents.planning_agent.keeping.Keeping``). ``+joint`` acts in all tasks side by side, ``+alone`` starts
each task anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium as gym
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from agents.common.rules import RewardChoice, rules_told_by
from agents.common.spaces import vector_env
from agents.learners.fast_sac import FastSAC
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.keeping import Keeping
from agents.presets.preset import preset_for, with_values
from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.base.known_rules import KnownRules
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.training.methods import get_method

#: What acts: with a model, or the learner of the same preset alone.
AGENTS: dict[str, Mapping[str, Any]] = {
    "planning": {},
    "sac": {"planner": None, "real_share": 1.0, "value": None, "look_ahead": 0},
}
_PARTS: dict[str, Callable[[str], Any]] = {"model": str, "policy": float, "replay": int}


@dataclass(frozen=True)
class SequenceAgent:
    """``kind`` is one of ``AGENTS``, ``method`` trains its model; ``tasks``: it learns them in "turn", keeping what
    ``keeping`` says, "joint" in environments side by side, or "alone", each from scratch."""

    kind: str = "planning"
    method: str = "bilevel"
    tasks: Literal["turn", "joint", "alone"] = "turn"
    keeping: Keeping = field(default_factory=Keeping)

    def make(self, envs: Sequence[gym.Env[Any, Any]], seed: int, **changes: Any) -> PlanningAgent:
        """One that has learned nothing, for one environment or all of the tasks side by side, whose observations end
        with the number of the task, one-hot. Its settings are those of the environment's preset but for ``changes``; it
        is told rewards and endings that the environments know, and learns the others. Raises as ``PlanningAgent``."""
        settings = with_values(PlanningAgent._settings(), preset_for(envs[0]).settings_for(FastSAC))
        settings = replace(
            settings, **(dict(AGENTS[self.kind]) | {"method": self.method} | changes)
        )
        if len(envs) > 1:
            found = [rules_told_by(vector_env(env)) for env in envs]
            env: Any = DummyVecEnv([_giver(env) for env in envs])
            rules: dict[str, Any] = {
                "reward": by_task([_reward(one) for one in found]),
                "termination": by_task([one.termination for one in found]),
            }
            rules["termination"] = rules["termination"] or "learned"
            return PlanningAgent(
                env,
                settings,
                algorithm=FastSAC,
                algorithm_kwargs=None,
                seed=seed,
                device="cpu",
                **rules,
            )
        env = vector_env(envs[0])
        told = rules_told_by(env)
        choice: RewardChoice = (
            "known" if told.reward else "approximate" if told.approximate_reward else None
        )
        # What is kept of tasks lies on the CPU.
        return PlanningAgent(env, settings, reward=choice, seed=seed, device="cpu")


def get_sequence_agent(name: str, memory: int = 500) -> SequenceAgent:
    """The agent called ``name``; ``memory`` rows are stored by models' ways of keeping that store any.

    Raises InvalidInputError with the nearest name, or what is wrong with a part.
    """
    first, *parts = name.split("+")
    kind, colon, method = first.partition(":")
    look_up(AGENTS, kind, f"{name}: unknown agent")
    if colon and kind == "sac":
        raise InvalidInputError(f"{name}: sac has no model; leave out :{method}")
    method = method or "bilevel"
    get_method(method)
    if parts and parts[0] in ("joint", "alone"):
        if len(parts) > 1:
            raise InvalidInputError(
                f"{name}: {parts[0]} keeps nothing else; leave out {'+'.join(parts[1:])}"
            )
        return SequenceAgent(kind, method, parts[0])  # type: ignore[arg-type]
    kept: dict[str, Any] = {}
    for part in parts:
        what, sign, value = part.partition("=")
        read = look_up(_PARTS | {"joint": str, "alone": str}, what, f"{name}: unknown part")
        if not sign or what in kept or what not in _PARTS:
            raise InvalidInputError(f"{name}: give each part once, as PART=VALUE; got {part!r}")
        try:
            kept[what] = read(value)
        except ValueError:
            raise InvalidInputError(f"{name}: {what} must be a number; got {value!r}") from None
    if "model" in kept and kind == "sac":
        raise InvalidInputError(
            f"{name}: sac has no model to keep; leave out model={kept['model']}"
        )
    keeping = Keeping(**kept, memory=memory)
    keeping.of_model(method)
    return SequenceAgent(kind, method, keeping=keeping)


def by_task(rules: Sequence[Rule | None]) -> Rule | None:
    """The rule of the task whose number, one-hot, the observation ends with; None unless all tasks have one."""
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules):
        return None

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        found = torch.stack([one(obs, action, next_obs) for one in known], -1)
        task = obs[..., -len(known) :].argmax(-1, keepdim=True)
        return found.gather(-1, task)[..., 0]

    return rule


def _reward(known: KnownRules) -> Rule | None:
    return known.reward or known.approximate_reward


def _giver(env: gym.Env[Any, Any]) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: env

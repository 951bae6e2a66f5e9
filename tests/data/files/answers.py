"""What is asked of every stored file: the same questions when it was made and when it is loaded.

Nothing of the project is imported here, so that make.py and the test share these lines although
they run with different versions of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor, nn

Entry = dict[str, Any]
Env = gym.Env[Any, Any]

#: Real steps that a loaded agent goes on for.
MORE = 6


def environment(entry: Entry, make: Callable[[str], Env]) -> Env | VecEnv:
    """The environment of an entry: ``env_id``, ``n_envs`` of it where that is given, and around them a
    VecNormalize with the arguments ``vec_normalize``, where these are."""
    if "n_envs" not in entry and "vec_normalize" not in entry:
        return make(entry["env_id"])
    count = entry.get("n_envs", 1)
    env: VecEnv = DummyVecEnv([lambda: make(entry["env_id"])] * count)
    if "vec_normalize" in entry:
        env = VecNormalize(env, **entry["vec_normalize"])
    return env


def of_agent(agent: Any, kind: str, inputs: Entry) -> Entry:
    """What a loaded agent of this ``kind`` ("mpc" or "mbpo") says, before it acts again."""
    obs = np.asarray(inputs["obs"], dtype=np.float32)
    first, state = agent.predict(obs, deterministic=True)
    found: Entry = {
        "num_timesteps": agent.num_timesteps,
        "seed": agent.seed,
        "method": agent.settings.method,
        "actions": _listed(first),
        **_of_experience(agent, kind),
    }
    if kind == "mpc":
        # The plan that the first call left behind goes on from here.
        found["next_actions"] = _listed(agent.predict(obs, state, deterministic=True)[0])
        found["planner"] = type(agent.settings.planner).__name__
        if agent.value is not None:
            found["value"] = _listed(agent.value(torch.from_numpy(obs)))
    else:
        found["algorithm"] = type(agent.algorithm).__name__
        found["updates"] = int(agent.algorithm._n_updates)
        found["imagined"] = len(agent.experience.imagined)
        normalised = agent.get_vec_normalize_env()
        if normalised is not None:
            found["vec_normalize"] = {
                "obs_mean": _listed(normalised.obs_rms.mean),
                "obs_var": _listed(normalised.obs_rms.var),
                "return_var": float(normalised.ret_rms.var),
                "count": float(normalised.obs_rms.count),
            }
    found["model"] = None if agent.model is None else of_model(agent.model, inputs)
    return found


def of_model(model: Any, inputs: Entry) -> Entry:
    """Each member's mean step from the fixed inputs, and the ensemble's standard deviation there."""
    obs, action = (torch.tensor(inputs[name]) for name in ("obs", "action"))
    with torch.no_grad():
        step = model.step(*(rows.expand(model.members, -1, -1) for rows in (obs, action)))
    return {
        "members": model.members,
        "next_obs": _listed(step.next_obs),
        "reward": _listed(step.reward),
        "terminated": _listed(step.terminated),
        "std": _listed(model.predict(obs, action).std),
    }


def of_module(module: nn.Module) -> Entry:
    """Of every parameter and buffer: its shape, mean and root mean square (infinite bounds as text)."""
    return {
        name: [
            list(value.shape),
            *(_number(v) for v in (value.mean(), value.square().mean().sqrt())),
        ]
        for name, value in ((n, v.double()) for n, v in module.state_dict().items())
    }


def going_on(agent: Any) -> Entry:
    """The ``MORE`` steps that the agent takes next: its random draws go on where they were saved."""
    before = agent.num_timesteps
    agent.learn(MORE)
    # Grouped by episode, and new episodes were begun: they are the last.
    steps = agent.experience.transitions()[-MORE:]
    return {
        "steps": agent.num_timesteps - before,
        "action": _listed(steps.action),
        "next_obs": _listed(steps.next_obs),
        "reward": _listed(steps.reward),
    }


def _of_experience(agent: Any, kind: str) -> Entry:
    rows = len(agent.experience if kind == "mpc" else agent.experience.real)
    if not rows:
        return {"rows": 0, "reward_sum": 0.0, "terminations": 0}
    steps = agent.experience.transitions()
    return {
        "rows": rows,
        "reward_sum": float(steps.reward.sum(dtype=np.float64)),
        "terminations": int(steps.terminated.sum()),
        "episodes": len(np.unique(steps.episode)),
    }


def _listed(values: Any) -> Any:
    numbers = np.asarray(values.detach() if isinstance(values, Tensor) else values)
    if numbers.dtype.kind in "iub":
        return numbers.tolist()
    # Nine digits tell every float32 from its neighbours.
    return np.vectorize(lambda value: float(f"{value:.9g}"))(numbers.astype(np.float64)).tolist()


def _number(value: Tensor) -> float | str:
    return float(f"{value:.9g}") if bool(value.isfinite()) else str(value.item())

"""The statistics of a VecNormalize around a learner's environment: stored, filled in, and learned from recorded steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from mbrl_bilevel.base.checkpoint import Checkpoint
from mbrl_bilevel.base.errors import CheckpointError
from mbrl_bilevel.base.records import Transitions


def vec_normalize_to_checkpoint(env: VecNormalize) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The statistics of ``env``, and how it uses them."""
    statistics = {
        f"{name}.{key}": torch.as_tensor(np.asarray(getattr(moments, key), dtype=np.float64))
        for name, moments in _moments(env).items()
        for key in ("mean", "var", "count")
    }
    return statistics, _uses(env)


def fill_vec_normalize(checkpoint: Checkpoint, name: str, env: VecNormalize | None) -> None:
    """Give ``env`` the statistics stored under ``name``; None where there is no VecNormalize.

    Raises CheckpointError if there is one on one side alone, it uses its statistics in another way, or
    they do not fit.
    """
    stored = name in checkpoint.config
    if stored and env is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: the agent was trained around a VecNormalize; wrap env in one"
        )
    if env is None:
        return
    if not stored:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: the agent was trained without a VecNormalize; pass the env "
            "inside it (env.venv)"
        )
    saved = checkpoint.setting(name, dict)
    for flag, value in _uses(env).items():
        # The files of version 0.1 lack them.
        if saved.get(flag, value) != value:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: the agent was trained around a VecNormalize of {flag}="
                f"{saved[flag]}, that of this env has {value}; make it with {flag}={saved[flag]}"
            )
    for part, moments in _moments(env).items():
        shape = np.asarray(moments.mean).shape
        for key, form in (("mean", shape), ("var", shape), ("count", ())):
            found = checkpoint.require(f"{name}.{part}.{key}", form, torch.float64).numpy()
            if key != "mean" and (found < 0.0).any():
                raise CheckpointError(
                    f"checkpoint {checkpoint.path}: its {name}.{part}.{key} is negative; "
                    "restore a good copy or save it again"
                )
            setattr(moments, key, float(found) if key == "count" else found.copy())


def update_vec_normalize(env: VecNormalize, transitions: Transitions) -> None:
    """Let ``env``, where it is training, learn from recorded steps as it does from its own."""
    if not env.training:
        return
    if env.norm_obs:
        env.obs_rms.update(transitions.obs)
    order = np.lexsort((transitions.t, transitions.episode))
    episode, reward = transitions.episode[order], transitions.reward[order].astype(np.float64)
    returns = reward.copy()
    for i in np.flatnonzero(episode[1:] == episode[:-1]) + 1:
        returns[i] += env.gamma * returns[i - 1]
    env.ret_rms.update(returns)


def _uses(env: VecNormalize) -> dict[str, str]:
    """As text: a clip may be infinite."""
    found = {name: str(bool(getattr(env, name))) for name in ("norm_obs", "norm_reward")}
    numbers = ("clip_obs", "clip_reward", "gamma", "epsilon")
    return found | {name: str(float(getattr(env, name))) for name in numbers}


def _moments(env: VecNormalize) -> dict[str, Any]:
    found = {"obs": getattr(env, "obs_rms", None), "ret": getattr(env, "ret_rms", None)}
    return {name: moments for name, moments in found.items() if moments is not None}

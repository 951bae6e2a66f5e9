"""Collect the data of a half-trained policy mixed with random actions, as a Minari data set.

Soft Actor-Critic (Haarnoja et al. 2018; Stable-Baselines3) trains for a while. Then each episode
draws the share of its steps in which the policy acts; in the others actions are random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from _run import launch_tool, set_threads
from stable_baselines3 import SAC

from agents.collect import Array, Behaviour, RandomBehaviour, collect
from envs.make import make_env
from envs.offline import require_new_minari, save_minari
from mbrl_bilevel.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Options of collect."""

    dataset: str
    """Minari id to save as: NAME-vN, or NAMESPACE/NAME-vN."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment with Box observations and actions."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    sac_steps: int = 12_000
    """Steps that SAC is trained for; 0 leaves its policy untrained."""
    rows: int = 80_000
    """Steps to save."""
    policy_share: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of policy actions, from 0 to 1; each episode draws one."""
    max_episode_steps: int = 200
    """Episodes are cut after this many steps."""
    seed: int = 0
    """Seed of every random draw, 0 or more."""
    threads: int = 1
    """CPU threads for PyTorch; 0 leaves its default."""

    def __post_init__(self) -> None:
        for name, least in (
            *(("rows", 1), ("max_episode_steps", 1)),
            *(("sac_steps", 0), ("seed", 0), ("threads", 0)),
        ):
            if not least <= getattr(self, name) <= 10**8:
                option = "--" + name.replace("_", "-")
                raise InvalidInputError(
                    f"{option} must be at least {least} and at most 100,000,000; "
                    f"got {getattr(self, name)}"
                )
        if not self.policy_share or not all(0.0 <= share <= 1.0 for share in self.policy_share):
            raise InvalidInputError(
                f"--policy-share: give shares from 0 to 1; got {self.policy_share}"
            )


def main(args: Args) -> Mapping[str, object]:
    """Train, collect, save; the returns of the saved episodes."""
    require_new_minari(args.dataset)
    set_threads(args.threads)
    env = make_env(args.env_id, import_module=args.import_module)
    behaviour = _mixed(env, _trained(env, args), args)
    data = collect(
        env,
        behaviour,
        args.rows,
        seed=args.seed + 1_000_000,  # other starts than SAC was trained from
        max_episode_steps=args.max_episode_steps,
    )
    folder = save_minari(
        data,
        args.dataset,
        env,
        algorithm_name=f"SAC, {args.sac_steps} steps, shares {list(args.policy_share)}",
    )
    env.close()
    returns = np.bincount(data.episode, data.reward.astype(np.float64))
    return {
        "dataset": args.dataset,
        "folder": str(folder),
        "rows": len(data),
        "episodes": len(returns),
        "return_mean": float(returns.mean()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
    }


def _trained(env: gym.Env[Any, Any], args: Args) -> SAC:
    model = SAC(
        "MlpPolicy",
        env,
        seed=args.seed % 2**32,
        train_freq=2,
        gradient_steps=1,
        learning_starts=1000,
        policy_kwargs={"net_arch": [128, 128]},
    )
    return model.learn(args.sac_steps) if args.sac_steps else model


def _mixed(env: gym.Env[Any, Any], model: SAC, args: Args) -> Behaviour:
    assert isinstance(env.action_space, gym.spaces.Box)
    generator = np.random.default_rng([args.seed, 7])
    random = RandomBehaviour(env.action_space, generator)
    share = 0.0

    def act(obs: Array, t: int) -> Array:
        nonlocal share
        if t == 0:
            share = float(generator.choice(args.policy_share))
        action = random(obs, t)
        if generator.random() < share:
            action, _ = model.predict(obs, deterministic=False)
        return np.asarray(action, dtype=np.float32)

    return act


if __name__ == "__main__":
    launch_tool(Args, main)

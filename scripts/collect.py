"""Behaviour data for comparing models: a half-trained SAC policy mixed with random actions.

The share of steps on which the policy acts is drawn anew for each episode; the rest are random, so
that the data covers what the policy reaches and what it does not do. Saved as a Minari data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from _run import Result, RunArgs, RunFolder, launch
from stable_baselines3 import SAC

from agents.common.experience import Behaviour, RandomBehaviour, collect
from agents.common.spaces import require_box
from envs.datasets.offline import require_new_minari, save_minari
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError

#: Steps of the policy's training between two moves of the bar.
_STRETCH = 1000


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of collect."""

    dataset: str
    """Minari id of the data set to write, such as halfcheetah/mixed-v0; it must be new."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment with Box observations and actions."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    rows: int = 80_000
    """Steps to save."""
    sac_steps: int = 12_000
    """Steps that SAC is trained for before; an update every other step."""
    policy_share: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of steps on which the policy acts; each episode draws one of them."""
    max_episode_steps: int = 200
    """Episodes of the data set are cut at this many steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "rows", "sac_steps", "max_episode_steps")
        if not self.policy_share or not all(0.0 <= s <= 1.0 for s in self.policy_share):
            raise InvalidInputError(
                f"--policy-share: give shares between 0 and 1; got {self.policy_share}"
            )
        if self.env_timeout is not None:
            self.require_positive("env_timeout")


def main(args: Args, run: RunFolder) -> Result:
    """Train, act, save."""
    require_new_minari(args.dataset)
    env = make_env(args.env_id, import_module=args.import_module, timeout=args.env_timeout)
    require_box(env.action_space, "action")  # SAC has no discrete actions
    policy = _half_trained(env, args, run)
    random = np.random.default_rng([args.seed, 1])
    data = collect(
        env,
        _mixed(policy, env, args.policy_share, random),
        args.rows,
        seed=args.seed + 1,
        max_episode_steps=args.max_episode_steps,
    )
    folder = save_minari(
        data,
        args.dataset,
        env,
        algorithm_name=f"SAC after {args.sac_steps} steps, mixed with random actions",
        description=f"{args.env_id}; shares of the policy: {args.policy_share}; seed {args.seed}",
    )
    env.close()
    returns = np.bincount(data.episode, data.reward)[:-1]  # the last episode may be cut short
    found = {
        "episodes": len(returns) + 1,
        "mean_return": float(returns.mean()) if len(returns) else None,
        "low_return": float(returns.min()) if len(returns) else None,
        "high_return": float(returns.max()) if len(returns) else None,
    }
    return Result(
        {"rows": len(data), **found}, {**found, "dataset": args.dataset, "in": str(folder)}
    )


def _half_trained(env: gym.Env[Any, Any], args: Args, run: RunFolder) -> SAC:
    policy = SAC(
        "MlpPolicy",
        env,
        seed=args.seed,
        device="cpu",
        learning_starts=min(1000, args.sac_steps),
        train_freq=2,
        policy_kwargs={"net_arch": [128, 128]},
    )
    bar = run.bar(args.sac_steps, "SAC")
    for done in range(0, args.sac_steps, _STRETCH):
        policy.learn(min(_STRETCH, args.sac_steps - done), reset_num_timesteps=done == 0)
        bar.update(min(_STRETCH, args.sac_steps - done))
    bar.close()
    return policy


def _mixed(
    policy: SAC,
    env: gym.Env[Any, Any],
    shares: tuple[float, ...],
    random: np.random.Generator,
) -> Behaviour:
    """At each step of an episode the policy with that episode's share, else a random action."""
    at_random = RandomBehaviour(env.action_space, random)  # type: ignore[arg-type]
    share = 0.0

    def act(obs: npt.NDArray[Any], t: int) -> npt.NDArray[Any]:
        nonlocal share
        if t == 0:
            share = float(random.choice(shares))
        action = at_random(obs, t)
        if random.random() < share:
            action = np.asarray(policy.predict(obs)[0], dtype=action.dtype)
        return action

    return act


if __name__ == "__main__":
    launch(Args, main)

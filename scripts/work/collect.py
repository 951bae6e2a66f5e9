"""What collect does, once its options are read."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from options.collect import Args
from stable_baselines3 import SAC

from agents.common.experience import Behaviour, RandomBehaviour, collect
from envs.datasets.offline import require_new_minari, save_minari
from envs.tasks.make import make_env
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder


def collect_data(args: Args, run: RunFolder) -> Result:
    """Train, act, save."""
    env = make_env(args.env_id, **args.making)
    require_new_minari(args.dataset, env)  # of boxes alone, as is SAC
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


#: Steps of the policy's training between two moves of the bar.
_STRETCH = 1000


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

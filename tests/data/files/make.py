"""Makes the stored files and expected.json beside this script.

Run once, with the code of commit b042254, whose files later versions must go on reading:

    git clone . /tmp/then && git -C /tmp/then checkout b042254
    OMP_NUM_THREADS=1 PYTHONPATH=/tmp/then python tests/data/files/make.py

It takes half a minute on one core. The names of modules are those of that commit: with later code
this need not run. To store a file of a later version, add it under another name; never make these
anew.
"""

# Some of these modules have other names by now, which is no matter of sorting.
# ruff: noqa: I001

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from answers import Entry, environment, going_on, of_agent, of_model, of_module
from stable_baselines3 import DDPG, DQN, TD3
from stable_baselines3.common.noise import NormalActionNoise

from agents.collect import RandomBehaviour, collect
from agents.mbpo import MBPO, MBPOSettings, RolloutLength
from agents.mpc import MPC, MPCSettings
from agents.planners import CEM, ICEM, MPPI, RandomShooting
from agents.value import ValueSettings
from envs.make import make_env
from envs.rewards import reward_rule
from envs.rules import termination_rule
from mbrl_bilevel.branches import Branching
from mbrl_bilevel.dynamics import fit_dynamics
from mbrl_bilevel.dynamics_checkpoint import (
    load_model,
    load_parameters,
    save_model,
    save_parameters,
)
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.losses import PolicyGradient
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination
from mbrl_bilevel.policies import (
    CategoricalPolicy,
    FullGaussianPolicy,
    GaussianPolicy,
    MixturePolicy,
)
from mbrl_bilevel.rewards import RBF, Mahalanobis, NeuralReward, RewardMatrix
from mbrl_bilevel.types import Transitions

HERE = Path(__file__).resolve().parent
PENDULUM, SWING, CART = "InvertedPendulum-v5", "Pendulum-v1", "CartPole-v1"

#: What all small agents share.
SMALL: dict[str, Any] = {
    "members": 2,
    "hidden": (8,),
    "schedule": Schedule(steps=60, learning_rate=1e-2),
    "learning_starts": 80,
    "refit_every": 1000,
}
SMALL_MPC: dict[str, Any] = {
    **SMALL,
    "planner": ICEM(horizon=5, population=16, iterations=2, elite_fraction=0.2),
    "imagination": Imagination(particles=2),
    "value": ValueSettings(rounds=2, steps=40, members=2, width=8),
}
SMALL_MBPO: dict[str, Any] = {
    **SMALL,
    "imagine_every": 20,
    "rollouts_per_step": 2,
    "updates_per_step": 1,
    "real_share": 0.25,
    "real_rows": 500,
    "imagined_rows": 60,
}
#: The arguments of a held algorithm.
ALGORITHM: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 16}

#: Seed, real steps, the entry (how to make the environment, which rules are known) and settings.
MPC_FILES: dict[str, tuple[int, int, Entry, dict[str, Any]]] = {
    "mpc": (1, 100, {"env_id": PENDULUM, "termination": True}, {}),
    "mpc-learned-termination": (2, 100, {"env_id": PENDULUM}, {}),
    "mpc-reward": (3, 100, {"env_id": PENDULUM, "termination": True, "reward": True}, {}),
    "mpc-discrete": (4, 100, {"env_id": CART}, {}),
    "mpc-no-model": (5, 40, {"env_id": SWING}, {}),
    "mpc-untouched": (6, 0, {"env_id": SWING}, {}),
    "mpc-two-envs": (7, 100, {"env_id": SWING, "n_envs": 2}, {}),
    "mpc-replan-elites-pessimism": (
        8,
        100,
        {"env_id": SWING},
        {
            "members": 3,
            "elites": 2,
            "replan_every": 3,
            "imagination": Imagination(particles=4, pessimism=0.5),
            "exploration": 0.4,
            "value": None,
        },
    ),
    "mpc-cem-ts1": (
        9,
        100,
        {"env_id": SWING},
        {
            "planner": CEM(horizon=5, population=16, iterations=2, elite_fraction=0.2),
            "imagination": Imagination(particles=4, propagation="ts1"),
        },
    ),
    "mpc-mppi": (10, 100, {"env_id": SWING}, {"planner": MPPI(5, 16, iterations=2)}),
    "mpc-random": (11, 100, {"env_id": SWING}, {"planner": RandomShooting(5, 32)}),
    "mpc-nll-mixture": (12, 100, {"env_id": SWING}, {"method": "nll-mixture"}),
    "mpc-faithful": (13, 100, {"env_id": SWING}, {"method": "faithful"}),
}

#: The same of MBPO, and its own arguments.
MBPO_FILES: dict[str, tuple[int, int, Entry, dict[str, Any], dict[str, Any]]] = {
    "mbpo": (21, 100, {"env_id": PENDULUM, "termination": True}, {}, {}),
    "mbpo-sac-alone": (22, 100, {"env_id": SWING}, {"real_share": 1.0}, {}),
    "mbpo-td3": (23, 100, {"env_id": SWING}, {}, {"algorithm": TD3}),
    "mbpo-ddpg": (24, 100, {"env_id": SWING}, {"method": "nll"}, {"algorithm": DDPG}),
    "mbpo-dqn": (25, 100, {"env_id": CART}, {}, {"algorithm": DQN}),
    "mbpo-vec-normalize": (
        26,
        100,
        {"env_id": PENDULUM, "vec_normalize": {"norm_obs": True, "norm_reward": True}},
        {},
        {},
    ),
    "mbpo-two-envs": (27, 100, {"env_id": SWING, "n_envs": 2}, {}, {}),
    "mbpo-arguments": (
        28,
        100,
        {"env_id": SWING},
        {"rollout": RolloutLength(1, 3, 90, 110)},
        {"algorithm_kwargs": {**ALGORITHM, "policy_kwargs": {"net_arch": [16]}, "ent_coef": 0.1}},
    ),
    # A file cannot hold the object, so it is given again when the file is loaded.
    "mbpo-object": (
        29,
        100,
        {"env_id": SWING, "action_noise": 0.3},
        {},
        {"algorithm": TD3},
    ),
    "mbpo-reward": (
        30,
        100,
        {"env_id": PENDULUM, "termination": True, "reward": True},
        {"method": "mse"},
        {},
    ),
}

#: One method of each form of spread that a model's file can hold.
MODEL_FILES = (
    *("bilevel", "bilevel-constant", "bilevel-temperature", "bilevel-mixture"),
    *("nll", "nll-mixture", "mse", "faithful"),
)


def modules(generator: torch.Generator) -> dict[str, torch.nn.Module]:
    """Small policies, rewards and losses."""
    small: dict[str, Any] = {"generator": generator, "members": 2, "hidden": (4,)}
    return {
        "gaussian": GaussianPolicy(3, 2, **small),
        "gaussian-network": GaussianPolicy(3, 2, scale="network", **small),
        "gaussian-detached": GaussianPolicy(3, 2, scale="detached", **small),
        "gaussian-tempered": GaussianPolicy(3, 2, scale="tempered", **small),
        "gaussian-separate": GaussianPolicy(3, 2, scale="separate", **small),
        "full-gaussian": FullGaussianPolicy(3, 2, **small),
        "mixture": MixturePolicy(3, 2, components=3, **small),
        "categorical": CategoricalPolicy(3, 4, **small),
        "mahalanobis": Mahalanobis(2, "full", 1.5),
        "rbf": RBF(2, "diagonal", 1.5),
        "reward-matrix": RewardMatrix(torch.randn(3, 3, generator=generator)),
        "neural-reward": NeuralReward(3, 2, generator=generator, hidden=(4,)),
        "policy-gradient": PolicyGradient(Mahalanobis(2, "diagonal", 1.5)),
    }


def rules(entry: Entry) -> dict[str, Any]:
    """The known rules of an entry, as arguments."""
    env = make_env(entry["env_id"])
    builders: dict[str, Callable[[Any], Any]] = {
        "termination": termination_rule,
        "reward": reward_rule,
    }
    return {name: build(env) for name, build in builders.items() if entry.get(name)}


def inputs(env_id: str, seed: int) -> Entry:
    """Three observations that are not far from the task's own, and an action at each."""
    env, random = make_env(env_id), np.random.default_rng(seed)
    space: Any = env.action_space
    obs = random.normal(size=(3, env.observation_space.shape[0])) * 0.3
    if isinstance(space, gym.spaces.Discrete):
        action = np.eye(int(space.n))[[0, 1, 0]]
    else:
        action = random.uniform(space.low, space.high, size=(3, *space.shape))
    return {"obs": obs.round(2).tolist(), "action": action.round(2).tolist()}


def steps(env_id: str, count: int, seed: int) -> Transitions:
    """Random steps."""
    env = make_env(env_id)
    space: Any = env.action_space
    return collect(env, RandomBehaviour(space, np.random.default_rng(seed)), count, seed=seed)


def objects(entry: Entry) -> dict[str, Any]:
    """Arguments of the held algorithm that no file holds."""
    if "action_noise" not in entry:
        return {}
    return {"action_noise": NormalActionNoise(np.zeros(1), np.full(1, entry["action_noise"]))}


def store_agent(name: str, kind: str, agent: Any, entry: Entry) -> Entry:
    """Save it; what the loaded one says, and then does."""
    path = HERE / f"{name}.safetensors"
    agent.save(path)
    entry = {"kind": kind, **entry, "inputs": inputs(entry["env_id"], agent.seed)}
    if kind == "mpc":
        loaded: Any = MPC.load(path, environment(entry, make_env), device="cpu", **rules(entry))
    else:
        loaded = MBPO.load(
            path, environment(entry, make_env), algorithm_kwargs=objects(entry), **rules(entry)
        )
    untouched = kind == "mpc" and not len(loaded.experience)
    if untouched:  # It refuses to act before its first step.
        entry["says"] = {"num_timesteps": loaded.num_timesteps, "seed": loaded.seed}
    else:
        entry["says"] = of_agent(loaded, kind, entry["inputs"])
    return entry | {"goes_on": going_on(loaded)}


def main() -> None:
    """Make all files."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="learn\\(\\) ended")
    found: dict[str, Entry] = {}
    for name, (seed, count, entry, settings) in MPC_FILES.items():
        env, own = environment(entry, make_env), MPCSettings(**{**SMALL_MPC, **settings})
        mpc = MPC(env, own, seed=seed, device="cpu", **rules(entry))
        if count:
            mpc.learn(count)
        found[name] = store_agent(name, "mpc", mpc, entry)
    for name, (seed, count, entry, settings, given) in MBPO_FILES.items():
        given = {"algorithm_kwargs": {**ALGORITHM, **objects(entry)}, **given, **rules(entry)}
        own = MBPOSettings(**{**SMALL_MBPO, **settings})
        mbpo = MBPO(environment(entry, make_env), own, seed=seed, **given)
        found[name] = store_agent(name, "mbpo", mbpo.learn(count), entry)
    entry = {"env_id": PENDULUM, "termination": True}
    own = MBPOSettings(**{**SMALL_MBPO, "branching": Branching("tsinf", penalty=1.0)})
    given = {"algorithm_kwargs": ALGORITHM, **rules(entry)}
    offline = MBPO(environment(entry, make_env), own, seed=31, **given)
    offline.learn_offline(50, steps(PENDULUM, 120, 31))
    found["mbpo-offline"] = store_agent("mbpo-offline", "mbpo", offline, entry)

    data = steps(PENDULUM, 150, 41)
    for method in MODEL_FILES:
        name, known = f"model-{method}", method in ("nll", "mse")
        # Two learn the termination, whose network makes for a larger file.
        ends = method not in ("bilevel", "nll-mixture")
        entry = {"kind": "model", "env_id": PENDULUM, "termination": ends, "reward": known}
        small = {key: SMALL[key] for key in ("members", "hidden", "schedule")}
        generator = torch.Generator().manual_seed(41)
        model, _ = fit_dynamics(
            data, get_method(method), generator=generator, **small, **rules(entry)
        )
        path = HERE / f"{name}.safetensors"
        save_model(path, model)
        entry["inputs"] = inputs(PENDULUM, 41)
        entry["says"] = of_model(load_model(path, **rules(entry)), entry["inputs"])
        found[name] = entry

    fresh = modules(torch.Generator().manual_seed(52))
    for name, module in modules(torch.Generator().manual_seed(51)).items():
        with torch.no_grad():  # Also what starts at zero gets a value of its own.
            for value in module.parameters():
                value += 0.25
        path = HERE / f"parameters-{name}.safetensors"
        save_parameters(path, module)
        load_parameters(path, fresh[name])
        found[path.stem] = {"kind": "parameters", "says": of_module(fresh[name])}
    text = json.dumps(found, indent=1, allow_nan=False)
    (HERE / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

"""One peer's work, in the peers' own environment: run by bench, never imported.

``python peer_worker.py NAME JSON`` writes ``ready`` when it is set up, and for every line that it reads
does the work of one call and writes ``done`` and the processor's seconds. JSON holds the sizes. Only the peers' public API is called.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """The sizes of the work, as bench's ``PeerSizes``."""

    obs: int
    action: int
    hidden: list[int]
    members: int
    population: int
    horizon: int
    particles: int
    iterations: int
    elites: int
    rows: int
    batch_size: int
    threads: int


def main() -> None:
    name, work = sys.argv[1], Work(**json.loads(sys.argv[2]))
    torch.set_num_threads(work.threads)
    call = {
        "plan-mbrl-lib": mbrl_plan,
        "plan-torchrl": torchrl_plan,
        "train-mbrl-lib": mbrl_train,
    }[name](work)
    call()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        call()
        print("done", time.process_time() - start, flush=True)


def mbrl_plan(work: Work) -> Callable[[], object]:
    """A whole CEM plan in a PETS ensemble, TS∞."""
    import gymnasium as gym
    import omegaconf
    from mbrl.models import ModelEnv
    from mbrl.planning import TrajectoryOptimizer

    space = types.SimpleNamespace(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (work.obs,)),
        action_space=gym.spaces.Box(-1.0, 1.0, (work.action,)),
    )

    def never(action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.zeros(len(next_obs), 1, dtype=torch.bool)

    generator = torch.Generator().manual_seed(0)
    imagined = ModelEnv(space, _mbrl_model(work, "fixed_model"), never, None, generator)
    settings = {
        "_target_": "mbrl.planning.CEMOptimizer",
        "num_iterations": work.iterations,
        "elite_ratio": work.elites / work.population,
        "population_size": work.population,
        "alpha": 0.1,
        "device": "cpu",
        "lower_bound": "???",
        "upper_bound": "???",
        "return_mean_elites": True,
    }
    optimiser = TrajectoryOptimizer(
        omegaconf.OmegaConf.create(settings),
        -np.ones(work.action),
        np.ones(work.action),
        work.horizon,
        1,
    )
    obs = np.zeros(work.obs, dtype=np.float32)
    return lambda: optimiser.optimize(
        lambda plans: imagined.evaluate_action_sequences(plans, obs, work.particles)
    )


def mbrl_train(work: Work) -> Callable[[], object]:
    """An epoch of ModelTrainer on bootstrapped batches."""
    from mbrl.models import ModelTrainer
    from mbrl.types import TransitionBatch
    from mbrl.util.replay_buffer import BootstrapIterator

    random = np.random.default_rng(0)
    obs, next_obs = random.standard_normal((2, work.rows, work.obs)).astype(np.float32)
    action = random.standard_normal((work.rows, work.action)).astype(np.float32)
    reward = random.standard_normal(work.rows).astype(np.float32)
    ended = np.zeros(work.rows, dtype=bool)
    data = TransitionBatch(obs, action, next_obs, reward, ended, ended)
    batches = BootstrapIterator(data, work.batch_size, work.members, shuffle_each_epoch=True)
    trainer = ModelTrainer(_mbrl_model(work, None))
    return lambda: trainer.train(batches, num_epochs=1, evaluate=False, silent=True)


def _mbrl_model(work: Work, propagation: str | None) -> nn.Module:
    from mbrl.models import GaussianMLP, OneDTransitionRewardModel

    network = GaussianMLP(
        work.obs + work.action,
        work.obs + 1,
        "cpu",
        num_layers=len(work.hidden),
        ensemble_size=work.members,
        hid_size=work.hidden[0],
        propagation_method=propagation,
        activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )
    model: nn.Module = OneDTransitionRewardModel(network, normalize=True, learned_rewards=True)
    return model


class ParticleModel(nn.Module):
    """TorchRL brings no ensemble: what a user would write, a batched product and SiLU in place."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        sizes = [work.obs + work.action, *work.hidden, 2 * (work.obs + 1)]
        pairs = list(pairwise(sizes))
        self.weights = [torch.randn(work.members, a, b) / a**0.5 for a, b in pairs]
        self.biases = [torch.zeros(work.members, 1, b) for _, b in pairs]
        self.work = work

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Next particles [N, P, O] and mean reward [N, 1] from obs [N, P, O], action [N, A]."""
        rows, particles, width = obs.shape
        x = torch.cat([obs, action.unsqueeze(1).expand(-1, particles, -1)], -1)
        members = self.work.members
        x = x.view(rows, members, -1, x.shape[-1]).transpose(0, 1).reshape(members, -1, x.shape[-1])
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = nn.functional.silu(torch.baddbmm(bias, x, weight), inplace=True)
        mean, raw = torch.baddbmm(self.biases[-1], x, self.weights[-1]).chunk(2, -1)
        drawn = mean + nn.functional.softplus(raw) * torch.randn_like(mean)
        drawn = (
            drawn.view(members, rows, -1, width + 1).transpose(0, 1).reshape(rows, particles, -1)
        )
        return obs + drawn[..., :width], drawn[..., width].mean(1, keepdim=True)


def torchrl_plan(work: Work) -> Callable[[], object]:
    """A whole plan of CEMPlanner in a model-based environment of particles."""
    from tensordict import TensorDict
    from torchrl.data import Bounded, Composite, Unbounded
    from torchrl.envs.model_based import ModelBasedEnvBase
    from torchrl.modules import CEMPlanner, SafeModule

    state = (work.particles, work.obs)

    class Imagined(ModelBasedEnvBase):  # type: ignore[misc]
        def __init__(self, world: nn.Module) -> None:
            super().__init__(world, batch_size=torch.Size([]))
            self.state_spec = Composite(particles=Unbounded(state))
            self.observation_spec = Composite(particles=Unbounded(state))
            self.action_spec = Bounded(-1.0, 1.0, (work.action,))
            self.reward_spec = Unbounded((1,))

        def _reset(self, tensordict: TensorDict) -> TensorDict:
            return TensorDict({"particles": torch.zeros(state)}, [])

    keys = {"in_keys": ["particles", "action"], "out_keys": ["particles", "reward"]}
    imagined = Imagined(SafeModule(ParticleModel(work), **keys))
    planner = CEMPlanner(imagined, work.horizon, work.iterations, work.population, work.elites)
    start = imagined.reset()

    def call() -> object:
        with torch.inference_mode():
            return planner(start.clone())

    return call


if __name__ == "__main__":
    main()

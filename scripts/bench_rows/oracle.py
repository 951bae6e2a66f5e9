"""The row of bench on scoring plans in the true simulator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench_rows.pair import ACTION, Pair, Sizes
from envs.known.oracle import Oracle
from envs.tasks.layers import Env
from envs.tasks.make import make_env

_ENV_ID = "HalfCheetah-v5"


def oracle(sizes: Sizes, seed: int) -> Pair:
    """All candidates of a plan; the peer puts one environment back and steps it, plan after plan."""
    real, copy = make_env(_ENV_ID), make_env(_ENV_ID)
    for env in (real, copy):
        env.reset(seed=seed)
        env.action_space.seed(seed)
        for _ in range(20):  # from a state of its own, in motion
            env.step(env.action_space.sample())
    generator = torch.Generator().manual_seed(seed)
    shape = (1, sizes.planner.population, sizes.planner.horizon, ACTION)
    plans = 2.0 * torch.rand(shape, generator=generator) - 1.0
    scorer = Oracle(real, threads=torch.get_num_threads())

    def close() -> None:
        scorer.close()
        real.close()
        copy.close()

    def check() -> None:
        torch.testing.assert_close(
            scorer.score(plans), stepped_returns(copy, plans), rtol=1e-4, atol=1e-4
        )

    return Pair(
        lambda: scorer.score(plans),
        lambda: stepped_returns(copy, plans),
        check,
        peer_name="set_state and step of one environment, plan after plan",
        amount=float(shape[1] * shape[2]),
        unit="simulated steps/s",
        close=close,
    )


def stepped_returns(env: Env, plans: Tensor) -> Tensor:
    """[1, N] of ``plans`` [1, N, H, A], each from where ``env`` was when this was called."""
    task: Any = env.unwrapped
    qpos, qvel = task.data.qpos.copy(), task.data.qvel.copy()
    returns = []
    for actions in plans[0].numpy():
        task.set_state(qpos, qvel)
        returns.append(sum(float(task.step(action)[1]) for action in actions))
    task.set_state(qpos, qvel)
    return torch.tensor([returns])

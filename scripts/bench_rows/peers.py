"""Rows of bench beside other libraries, each in an environment of its own: ``make peers``.

A peer works in a process of its python (``peer_worker.py``); we tell it when, so that both sides
alternate in one run. It gets what tunes it: an allocator told to keep its memory, by variables that only
its process sees. Nothing of the kind is set for us.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from agents.mpc import MPC, MPCSettings
from agents.planners.actions import BoxActions
from agents.planners.cem import CEM
from bench_rows.pair import ACTION, INPUTS, OBS, TARGETS, Pair, Sizes, make_data, make_policy
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import BilevelError
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.imagination.particles import imagined_returns
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.inner.losses import NLL
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.precision import Precision
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.settings import Schedule

#: The python of the peers, as ``make peers`` makes it.
PEERS = Path(os.environ.get("PEERS", ".venv-peers")) / "bin" / "python"

_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


class PeerMissingError(BilevelError):
    """A peer is not installed, or did not start: its row is left out."""


@dataclass(frozen=True)
class PeerSizes:
    """The work of both sides: PETS on HalfCheetah's shapes, as the peers' own examples have it."""

    hidden: tuple[int, ...] = (200, 200, 200, 200)
    members: int = 5
    population: int = 350
    horizon: int = 15
    particles: int = 20
    iterations: int = 5
    elites: int = 35
    rows: int = 5120
    batch_size: int = 256

    @staticmethod
    def of(sizes: Sizes) -> PeerSizes:
        """The usual ones, or tiny where bench is told to be quick."""
        if sizes.rows >= Sizes.rows:
            return PeerSizes()
        return PeerSizes((8,), 2, 10, 3, 4, 2, 2, 320, 32)


class Worker:
    """A peer's process. Raises PeerMissingError if it cannot be set up."""

    def __init__(self, name: str, sizes: PeerSizes) -> None:
        self.processor_seconds: list[float] = []
        if not PEERS.exists():
            raise PeerMissingError(f"{name}: no {PEERS}; install the peers by: make peers")
        threads = torch.get_num_threads()
        work = json.dumps(asdict(sizes) | {"obs": OBS, "action": ACTION, "threads": threads})
        self._process = subprocess.Popen(
            [str(PEERS), str(Path(__file__).with_name("peer_worker.py")), name, work],
            env={**os.environ, **_KEEP_MEMORY, "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            _, told = self._process.communicate()
            last = (told.strip().splitlines() or ["nothing was said"])[-1]
            raise PeerMissingError(
                f"{name}: the peer did not start: {last}; install the peers by: make peers"
            )

    def __call__(self) -> None:
        """One call of its work."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        done, _, seconds = self._process.stdout.readline().partition(" ")
        if done != "done":
            raise PeerMissingError("the peer stopped at its work")
        self.processor_seconds.append(float(seconds))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _beside(
    worker: Worker, ours: Callable[[], object], peer_name: str, amount: float, unit: str
) -> Pair:
    """The pair; what it adds is the ratio in processor time, which others on the machine disturb less."""
    own_seconds: list[float] = []

    def timed() -> None:
        start = time.process_time()
        ours()
        own_seconds.append(time.process_time() - start)

    def facts() -> dict[str, float]:
        peer, own = (statistics.median(s) for s in (worker.processor_seconds, own_seconds))
        return {"processor_ratio": peer / own, "ours_per_processor_second": amount / own}

    return Pair(
        timed,
        worker,
        check=lambda: None,  # each draws its own weights: the work is the same, not the numbers
        peer_name=f"{peer_name}, its allocator tuned",
        amount=amount,
        unit=unit,
        slow=True,
        facts=facts,
        close=worker.close,
    )


def plan_beside(peer: str, precision: Precision, sizes: Sizes, seed: int) -> Pair:
    """A whole CEM plan with a learned reward, ours in ``precision``; the peer's is in float32."""
    work = PeerSizes.of(sizes)
    worker = Worker(f"plan-{peer}", work)
    generator = torch.Generator().manual_seed(seed)
    own = Sizes(work.members, work.hidden)
    policy = make_policy(own, generator, "network")
    inputs, targets = (
        Normaliser(torch.zeros(n), torch.ones(n), torch.zeros(n, dtype=torch.bool))
        for n in (INPUTS, TARGETS)
    )
    model = DynamicsModel(Regression(policy, inputs, targets), OBS).frozen(None, precision)
    planner = CEM(
        horizon=work.horizon,
        population=work.population,
        iterations=work.iterations,
        elite_fraction=work.elites / work.population,
    )
    start = planner.initial_state(1, BoxActions([-1.0] * ACTION, [1.0] * ACTION))
    obs, imagination = torch.zeros(1, OBS), Imagination(work.particles, precision=precision)

    def ours() -> object:
        return planner.plan(
            lambda plans: imagined_returns(model, obs, plans, imagination, generator),
            start,
            generator,
        )

    amount = float(work.population * work.horizon * work.particles * work.iterations)
    return _beside(worker, ours, f"{peer} CEM in float32", amount, "model steps/s")


def train_mbrl_lib(sizes: Sizes, seed: int) -> Pair:
    """An epoch of maximum likelihood: mbrl-lib's ModelTrainer, and ``fit`` with its evaluation."""
    work = PeerSizes.of(sizes)
    worker = Worker("train-mbrl-lib", work)
    own = Sizes(work.members, work.hidden, rows=work.rows)
    generator = torch.Generator().manual_seed(seed)
    policy, data = make_policy(own, generator, "network"), make_data(own, seed)
    steps = work.rows // work.batch_size
    schedule = Schedule(steps, work.batch_size, evaluate_every=steps)
    return _beside(
        worker,
        lambda: fit(policy, NLL(), data, generator=generator, schedule=schedule),
        "mbrl-lib ModelTrainer without evaluation",
        float(steps * work.batch_size),
        "transitions/s",
    )


def episode(sizes: Sizes, seed: int) -> Pair:
    """HalfCheetah-v5 planned at MPCSettings' defaults; the peer is one real minute for 1000 steps."""
    quick = sizes.rows < Sizes.rows
    steps, settings = 20, MPCSettings(schedule=Schedule(steps=50))
    if quick:
        steps, settings = 2, MPCSettings("nll", hidden=sizes.hidden, schedule=Schedule(steps=5))
    env = make_env("HalfCheetah-v5")
    agent = MPC(env, settings, seed=seed, device="cpu").learn(250)
    state, obs = None, np.asarray(env.reset(seed=seed)[0])

    def ours() -> None:
        nonlocal state, obs
        for _ in range(steps):
            action, state = agent.predict(obs, state, deterministic=True)
            obs = env.step(action)[0]

    def minute() -> None:
        """Nothing: its time is set."""

    return Pair(
        ours,
        minute,
        check=lambda: None,
        peer_name="1000 steps in 60 s",
        amount=float(steps),
        unit="planned steps/s",
        peer_seconds=60.0 * steps / 1000.0,
    )


plan_float32_mbrl_lib = partial(plan_beside, "mbrl-lib", "float32")
plan_bfloat16_mbrl_lib = partial(plan_beside, "mbrl-lib", "bfloat16")
plan_float32_torchrl = partial(plan_beside, "torchrl", "float32")
plan_bfloat16_torchrl = partial(plan_beside, "torchrl", "bfloat16")

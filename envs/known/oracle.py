"""The true simulator as a planner's model: what the planner reaches without any model error.

score[s, n] = Σ_h r_h of the n-th action sequence from the present state of the s-th environment.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.mujoco import MujocoEnv
from torch import Tensor

from envs.known.rollouts import Rollouts, judge_of
from envs.tasks.layers import Env, acting_layers, is_bystander
from mbrl_bilevel.base.checks import require_floating
from mbrl_bilevel.base.errors import InvalidInputError

# Attributes that are not state, or that a copy has to keep for itself.
_OWN = frozenset(
    {
        "env",
        "model",
        "data",
        "mujoco_renderer",
        "render_mode",
        "spec",
        "metadata",
        "_metadata",
        "_cached_spec",
        "_saved_kwargs",
        "_ezpickle_args",
        "_ezpickle_kwargs",
        "action_space",
        "observation_space",
        "_action_space",
        "_observation_space",
    }
)


class Oracle:
    """Scores action sequences by trying them out in private copies of real MuJoCo environments.

    Standard tasks whose reward follows from MuJoCo's states (``rollouts.judge_of``) are rolled out
    by MuJoCo alone, which is faster: the states are the same to the last bit, returns to round-off, NaN
    where MuJoCo diverges (the real environment would then go on from its start without a word).

    For all others, and for all where ``exact``, the copies share the wrappers that act on actions
    and rewards, and take over everything the real environment holds: MuJoCo's state with its warm
    start and its derived quantities (Ant and Humanoid take their velocity from positions of the step
    before, which no ``mj_getState`` returns), the model's numbers, and the Python attributes, random
    generators included. So a rollout is bitwise what the real environment would do. Real
    environments are only read.
    """

    def __init__(
        self, env: Env | Sequence[Env], *, threads: int | None = None, exact: bool = False
    ) -> None:
        """``env``: the S real environments (or the one), made by ``gymnasium.make``, of one kind.

        ``threads``: how many rollouts run at a time; None takes one a core, at most 4.
        The scores do not depend on it. Raises ``InvalidInputError`` for anything else.
        """
        self._real = [env] if isinstance(env, gym.Env) else list(env)
        if not self._real:
            raise InvalidInputError("Oracle: env is empty; give at least one environment")
        for real in self._real:
            if not isinstance(real.unwrapped, MujocoEnv):
                raise InvalidInputError(
                    "Oracle: env must be a MuJoCo environment of Gymnasium (MujocoEnv); "
                    f"got {type(real.unwrapped).__name__}, whose state cannot be copied"
                )
        self._exact, self._rollouts = exact, Rollouts(threads)
        self._copies = [_private_copy(self._real[0]) for _ in range(self._rollouts.threads)]
        for real in self._real:
            _check_alike(real, self._copies[0])

    def score(self, actions: Tensor) -> Tensor:
        """Returns [S, N] of the sequences ``actions`` [S, N, H, A], from the real present states.

        Actions are in the environment's units; the result is the undiscounted sum of real rewards,
        in the dtype and on the device of ``actions``. No reward counts after a termination; time
        limits are ignored. Raises ``InvalidInputError`` if the shape does not fit, or a type that is not
        floating.
        """
        expected = (len(self._real), *(self._real[0].action_space.shape or ()))
        require_floating("Oracle.score: actions", actions)
        if actions.ndim != 4 or (actions.shape[0], actions.shape[3]) != expected:
            raise InvalidInputError(
                f"Oracle.score: actions must be [S, N, H, A] with S = {expected[0]} and "
                f"A = {expected[1]}; got {tuple(actions.shape)}"
            )
        returns = torch.empty(actions.shape[:2], dtype=torch.float64)
        if not returns.numel():
            return returns.to(actions)
        for s, real in enumerate(self._real):
            sequences = actions[s].detach().cpu()
            judge = None if self._exact else judge_of(real)
            if judge is None:
                returns[s] = torch.from_numpy(self._stepped(real, sequences.numpy()))
            else:
                returns[s] = self._rollouts.returns(judge, sequences)
        return returns.to(actions)

    def _stepped(self, real: Env, sequences: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Returns [N] of ``sequences`` [N, H, A] in the copies."""
        returns = np.empty(len(sequences))

        def work(worker: int) -> None:
            simulator = self._copies[worker]
            _copy_model(simulator.unwrapped, real.unwrapped)
            for n in range(worker, len(sequences), len(self._copies)):
                _copy_state(simulator, real)
                returns[n] = _rollout(simulator, sequences[n])

        if len(self._copies) == 1:
            work(0)
        else:
            # MuJoCo lets go of the interpreter lock while it steps, so threads are enough.
            with ThreadPoolExecutor(len(self._copies)) as pool:
                list(pool.map(work, range(len(self._copies))))
        return returns

    def close(self) -> None:
        """Close the private copies; the real environments stay open."""
        for simulator in self._copies:
            simulator.close()


def _private_copy(real: Env) -> Env:
    """A new environment like ``real``, without the wrappers that only watch it or cut it off."""
    if real.spec is None:
        raise InvalidInputError(
            f"Oracle: env ({type(real.unwrapped).__name__}) has no spec; register it and make it "
            "with gymnasium.make, so that copies can be made"
        )
    spec = copy.deepcopy(real.spec)
    spec.max_episode_steps = None
    spec.order_enforce = False
    spec.disable_env_checker = True
    spec.additional_wrappers = tuple(
        wrapper
        for wrapper in spec.additional_wrappers
        if not is_bystander(wrapper.name, wrapper.entry_point)
    )
    if "render_mode" in spec.kwargs:
        spec.kwargs["render_mode"] = None
    try:
        return gym.make(spec)
    except ValueError as error:
        raise InvalidInputError(
            f"Oracle: env {real.spec.id!r} cannot be made a second time: {error}; "
            "let its wrappers inherit from gymnasium.utils.RecordConstructorArgs"
        ) from error


def _check_alike(real: Env, simulator: Env) -> None:
    """Raises unless ``simulator`` can take over the state of ``real``."""
    ours, theirs = ([type(layer) for layer in acting_layers(e)] for e in (simulator, real))
    sizes, their_sizes = (
        (m.nq, m.nv, m.nu, m.nbody, m.ngeom, m.nbuffer)
        for m in (_mujoco(simulator).model, _mujoco(real).model)
    )
    if ours != theirs or sizes != their_sizes:
        raise InvalidInputError(
            "Oracle: env must hold environments of one kind, with the same wrappers and a model of "
            f"the same size; got {real} beside {simulator}"
        )


def _copy_model(simulator: Env, real: Env) -> None:
    """Write the numbers of the real model into the copy's: somebody may have perturbed them."""
    ours, theirs = _mujoco(simulator).model, _mujoco(real).model
    for name in dir(theirs):
        value = getattr(theirs, name)
        if isinstance(value, np.ndarray) and value.flags.writeable:
            getattr(ours, name)[...] = value
    for name in dir(theirs.opt):
        value = getattr(theirs.opt, name)
        if isinstance(value, np.ndarray):
            getattr(ours.opt, name)[...] = value
        elif isinstance(value, int | float):
            setattr(ours.opt, name, value)


def _copy_state(simulator: Env, real: Env) -> None:
    """Put ``simulator`` where ``real`` is: MuJoCo's data whole, and every layer's Python state."""
    ours, theirs = _mujoco(simulator), _mujoco(real)
    mujoco.mj_copyData(ours.data, ours.model, theirs.data)
    layers = list(zip(acting_layers(simulator), acting_layers(real), strict=True))
    # Where the real state points to a part of the real environment, the copy points to its own.
    memo: dict[int, Any] = {id(their_layer): our_layer for our_layer, their_layer in layers}
    memo |= {id(theirs.model): ours.model, id(theirs.data): ours.data}
    for our_layer, their_layer in layers:
        for name, value in vars(their_layer).items():
            # Views into MuJoCo's data stay each environment's own.
            is_view = type(value).__module__.partition(".")[0] == "mujoco"
            if name in _OWN or callable(value) or is_view:
                continue
            try:
                our_layer.__dict__[name] = copy.deepcopy(value, memo)
            except TypeError as error:
                raise InvalidInputError(
                    f"Oracle: env holds {name!r} in {type(their_layer).__name__}, which cannot be "
                    f"copied ({error}); leave out that wrapper, or give {name!r} a __deepcopy__"
                ) from error


def _rollout(simulator: Env, actions: npt.NDArray[Any]) -> float:
    """The sum of rewards of ``actions`` [H, A] up to the first termination."""
    total = 0.0
    for action in actions:
        _, reward, terminated, _, _ = simulator.step(action.copy())
        total += float(reward)
        if terminated:
            break
    return total


def _mujoco(env: Env) -> Any:
    """The bare MuJoCo environment; ``model`` and ``data`` are not typed there."""
    return env.unwrapped

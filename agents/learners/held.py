"""A Stable-Baselines3 off-policy algorithm held as a part: made with settings, stored without pickle.

Its parameters, the states of its optimisers, its other tensors and its counters are all that changes in
it; the replay buffer is its holder's.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from numbers import Real
from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from agents.learners.adam import DirectAdam
from agents.learners.named import class_in_file
from mbrl_bilevel.base.checkpoint import Checkpoint
from mbrl_bilevel.base.errors import CheckpointError, DivergedError, InvalidInputError

#: Arguments of an algorithm that its holder decides on.
HELD = frozenset(
    {
        *("env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model"),
        *("buffer_size", "replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage"),
        *("n_steps", "learning_starts", "train_freq", "gradient_steps"),
    }
)
# Of the run or of the environment at hand, not of the agent.
_NOT_KEPT = HELD | {"start_time", "n_envs"}

_MOST = 2**62 - 1
_COUNTS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num")
_STRIDES = ("batch_size", "actor_every", "policy_delay", "target_update_interval")
_ABOVE_ZERO = math.ulp(0.0)
#: From where to where a counter may lie.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys((*_COUNTS, "_n_updates", "_n_calls", "standardised_rows"), (0, _MOST)),
    **dict.fromkeys(_STRIDES, (1, _MOST)),
    "gamma": (0.0, 1.0),
    "tau": (_ABOVE_ZERO, 1.0),
    "reward_scale": (_ABOVE_ZERO, sys.float_info.max),
}

#: Whose state is known by name; and what of a state cannot be negative.
_ADAMS = (torch.optim.Adam, torch.optim.AdamW, DirectAdam)
_NOT_NEGATIVE = ("step", "exp_avg_sq", "max_exp_avg_sq")


def make_algorithm(
    kind: type[OffPolicyAlgorithm],
    env: VecEnv,
    kwargs: Mapping[str, Any],
    *,
    seed: int,
    learning_starts: int,
    gradient_steps: int,
    device: torch.device,
) -> OffPolicyAlgorithm:
    """A new algorithm of this class on ``device``; ``kwargs`` are its own arguments (``policy`` is by default
    "MlpPolicy").

    Raises InvalidInputError for an argument that is the holder's, that is or holds NaN or infinity, or
    that the class refuses.
    """
    if not (isinstance(kind, type) and issubclass(kind, OffPolicyAlgorithm)):
        raise InvalidInputError(f"algorithm must be an OffPolicyAlgorithm class of SB3; got {kind}")
    taken = sorted(HELD & kwargs.keys())
    if taken:
        raise InvalidInputError(
            f"algorithm_kwargs: {taken[0]} is not the algorithm's to choose here; leave it out"
        )
    _require_finite("algorithm_kwargs", kwargs)
    try:
        return kind(
            env=env,
            seed=seed % 2**32,
            device=device,
            buffer_size=env.num_envs,
            learning_starts=learning_starts,
            train_freq=1,
            gradient_steps=gradient_steps,
            # A copy: SB3 writes into its policy_kwargs.
            **{"policy": "MlpPolicy", **deepcopy(dict(kwargs))},
        )
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        said = " ".join(str(error).split())[:300]
        raise InvalidInputError(f"{kind.__name__} cannot be made: {said}") from error


def _require_finite(where: str, value: object) -> None:
    # SB3 takes NaN without a word: the first update turns all that was learned into it.
    if isinstance(value, Mapping):
        for name, part in value.items():
            _require_finite(f"{where}[{name!r}]", part)
    elif isinstance(value, list | tuple):
        for part in value:
            _require_finite(where, part)
    elif isinstance(value, Real) and not math.isfinite(value):
        raise InvalidInputError(f"{where} must be finite; got {value}")


@contextmanager
def divergence_told(algorithm: OffPolicyAlgorithm, at_end: bool = True) -> Iterator[None]:
    """Raises DivergedError where ``algorithm`` ends up with NaN, on which its distributions choke; not ``at_end``: only
    where they did."""
    cause: ValueError | None = None
    try:
        yield
    except ValueError as error:
        cause = error
    if cause is None and not at_end:
        return
    if not all(bool(value.isfinite().all()) for value in algorithm.policy.parameters()):
        raise DivergedError(
            f"training diverged: the policy of {type(algorithm).__name__} holds NaN or infinity; lower "
            "learning_rate in algorithm_kwargs, and look at the size of the rewards"
        ) from cause
    if cause is not None:
        raise cause


def acted_in_turns(
    algorithm: OffPolicyAlgorithm, given: Mapping[str, Any], random: AbstractContextManager[object]
) -> Iterator[int]:
    """SB3's ``OffPolicyAlgorithm.learn(**given)`` but for its updates: before the first collection, and after each one, how
    many there are to be, for the caller to make. What it draws, it draws inside ``random``."""
    with random:
        total, callback = algorithm._setup_learn(
            given["total_timesteps"],
            given["callback"],
            given["reset_num_timesteps"],
            given["tb_log_name"],
            False,
        )
        callback.on_training_start({**given, "self": algorithm, "total_timesteps": total}, {})
    assert algorithm.env is not None
    assert algorithm.replay_buffer is not None
    every: Any = algorithm.train_freq
    yield 0
    while algorithm.num_timesteps < total:
        with random:
            rollout = algorithm.collect_rollouts(
                algorithm.env,
                callback,
                every,
                algorithm.replay_buffer,
                action_noise=algorithm.action_noise,
                learning_starts=algorithm.learning_starts,
                log_interval=given["log_interval"],
            )
        if not rollout.continue_training:
            break
        steps = algorithm.gradient_steps
        count = steps if steps >= 0 else rollout.episode_timesteps
        yield count if algorithm.num_timesteps > algorithm.learning_starts else 0
    with random:
        callback.on_training_end()


def storable(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The arguments that JSON can hold, and the names of the others (objects, classes, functions)."""
    kept, others = {}, []
    for name, value in kwargs.items():
        try:
            as_read = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            others.append(name)
            continue
        if as_read == _listed(value):
            kept[name] = as_read
        else:
            others.append(name)
    return kept, sorted(others)


def algorithm_class(
    path: object, name: str, given: type[OffPolicyAlgorithm] | None
) -> type[OffPolicyAlgorithm]:
    """The class a file names: ``given``, or one of SB3's own. Raises CheckpointError for another."""
    if given is not None:
        if given.__name__ != name:
            raise CheckpointError(
                f"checkpoint {path}: the agent holds a {name}, not a {given.__name__}; "
                f"pass algorithm={name}"
            )
        return given
    try:
        found = class_in_file(name)
    except InvalidInputError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    if found is None:
        raise CheckpointError(
            f"checkpoint {path}: the agent holds a {name[:60]!r}, which is none of Stable-Baselines3's "
            "own; pass its class to load() as algorithm="
        )
    return found


def algorithm_to_checkpoint(
    algorithm: OffPolicyAlgorithm,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the counters that ``fill_algorithm`` needs."""
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Any] = algorithm.get_parameters()
    for part, state in parameters.items():
        if "param_groups" not in state:
            tensors |= {f"{part}.{name}": value.cpu() for name, value in state.items()}
            continue
        for index, own in state["state"].items():
            for name, value in own.items():
                tensors[f"{part}.{index}.{name}"] = torch.as_tensor(value).cpu()
    for name in algorithm._get_torch_save_params()[1]:
        tensors[name] = recursive_getattr(algorithm, name).detach().cpu()
    return tensors, {"counters": _counters(algorithm), "at_rest": _at_rest(parameters)}


def fill_algorithm(
    checkpoint: Checkpoint,
    name: str,
    algorithm: OffPolicyAlgorithm,
    *,
    made_with: Collection[str] = (),
    asked_again: Collection[str] = (),
) -> None:
    """Give a freshly made ``algorithm`` the state stored under ``name``.

    ``made_with``: arguments that it was given, of which the file may hold no counter; those ``asked_again``
    stay as they are. Raises CheckpointError if a part is missing or does not fit.
    """
    fresh: dict[str, Any] = algorithm.get_parameters()
    for part, state in fresh.items():
        where = f"{name}.{part}"
        if "param_groups" in state:
            optimiser = recursive_getattr(algorithm, part)
            state["state"] = _optimiser_state(checkpoint, where, optimiser)
        else:
            for key, value in state.items():
                shape = tuple(value.shape)
                state[key] = checkpoint.require(f"{where}.{key}", shape, value.dtype)
    for key in algorithm._get_torch_save_params()[1]:
        held: Tensor = recursive_getattr(algorithm, key)
        held.data.copy_(checkpoint.require(f"{name}.{key}", tuple(held.shape), held.dtype))
    facts, at_rest = checkpoint.setting(name, dict), _at_rest(fresh)
    # The files of version 0.1 do not say which parameters were never moved.
    if facts.get("at_rest", at_rest) != at_rest:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: states of its {name}'s optimisers are missing; "
            "restore a good copy or save it again"
        )
    try:
        algorithm.set_parameters(fresh, exact_match=True, device=algorithm.device)
        counters = _of_now(facts["counters"])
        known = _counters(algorithm)
        missing = sorted(known.keys() - counters.keys() - set(made_with))
        if missing:
            raise LookupError(f"it has no counter {missing[0]!r}")
        for key, value in counters.items():
            if key not in asked_again:
                _require_counter(key, value, known)
                setattr(algorithm, key, value)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its {type(algorithm).__name__} is damaged: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None


def _at_rest(parameters: Mapping[str, Any]) -> dict[str, list[int]]:
    """The parameters without a state, by optimiser: those that no update has moved."""
    return {
        part: [i for group in own["param_groups"] for i in group["params"] if i not in own["state"]]
        for part, own in parameters.items()
        if "param_groups" in own
    }


def _optimiser_state(
    checkpoint: Checkpoint, where: str, optimiser: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """The states stored under ``where``, by the numbers of their parameters.

    Raises CheckpointError for one of no parameter, or not of its parameter's form.
    """
    owners = [(group, own) for group in optimiser.param_groups for own in group["params"]]
    numbers = {str(number): number for number in range(len(owners))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        if key.startswith(f"{where}."):
            index, _, name = key.removeprefix(f"{where}.").partition(".")
            if index not in numbers:
                raise _misfit(checkpoint, key)
            state.setdefault(numbers[index], {})[name] = value
    for number, found in state.items():
        group, own = owners[number]
        if type(optimiser) in _ADAMS:
            largest = ("max_exp_avg_sq",) if group["amsgrad"] else ()
            wanted = {"step", "exp_avg", "exp_avg_sq", *largest}
            if found.keys() != wanted:
                raise _misfit(checkpoint, f"{where}.{number}.{min(found.keys() ^ wanted)}")
        for name in found:
            _require_state(checkpoint, f"{where}.{number}.{name}", optimiser, group, own)
    return state


def _require_state(
    checkpoint: Checkpoint,
    key: str,
    optimiser: torch.optim.Optimizer,
    group: Mapping[str, Any],
    parameter: Tensor,
) -> None:
    """Raises CheckpointError unless this tensor is of ``parameter``'s form, or, where it may, a number."""
    value, name = checkpoint.require(key), key.rpartition(".")[2]
    number = value.numel() == 1
    # A fused step takes the form of all but its count for granted.
    exact = type(optimiser) in _ADAMS or group.get("fused")
    if name == "step":
        fits = number and (value.is_floating_point() or not exact)
    elif exact:
        fits = value.shape == parameter.shape and value.dtype == parameter.dtype
    else:
        fits = value.shape == parameter.shape or number
    if not fits or (name in _NOT_NEGATIVE and bool((value < 0).any())):
        raise _misfit(checkpoint, key)


def _misfit(checkpoint: Checkpoint, key: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {checkpoint.path}: its {key[:200]} is missing or does not fit its parameter; "
        "restore a good copy or save it again"
    )


def _require_counter(key: str, value: object, known: Mapping[str, Any]) -> None:
    """Raises LookupError, TypeError or ValueError for a counter that cannot be."""
    if key not in known:
        raise LookupError(f"it has a counter {key!r} too many")
    if type(value) is not type(known[key]):
        raise TypeError(f"{key} is {value!r}")
    most = _MOST if isinstance(value, int) else sys.float_info.max
    low, high = _RANGES.get(key, (-most, most))
    if not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{key} is {value!r}")


def _of_now(counters: Mapping[str, Any]) -> dict[str, Any]:
    """Files before FastSAC standardised more than once say only whether it did."""
    found = dict(counters)
    if type(found.get("standardised")) is bool:
        found["standardised_rows"] = int(found.pop("standardised"))
    return found


def _counters(algorithm: OffPolicyAlgorithm) -> dict[str, Any]:
    """Plain numbers among its attributes: steps, updates, what follows from them, and settings."""
    return {
        name: float(value) if isinstance(value, float) else value  # NumPy's are floats, too
        for name, value in vars(algorithm).items()
        if name not in _NOT_KEPT
        if type(value) in (int, bool) or (isinstance(value, float) and math.isfinite(value))
    }


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value

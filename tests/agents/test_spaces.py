"""Actions between the environment's form and the vectors that planners and models see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.cloning import fit_clone
from agents.common.experience import RandomBehaviour, collect
from agents.common.spaces import action_set, from_vectors, require_actions, to_vector, vector_env
from agents.planners.actions import BoxActions, DiscreteActions
from mbrl_bilevel.base.errors import InvalidInputError


def test_choices_become_one_hot_and_come_back() -> None:
    space = gym.spaces.Discrete(4, start=-2)
    vectors = np.stack([to_vector(space, choice) for choice in (-2, 1, 0)])
    assert vectors.tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert vectors.dtype == np.float32
    choices = from_vectors(space, vectors)
    assert choices.tolist() == [-2, 1, 0]
    assert all(space.contains(choice) for choice in choices)
    assert action_set(space) == DiscreteActions(4)


def test_vectors_are_brought_into_the_box_and_its_type() -> None:
    space = gym.spaces.Box(np.array([-0.1, 2.0]), np.array([0.1, 3.0]), dtype=np.float64)
    inside = from_vectors(space, np.array([[0.1, 2.5], [-4.0, 9.0]], dtype=np.float32))
    assert inside.tolist() == [[0.1, 2.5], [-0.1, 3.0]]
    assert all(space.contains(row) for row in inside)
    assert to_vector(space, inside[0]).tolist() == [0.1, 2.5]
    actions = action_set(space)
    assert isinstance(actions, BoxActions)
    assert actions.high.tolist() == [pytest.approx(0.1), 3.0]


def test_a_float_is_rounded_to_an_integer_and_not_cut() -> None:
    space = gym.spaces.Box(-2, 3, (1,), np.int64)
    found = from_vectors(space, np.array([[-1.6], [-0.4], [0.7], [2.9], [9.0]]))
    assert found[:, 0].tolist() == [-2, 0, 1, 3, 3]
    assert found.dtype == np.int64


def test_random_integers_are_uniform() -> None:
    space = gym.spaces.Box(-1, 1, (1,), np.int64)
    behaviour = RandomBehaviour(space, np.random.default_rng(0))
    fast, slow = [], []
    for kept in (slow, fast):  # kinds of episodes take turns, the first is fast
        kept += [int(behaviour(np.zeros(1), t)[0]) for t in range(3000)]
    fast, slow = sorted((fast, slow), key=lambda drawn: np.abs(np.diff(drawn)).mean())[::-1]
    assert np.bincount(np.add(fast, 1)) / 3000 == pytest.approx([1 / 3] * 3, abs=0.04)
    assert set(slow) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("space", "what"),
    [
        (gym.spaces.Discrete(1), "leave a choice"),
        (gym.spaces.MultiDiscrete([2, 3]), "one-dimensional Box or Discrete"),
        (gym.spaces.Box(-1, np.inf, (1,)), "finite bounds"),
    ],
)
def test_other_spaces_are_refused(space: Any, what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        require_actions(space)


def test_the_remedy_for_a_matrix_of_actions_works() -> None:
    """Not that the observation be flattened: the line that the message gives is run here."""
    env: Any = gym.make("InvertedPendulum-v5")
    square = gym.spaces.Box(-3.0, 3.0, (1, 1), np.float32)
    env = gym.wrappers.TransformAction(env, lambda a: a.reshape(1), square)
    with pytest.raises(InvalidInputError, match="action space must be") as caught:
        require_actions(env.action_space)
    said = str(caught.value)
    assert "FlattenObservation" not in said
    remedy = said[said.index("gymnasium.wrappers") :]
    flat = eval(remedy, {"gymnasium": gym, "env": env})
    assert require_actions(flat.action_space).shape == (1,)
    flat.reset(seed=0)
    flat.step(flat.action_space.sample())


def test_a_clone_of_actions_outside_the_space_is_refused() -> None:
    env = gym.make("InvertedPendulum-v5")  # actions from -3 to 3
    space: Any = env.action_space
    data = collect(env, RandomBehaviour(space, np.random.default_rng(0)), 60, seed=0)
    beyond = replace(data, action=2.0 * data.action)
    with pytest.raises(InvalidInputError, match=r"outside the action space, -3 to 3; clip"):
        fit_clone(beyond, space, generator=torch.Generator())
    wide = replace(data, action=np.repeat(data.action, 2, axis=1))
    with pytest.raises(InvalidInputError, match="width 2, those of the environment 1"):
        fit_clone(wide, space, generator=torch.Generator())


def test_an_environment_by_name() -> None:
    """As SB3 takes one; what is none is told in one line."""
    found = vector_env("Pendulum-v1")
    assert found.num_envs == 1
    assert found.observation_space.shape == (3,)
    with pytest.raises(InvalidInputError, match=r"env: .*Pendulumm.*give a registered name"):
        vector_env("Pendulumm-v1")
    with pytest.raises(InvalidInputError, match=r"env must be a gymnasium\.Env"):
        vector_env(3)  # type: ignore[arg-type]

"""Sequences of tasks: their environments, data and contexts; regions that part; a user's own."""

from __future__ import annotations

import numpy as np
import pytest

from agents.common.experience import collect
from envs.tasks.room import Room
from envs.tasks.sequences import SEQUENCES, changing, get_sequence
from mbrl_bilevel.base.errors import InvalidInputError


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_task_has_its_own_env_and_data(name: str) -> None:
    sequence = get_sequence(name)
    assert len({task.name for task in sequence.tasks}) == len(sequence.tasks)
    counts = {"halfcheetah-mix": 10, "halfcheetah-long": 20, "doublependulum-flipped": 3}
    assert len(sequence.tasks) == counts[name] if name in counts else len(sequence.tasks) >= 4
    for task in sequence.tasks:
        env = task.make()
        made = env.unwrapped
        found = {"task": made.task} if isinstance(made, Room) else made.variation  # type: ignore[attr-defined]
        assert found == task.variation
        env.close()
    first, second = sequence.tasks[0], sequence.tasks[-1]
    train, test = first.data(collect, rows=100, test_rows=60, seed=0)
    assert len(train) == 100
    assert 20 <= len(test) <= 60
    assert not {row.tobytes() for row in train.obs} & {row.tobytes() for row in test.obs}
    again = first.data(collect, rows=100, test_rows=60, seed=0)[0]
    np.testing.assert_array_equal(train.next_obs, again.next_obs)
    for other in (first.data(collect, rows=100, test_rows=60, seed=1)[0],
                  second.data(collect, rows=100, test_rows=60, seed=0)[0]):  # fmt: skip
        assert other.obs.shape[1] == train.obs.shape[1]
        assert not np.array_equal(other.next_obs, train.next_obs)


def test_quarters_of_speed_follow_each_other() -> None:
    found = [
        task.data(collect, rows=300, test_rows=200, seed=0)
        for task in SEQUENCES["halfcheetah-speed"].tasks
    ]
    for part in (0, 1):
        means = [float(pair[part].obs[:, 8].mean()) for pair in found]
        assert means == sorted(means)
        assert means[-1] - means[0] > 0.5  # m/s


def test_the_context_is_what_varies() -> None:
    sequence = SEQUENCES["halfcheetah-mix"].with_context()
    width = len(sequence.tasks[0].context)
    assert {len(task.context) for task in sequence.tasks} == {width}
    assert len({task.context for task in sequence.tasks}) == 10
    task = SEQUENCES["halfcheetah-gravity"].with_context().tasks[1]
    assert task.context == (0.5,)
    train, _ = task.data(collect, rows=40, test_rows=20, seed=0)
    assert train.obs.shape[1] == 18
    assert (train.obs[:, -1] == 0.5).all()
    assert (train.next_obs[:, -1] == 0.5).all()
    env = task.make()
    assert env.observation_space.contains(env.reset(seed=0)[0])
    for name in ("halfcheetah-speed", "room"):
        with pytest.raises(InvalidInputError, match="their data only"):
            SEQUENCES[name].with_context()


def test_the_context_says_which_legs_are_lame_or_flipped() -> None:
    tasks = SEQUENCES["halfcheetah-flipped"].with_context().tasks
    # all, bshin, bthigh, fshin, fthigh
    assert [task.context for task in tasks] == [
        (1.0, 1.0, 1.0, 1.0, 1.0),
        (1.0, 1.0, -1.0, 1.0, -1.0),
        (1.0, -1.0, 1.0, -1.0, 1.0),
        (-1.0, 1.0, 1.0, 1.0, 1.0),
    ]
    long = SEQUENCES["halfcheetah-long"].with_context().tasks
    assert len({task.context for task in long}) == 20


def test_a_user_adds_one_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    own = changing("Hopper", [{"wind": w} for w in (0, 10, -10)])
    monkeypatch.setitem(SEQUENCES, "hopper-wind", own)
    assert [t.name for t in get_sequence("hopper-wind").tasks] == [
        "0:wind=0",
        "1:wind=10",
        "2:wind=-10",
    ]
    assert own.with_context().tasks[2].context == (-10.0,)
    with pytest.raises(InvalidInputError, match="did you mean 'hopper-mass'"):
        get_sequence("hopper-mas")
    with pytest.raises(InvalidInputError, match="rows and test_rows"):
        own.tasks[0].data(collect, rows=0, test_rows=1, seed=0)

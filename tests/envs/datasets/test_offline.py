"""Minari data sets: an exact round trip, what other writers wrote, and hostile folders."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from agents.common.experience import RandomBehaviour, collect
from envs.datasets.offline import load_minari, save_minari
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.fixture(scope="module")
def experience() -> Transitions:
    env = make_env("Hopper-v5")
    behaviour = RandomBehaviour(env.action_space, np.random.default_rng(0))  # type: ignore[arg-type]
    return collect(env, behaviour, 300, seed=0, max_episode_steps=20)


def same(a: Transitions, b: Transitions) -> None:
    for field in fields(Transitions):
        left, right = getattr(a, field.name), getattr(b, field.name)
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def test_the_round_trip_is_exact(experience: Transitions) -> None:
    assert experience.terminated.any()
    assert experience.truncated.any()
    folder = save_minari(experience, "lab/hopper/random-v3", make_env("Hopper-v5"), author="me")
    same(load_minari("lab/hopper/random-v3"), experience)
    same(load_minari(folder), experience)
    # Stretches of episodes, with gaps and numbers of their own.
    part = experience[np.r_[3:9, 14:40, 100:103]]
    save_minari(part, "part-v0", make_env("Hopper-v5"))
    same(load_minari("part-v0"), part)


def test_a_loaded_and_filtered_data_set_is_read_as_it_is(experience: Transitions) -> None:
    save_minari(experience, "hopper-v0", make_env("Hopper-v5"))
    loaded = minari.load_dataset("hopper-v0")
    same(load_minari(loaded), experience)
    short = loaded.filter_episodes(lambda episode: len(episode) < 20)
    lengths = np.bincount(experience.episode)
    assert 0 < (lengths < 20).sum() < len(lengths)
    same(load_minari(short), experience[lengths[experience.episode] < 20])
    none = loaded.filter_episodes(lambda episode: len(episode) > 1000)
    with pytest.raises(InvalidInputError, match="holds no steps"):
        load_minari(none)


def test_what_float32_would_lose_comes_back_in_double(experience: Transitions) -> None:
    """At an offset of 5e6 the changes of a state are below its unit in the last place."""
    far = replace(
        experience,
        obs=experience.obs.astype(np.float64) + 5e6,
        next_obs=experience.next_obs.astype(np.float64) + 5e6,
    )
    save_minari(far, "far-v0", make_env("Hopper-v5"))
    same(load_minari("far-v0"), far)


def test_other_readers_find_all_they_need(experience: Transitions) -> None:
    save_minari(
        experience,
        "hopper-v0",
        make_env("Hopper-v5"),
        algorithm_name="random",
        author="me",
        author_email="me@example.org",
        code_permalink="https://example.org/code",
        description="slow and fast noise",
    )
    found = minari.load_dataset("hopper-v0")
    assert found.total_steps == 300
    assert found.spec.env_spec.id == "Hopper-v5"
    assert isinstance(found.recover_environment(), gym.Env)
    metadata = found.storage.metadata
    assert (metadata["algorithm_name"], metadata["author"]) == ("random", {"me"})
    assert metadata["description"] == "slow and fast noise"
    episode = next(iter(found.iterate_episodes()))
    np.testing.assert_array_equal(episode.observations[1:], experience.next_obs[: len(episode)])


def test_a_data_set_of_another_writer() -> None:
    """Double precision, lists, no episode numbers of ours."""
    env, buffers = gym.make("Pendulum-v1"), []
    random = np.random.default_rng(0)
    for length in (15, 10):
        buffers.append(
            EpisodeBuffer(
                observations=list(random.normal(size=(length + 1, 3))),
                actions=list(random.normal(size=(length, 1))),
                rewards=list(random.normal(size=length)),
                terminations=[False] * length,
                truncations=[False] * (length - 1) + [True],
            )
        )
    minari.create_dataset_from_buffers(
        "pendulum-v0",
        buffers,
        env=env,
        algorithm_name="x",
        author="x",
        author_email="x",
        code_permalink="x",
        description="x",
    )
    found = load_minari("pendulum-v0")
    assert found.episode.tolist() == [0] * 15 + [1] * 10
    assert found.t.tolist() == [*range(15), *range(10)]
    assert np.flatnonzero(found.truncated).tolist() == [14, 24]
    np.testing.assert_array_equal(found.obs[1:15], found.next_obs[:14])
    np.testing.assert_array_equal(found.reward[15:], np.float32(buffers[1].rewards))


def test_nothing_is_overwritten(experience: Transitions) -> None:
    folder = save_minari(experience, "hopper-v0", make_env("Hopper-v5"))
    before = (folder / "data" / "main_data.hdf5").read_bytes()
    with pytest.raises(InvalidInputError, match="exists already"):
        save_minari(experience, "hopper-v0", make_env("Hopper-v5"))
    assert (folder / "data" / "main_data.hdf5").read_bytes() == before
    with pytest.raises(InvalidInputError, match="shapes"):
        save_minari(experience, "other-v0", make_env("Pendulum-v1"))


def _cut(folder: Path) -> None:
    path = folder / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:5000])


def _edit(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _drop_rewards(folder: Path) -> None:
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        del file["episode_2"]["rewards"]


def _nan(folder: Path) -> None:
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file["episode_1"]["observations"][2] = np.nan


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_cut, "damaged"),
        (_edit(total_steps=301), "promises"),
        (_edit(total_steps=10), "episode 0|holds"),
        (_edit(data_format="pickle"), "only hdf5"),
        (_edit(observation_space=None), "no spaces"),
        (_edit(observation_space='{"type": "Discrete", "n": 3}'), "1-D Box|damaged"),
        (lambda folder: (folder / "metadata.json").write_text("{"), "metadata is damaged"),
        (lambda folder: (folder / "metadata.json").unlink(), "not found"),
        (_drop_rewards, "damaged"),
        (_nan, "NaN"),
    ],
)
def test_a_damaged_data_set_is_one_line(experience: Transitions, damage: Any, told: str) -> None:
    folder = save_minari(experience, "hopper-v0", make_env("Hopper-v5"))
    damage(folder / "data")
    with pytest.raises(InvalidInputError, match=told) as caught:
        load_minari("hopper-v0")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "told"), [("none-v0", "minari download"), ("a b", "NAME-vN")])
def test_an_unknown_data_set_says_how_to_get_it(name: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        load_minari(name)


def test_an_environment_named_by_the_data_is_never_made(experience: Transitions) -> None:
    """Minari makes it where a space is missing: code chosen by whoever wrote the file."""
    folder = save_minari(experience, "hopper-v0", make_env("Hopper-v5"))
    path = folder / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    spec = json.loads(metadata["env_spec"]) | {"entry_point": "pathlib:Path.touch"}
    del metadata["action_space"]
    path.write_text(json.dumps(metadata | {"env_spec": json.dumps(spec)}))
    with pytest.raises(InvalidInputError, match="metadata"):
        load_minari("hopper-v0")

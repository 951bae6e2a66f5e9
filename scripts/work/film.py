"""An episode as a video: what happened, beside it what the model imagined, below it both as curves with intervals.

Every ``ahead`` steps the model starts from what is observed and is told the actions that were then taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.common.spaces import to_vector
from envs.known.shown import Shown
from envs.tasks.drawing import make_drawable, picture_of
from envs.tasks.layers import Env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.figures.film import Curve, Strip, draw_strip
from mbrl_bilevel.imagination.particles import StepModel, imagined_trajectories
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.studies.arguments import naming
from mbrl_bilevel.studies.video import Picture, captioned, require_ffmpeg, tiled, write_video

Array = npt.NDArray[np.float64]
#: ``act(observation [O]) -> action``, once a step from the first of an episode on.
Act = Callable[[Any], Any]

#: Pixels of a picture of the task under its caption, and of the curves.
_PANEL, _STRIP = (480, 386), (960, 220)
#: At most so many pictures a second: slower than life where the task steps faster.
_MOST_FPS = 25.0
_PARTICLES = 20  # of each member
#: Steps of a film at most, where nobody says otherwise.
FILM_STEPS = 200


@dataclass(frozen=True)
class Filmed:
    """What was written: the file, its pictures, and the return of the steps that are on it."""

    path: Path
    steps: int
    total: float


@dataclass(frozen=True)
class _Episode:
    obs: Array
    actions: Array
    rewards: Array
    places: Sequence[Array]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class _Imagined:
    """Of steps 1 … T: the mean, low and high of observations [T, O] with the reward last [T, O + 1]."""

    mean: Array
    low: Array
    high: Array


def require_film(option: str, env_id: str, **options: Any) -> None:
    """Raises InvalidInputError, by the name of ``option``, where this environment cannot be filmed here: told
    before the work begins."""
    with naming(option):
        require_ffmpeg()
        make_drawable(env_id, **options).close()


def acting(agent: Any) -> Act:
    """The agent as it acts without exploration, its plan carried from step to step."""
    state: Any = None

    def act(obs: Any) -> Any:
        nonlocal state
        action, state = agent.predict(obs, state, deterministic=True)
        return action

    return act


def film(
    path: Path,
    player: Callable[[Env], Act],
    model: StepModel | None,
    make: Callable[[], Env],
    *,
    seed: int,
    steps: int = FILM_STEPS,
    ahead: int = 25,
) -> Filmed:
    """Film an episode of at most ``steps`` that begins at ``seed``.

    ``make``: a new environment that can be drawn (``make_drawable``); ``player``: who acts in it; ``model``:
    what imagines, None: nothing.
    """
    env = make()
    episode = _played(env, player(env), seed, steps)
    fps = min(float(env.metadata.get("render_fps") or _MOST_FPS), _MOST_FPS)
    taken = len(episode.actions)
    starts = range(0, taken, ahead)
    if model is None:
        right: Sequence[Picture] | None = None
        strip = None
    else:
        imagined = _imagined(model, episode, starts, ahead, seed)
        shown = Shown(make())
        right = _imagined_pictures(shown, episode, imagined, starts, ahead) if shown.knows else None
        size = _STRIP if right is not None else _PANEL
        strip = draw_strip(
            _curves(episode, imagined), starts, size, columns=4 if right is not None else 1
        )
    env.close()
    written = write_video(path, list(_composed(episode, right, strip, ahead)), fps)
    return Filmed(written, taken, float(episode.rewards.sum()))


def _played(env: Env, act: Act, seed: int, steps: int) -> _Episode:
    obs, _ = env.reset(seed=seed)
    seen: list[Any] = [obs]
    actions: list[Any] = []
    rewards: list[float] = []
    over = False
    places, pictures = [_place(env)], [picture_of(env)]
    while not over and len(actions) < steps:
        action = act(np.asarray(obs))
        obs, reward, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
        seen.append(obs)
        actions.append(to_vector(env.action_space, action))
        rewards.append(float(reward))
        places.append(_place(env))
        pictures.append(picture_of(env))
    arrays = [np.asarray(part, dtype=np.float64) for part in (seen, actions, rewards)]
    return _Episode(arrays[0], arrays[1], arrays[2], places, pictures)


def _place(env: Env) -> Array:
    """MuJoCo's positions: what an observation may leave out of them, where the robot is."""
    data = getattr(env.unwrapped, "data", None)
    return np.array(getattr(data, "qpos", ()), dtype=np.float64)


def _imagined(
    model: StepModel, episode: _Episode, starts: Sequence[int], ahead: int, seed: int
) -> _Imagined:
    generator = torch.Generator(model.device).manual_seed(seed)
    imagination = Imagination(particles=_PARTICLES * model.members, sample=True)
    parts = []
    for start in starts:
        actions = torch.from_numpy(episode.actions[start : start + ahead]).float()
        obs = torch.from_numpy(episode.obs[start : start + 1]).float()
        told = (obs.to(model.device), actions[None].to(model.device))
        states, rewards = imagined_trajectories(model, *told, imagination, generator)
        cloud = torch.cat([states[:, 0], rewards[:, 0, :, None]], -1).double().cpu().numpy()
        low, high = np.nanquantile(cloud, (0.05, 0.95), axis=0)
        parts.append((cloud.mean(0), low, high))
    return _Imagined(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _imagined_pictures(
    shown: Shown, episode: _Episode, imagined: _Imagined, starts: Sequence[int], ahead: int
) -> list[Picture]:
    """The imagined states as pictures, a picture a step; step 0 is as it was."""
    found = [episode.pictures[0]]
    for start in starts:
        path = imagined.mean[start : start + ahead, :-1]
        found += shown.pictures(path, episode.places[start])
    return found


def _curves(episode: _Episode, imagined: _Imagined) -> list[Curve]:
    """Three observations from positions to velocities that vary at all, and the reward."""
    varying = np.flatnonzero(np.ptp(episode.obs, axis=0) > 1e-6)
    if len(varying) == 0:
        raise InvalidInputError("the episode's observations do not vary; there is nothing to film")
    places = np.unique(np.linspace(0, len(varying) - 1, 3).round().astype(int))
    first = np.full((1, imagined.mean.shape[1]), np.nan)
    mean, low, high = (
        np.concatenate([first, part]) for part in (imagined.mean, imagined.low, imagined.high)
    )
    true = np.column_stack([episode.obs, [np.nan, *episode.rewards]])
    names = {int(d): f"observation {d}" for d in varying[places]} | {-1: "reward"}
    return [Curve(name, true[:, d], mean[:, d], low[:, d], high[:, d]) for d, name in names.items()]


def _composed(
    episode: _Episode, right: Sequence[Picture] | None, strip: Strip | None, ahead: int
) -> Iterator[Picture]:
    totals = [0.0, *np.cumsum(episode.rewards)]
    for step, picture in enumerate(episode.pictures):
        said = f"what happened: step {step}, return {totals[step]:.1f}"
        left = captioned(picture, said, _PANEL)
        if strip is None:
            yield left
        elif right is None:
            yield tiled([[left, strip.at(step)]])
        else:
            steps = step % ahead or min(step, ahead)
            imagined = f"what the model imagined, {steps} steps ahead"
            yield tiled([[left, captioned(right[step], imagined, _PANEL)], [strip.at(step)]])

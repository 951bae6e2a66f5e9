"""What cannot matter for what is paid: systems whose ties are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step, Transitions
from mbrl_bilevel.data.splits import Chain, FitData, cross_fit
from mbrl_bilevel.models.dynamics import fit_dynamics, weights_by_name
from mbrl_bilevel.outer.relevance import Relevance
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

EPISODES, STEPS = 24, 50

#: obs [S], action -> the next obs [S].
Move = Callable[[np.ndarray, float], np.ndarray]
Pay = Callable[[np.ndarray, float], float]

MIXING = 2.5 * np.random.default_rng(7).standard_normal((6, 6)) / np.sqrt(6)


def driven(own: np.ndarray, action: float) -> np.ndarray:
    """The action pushes the third, that the second, that the first."""
    return own + 0.4 * np.tanh([own[1] - own[0], 2.0 * own[2] - own[1], 2.0 * action - own[2]])


def chaotic(other: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(other @ MIXING))


def steps(move: Move, pay: Pay, states: int, seed: int = 0) -> Transitions:
    random = np.random.default_rng(seed)
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(EPISODES):
        obs = random.standard_normal(states)
        for _ in range(STEPS):
            action = random.uniform(-1.0, 1.0)
            after = move(obs, action)
            for row, value in zip(rows, (obs, [action], after, [pay(after, action)]), strict=True):
                row.append(np.array(value))
            obs = after
    obs, action, after, paid = (np.stack(row) for row in rows)
    ends = np.arange(len(obs)) % STEPS == STEPS - 1
    return Transitions.from_arrays(obs, action, after, paid[:, 0], truncated=ends)


def beside(obs: np.ndarray, action: float) -> np.ndarray:
    return np.concatenate([driven(obs[:3], action), chaotic(obs[3:])])


def first(obs: np.ndarray, action: float) -> float:
    return float(obs[0] - 0.1 * action**2)


def weights(
    found: Transitions,
    terminated: Callable[[Tensor], Tensor] | None = None,
    ended: Tensor | None = None,
) -> list[float]:
    """Of the dimensions of the state, as Relevance has them; what a step pays is known."""
    states = found.obs.shape[1]
    raw = torch.from_numpy(np.concatenate([found.obs, found.action], 1)).float()
    change = torch.from_numpy(found.next_obs - found.obs).float()
    scale = change.std(0)
    paid = torch.from_numpy(found.reward).float()

    def outcome(x: Tensor, y: Tensor) -> Step:
        ends = torch.zeros(len(paid)) if terminated is None else terminated(raw[:, :states])
        return Step(x, paid.unsqueeze(0), ends.unsqueeze(0))

    nobody = torch.full((len(raw),), -1)
    chain = Chain(nobody, torch.diag(scale), torch.zeros(states), 1, outcome=outcome, ended=ended)
    folds = cross_fit(found.episode, 5, np.random.default_rng(0))
    x = (raw - raw.mean(0)) / raw.std(0)
    return Relevance().weights(FitData(x, change / scale, folds, chain)).tolist()


def test_another_system_is_let_go_and_what_pays_by_way_of_others_is_not() -> None:
    assert weights(steps(beside, first, 9)) == pytest.approx([1.0] * 3 + [0.02] * 6)


def test_where_all_is_one_system_all_of_it_counts() -> None:
    assert weights(steps(driven, first, 3)) == [1.0] * 3


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_noise_and_what_only_follows_the_task_are_let_go(seed: int) -> None:
    random = np.random.default_rng(100 + seed)

    def move(obs: np.ndarray, action: float) -> np.ndarray:
        return np.concatenate([driven(obs[:3], action), random.standard_normal(4)])

    assert weights(steps(move, first, 7, seed)) == pytest.approx([1.0] * 3 + [0.02] * 4)


def test_where_nothing_pays_nothing_is_let_go() -> None:
    assert weights(steps(beside, lambda obs, action: 1.0, 9)) == [1.0] * 9
    drawn = np.random.default_rng(5)
    assert weights(steps(beside, lambda obs, action: drawn.standard_normal(), 9)) == [1.0] * 9


def test_what_ends_an_episode_counts() -> None:
    found = steps(beside, lambda obs, action: 1.0, 9)
    assert weights(found, lambda obs: (obs[:, 0] > 1.0).float()) == pytest.approx(
        [1.0] * 3 + [0.02] * 6
    )

    seen = torch.from_numpy(found.obs[:, 0] > 1.0)  # as data say that no rule tells
    assert weights(found, ended=seen) == pytest.approx([1.0] * 3 + [0.02] * 6)


def test_what_is_paid_and_not_understood_lets_nothing_go() -> None:
    found = steps(beside, first, 9)
    few = torch.zeros(len(found), dtype=torch.bool)
    few[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:5]] = True
    assert weights(found, ended=few) == [1.0] * 9


def test_one_that_pays_is_not_lost_among_many_that_do_not() -> None:
    random = np.random.default_rng(1000)

    def move(obs: np.ndarray, action: float) -> np.ndarray:
        noise = random.standard_normal(17)
        alone = 0.9 * obs[3] + 0.4 * noise[0]
        return np.concatenate([driven(obs[:3], action), [alone], noise[1:]])

    def pay(after: np.ndarray, action: float) -> float:
        return float(after[0] + 0.25 * after[3])

    assert weights(steps(move, pay, 20, 1000))[:4] == [1.0] * 4


def test_one_that_pays_too_roughly_for_the_shallow_model_counts() -> None:
    random = np.random.default_rng(0)

    def move(obs: np.ndarray, action: float) -> np.ndarray:
        alone = 0.998 * obs[3] + 0.04 * random.standard_normal()
        others = [chaotic(obs[4:10]), chaotic(obs[10:])]
        return np.concatenate([driven(obs[:3], action), [alone], *others])

    def pay(after: np.ndarray, action: float) -> float:
        return float(after[0] + np.cos(12.0 * after[3]))

    assert weights(steps(move, pay, 16))[:4] == [1.0] * 4


def test_with_hardly_any_rows_it_says_nothing() -> None:
    found = steps(beside, first, 9)
    assert weights(found[np.arange(0, len(found), 20)]) == [1.0] * 9


def test_the_method_leaves_the_network_to_the_task() -> None:
    found, test = steps(beside, first, 9), steps(beside, first, 9, seed=1)
    errors = {}
    for name in ("bilevel", "bilevel-return"):
        model, result = fit_dynamics(
            found,
            METHODS[name],
            generator=torch.Generator().manual_seed(0),
            members=3,
            hidden=(8,),
            schedule=Schedule(steps=600, batch_size=128, learning_rate=3e-3),
        )
        obs, action = torch.from_numpy(test.obs), torch.from_numpy(test.action)
        said = model.regression.dist(torch.cat([obs, action], 1).float()).mean.mean(0)[:, :3]
        true = torch.from_numpy(test.next_obs - test.obs)[:, :3]
        errors[name] = float((said - true).square().mean().sqrt())
        told = weights_by_name(result, [*(f"{i}" for i in range(9)), "reward"])
        moved = torch.cat([obs, action], 1).float()
        moved[:, 3:9] += 1.0
        apart = (model.regression.dist(moved).mean.mean(0)[:, :3] - said).abs().max()
        assert bool(apart == 0.0) is (name == "bilevel-return")  # it does not see what it lets go
    assert errors["bilevel-return"] < 0.8 * errors["bilevel"]
    assert told["0"] == told["2"] == told["reward"]
    assert told["3"] == pytest.approx(0.02 * told["0"])


def test_without_hidden_layers_the_spread_does_not_see_them_either() -> None:
    heard = []

    def told(data: FitData) -> Tensor:
        assert data.chain is not None
        heard.append(data.chain.ended)
        return torch.where(torch.arange(data.y.shape[1]) == 3, 0.02, 1.0)

    model, _ = fit_dynamics(
        found := steps(beside, first, 9),
        replace(METHODS["bilevel-return"], relevance=told),
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(),
        schedule=Schedule(steps=210, batch_size=64),
    )
    (ended,) = heard
    assert ended is not None
    assert torch.equal(ended, torch.zeros(len(found), dtype=torch.bool))
    x = torch.from_numpy(np.concatenate([found.obs, found.action], 1)).float()
    moved = x + 3.0 * (torch.arange(10) == 3)
    before, after = model.regression.dist(x), model.regression.dist(moved)
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.marginals()[1], before.marginals()[1])


@pytest.mark.parametrize(
    "wrong", [{"floor": 0.0}, {"share": 1.5}, {"level": 0.0}, {"draws": 0}, {"sigmas": -1.0}]
)
def test_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match="Relevance"):
        replace(Relevance(), **wrong)  # type: ignore[arg-type]

"""continual --agents end to end on two tasks that are each other's opposite, and what is said of known matrices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.planning_agent import refits
from agents.planning_agent.keeping import Keeping
from agents.sequence_agents import SequenceAgent, by_task, get_sequence_agent
from envs.tasks.sequences import SEQUENCES, Task, TaskSequence
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.pages.page import write_page
from mbrl_bilevel.studies.agent_summaries import agent_scores
from mbrl_bilevel.studies.launching import launch
from mbrl_bilevel.training.settings import Schedule
from tests.agents.test_next_task import Sided
from tests.scripts.test_continual import ran

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import continual  # noqa: E402
from work import continual_agents  # noqa: E402

AGENTS = ["planning+policy=1", "sac", "sac+alone", "sac+joint"]
TINY = [
    *[
        "--quiet",
        "--no-report",
        "--sequences",
        "sides",
        "--agents",
        *AGENTS,
        "--agent-steps",
        "120",
    ],
    *["--learning-starts", "70", "--updates-per-step", "1", "--eval-episodes", "2"],
    *["--seeds", "1"],
]


class Half(Sided):
    """x alone is seen; a task succeeds where it ends near the middle."""

    def __init__(self, side: int = 1) -> None:
        super().__init__(side)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def _seen(self) -> Any:
        return np.array([self.x], np.float32)

    def step(self, action: Any) -> Any:
        *found, info = super().step(action)
        return *found, {**info, "success": abs(self.x) < 0.1}


@pytest.fixture(autouse=True)
def sides(monkeypatch: pytest.MonkeyPatch) -> None:
    if "Half-v0" not in gym.registry:
        gym.register("Half-v0", entry_point=Half, max_episode_steps=12)
    tasks = tuple(Task(f"side {side}", "Half-v0", {"side": side}) for side in (1, -1))
    monkeypatch.setitem(SEQUENCES, "sides", TaskSequence("changing", tasks, ""))


@pytest.mark.filterwarnings("ignore:the fit ended at its limit")
def test_a_run_has_a_row_for_each_agent_and_ends_the_same_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How good the models are is not looked at.
    monkeypatch.setattr(
        refits, "fit_dynamics", lambda *a, **k: fit_dynamics(*a, **k | {"schedule": Schedule(40)})
    )
    found = ran(tmp_path / "a", tiny=TINY)
    assert [row["method"] for row in found["rows"]] == AGENTS
    for matrices in found["matrices"]:
        for metric in ("return", "success"):
            assert np.array(matrices[metric], dtype=float).shape == (2, 2)
        assert ((np.array(matrices["success"]) >= 0) & (np.array(matrices["success"]) <= 1)).all()
    by_name = {row["method"]: row for row in found["rows"]}
    assert np.array(by_name["sac"]["return_curves"]).shape == (2, 5)
    # While a task is learned for the last time, it is what stands after it.
    sac = next(m for m in found["matrices"] if m["method"] == "sac")
    assert by_name["sac"]["return_curves"][0][-1] == sac["return"][0][0]
    assert by_name["sac+joint"]["return_curves"] == []
    table = {line["agent"]: line for line in found["agents"]["table"]}
    assert table["sac"]["forward"] is not None
    assert table["planning+policy=1"]["forward"] is None  # planning+alone was not run
    assert write_page([tmp_path / "a"], tmp_path / "page.html").plots >= 2

    rows = (tmp_path / "a" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "rows.jsonl").write_text("".join(rows[:1] + rows[2:]))
    for name in ("metrics.json", "summary.json"):
        (tmp_path / "a" / name).unlink()
    assert ran(tmp_path / "a", "--resume", tiny=TINY) == found


class Counting:
    """An agent whose policy is the number of times that it learned."""

    def __init__(self) -> None:
        self.algorithm, self.device, self.policy = self, "cpu", {"times": torch.zeros(())}

    def learn(self, *args: Any, **kwargs: Any) -> None:
        self.policy["times"] += 1

    def get_parameters(self) -> Any:
        return {"policy": self.policy}

    def set_parameters(self, found: Any, device: str) -> None:
        self.policy = found["policy"]


@pytest.mark.parametrize(("keep", "ends"), [(True, 3), (False, 5)])
def test_a_task_ends_with_the_best_policy_of_its_looks_where_that_is_kept(
    keep: bool, ends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that is told is the best at the first, the one that chooses at the third, episodes of its own."""
    args = continual.Args(
        sequences=("sides",), agents=("sac",), agent_steps=100, keep_best=keep, out=Path("no")
    )
    bed = continual_agents.Bed(args, SEQUENCES["sides"].tasks, 0)
    by_starts = {1_000_000: [9.0, 1.0, 2.0, 3.0, 4.0], 2_000_000: [1.0, 2.0, 8.0, 7.0, 0.0]}

    def score(self: Any, policy: Counting, j: int, starts: int = 1_000_000) -> dict[str, float]:
        return {"return": by_starts[starts][int(policy.policy["times"]) - 1]}

    monkeypatch.setattr(continual_agents.Bed, "score", score)
    agent: Any = Counting()
    curve = bed.learn(agent, 0)
    assert [look["return"] for look in curve] == by_starts[1_000_000]
    assert int(agent.policy["times"]) == ends


def test_scores_are_those_of_continual_world() -> None:
    """Two tasks, random 0 and −10, best 10 and 10: p = r/10 and (r + 10)/20."""

    def row(method: str, seed: int, matrix: Any, curves: Any) -> Any:
        return {
            **{"method": method, "sequence": "two", "seed": seed},
            **{"return": matrix, "return_before": [0.0, -10.0], "return_curves": curves},
        }

    rows = [
        row("sac", 0, [[10.0, -10.0], [4.0, 10.0]], [[0.0, 10.0], [0.0, 10.0]]),
        row("sac+alone", 0, [[8.0, 0.0], [0.0, 6.0]], [[0.0, 8.0], [-10.0, 6.0]]),
        row("sac+replay=9", 0, [[10.0, -10.0], [9.0, 8.0]], [[2.0, 10.0], [-10.0, 8.0]]),
    ]
    found = agent_scores(rows, ["sac+replay=9", "sac", "sac+alone"], "return")
    table = {line["agent"]: line for line in found["table"]}
    mean = {
        name: {part: line[part] and line[part]["mean"] for part in ("performance", "forgetting")}
        for name, line in table.items()
    }
    assert mean["sac"] == {"performance": pytest.approx(0.7), "forgetting": pytest.approx(0.6)}
    assert mean["sac+replay=9"]["performance"] == pytest.approx((0.9 + 0.9) / 2)
    assert mean["sac+replay=9"]["forgetting"] == pytest.approx(0.1)
    assert mean["sac+alone"] == {"performance": pytest.approx(0.8), "forgetting": None}
    # Areas: sac .5 and .75, alone .4 and .4.
    wanted = ((0.5 - 0.4) / 0.6 + (0.75 - 0.4) / 0.6) / 2
    assert table["sac"]["forward"]["mean"] == pytest.approx(wanted)
    first = next(line for line in found["against"] if line["minus"] == "sac")
    assert first["performance"]["mean"] == pytest.approx(0.2)
    assert first["forgetting"]["mean"] == pytest.approx(-0.5)
    assert "forgetting" not in next(
        line for line in found["against"] if line["minus"] == "sac+alone"
    )


def test_names_mean_what_they_say() -> None:
    found = get_sequence_agent("planning:nll+model=replay+policy=2.5+replay=30", memory=7)
    kept = Keeping(model="replay", policy=2.5, replay=30, memory=7)
    assert found == SequenceAgent("planning", "nll", "turn", kept)
    assert get_sequence_agent("sac+joint").tasks == "joint"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan", "did you mean 'planning'"),
        ("sac:nll", "sac has no model"),
        ("sac+model=kl", "no model to keep"),
        ("planning+polcy=1", "did you mean 'policy'"),
        ("planning+policy=much", "must be a number"),
        ("planning+policy", "PART=VALUE"),
        ("planning+policy=1+policy=2", "once"),
        ("planning+joint+policy=1", "keeps nothing else"),
        ("planning+model=joint", "start each task anew"),
    ],
)
def test_a_name_that_means_nothing_gets_one_line(name: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        get_sequence_agent(name)


def test_in_all_tasks_each_has_its_own_rule() -> None:
    """Tasks side by side: observations end with the number of theirs, one-hot."""
    rule = by_task([lambda o, a, n: o[..., 0], lambda o, a, n: 10 * n[..., 0]])
    assert rule is not None
    obs = torch.tensor([[[1.0, 1.0, 0.0], [2.0, 0.0, 1.0]]])
    assert rule(obs, obs, obs).tolist() == [[1.0, 20.0]]
    assert by_task([None, lambda o, a, n: o[..., 0]]) is None


def test_too_few_steps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = launch_code(tmp_path / "b", "--agent-steps", "60")
    assert code == 2
    assert "--agent-steps: it must be above the 70 random steps" in capsys.readouterr().err


def launch_code(out: Path, *options: str) -> Any:
    with pytest.raises(SystemExit) as stop:
        launch(continual.Args, continual.main, [*TINY, "--out", str(out), *options])
    return stop.value.code

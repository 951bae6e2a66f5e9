"""What the chapters compute, against numbers made by hand and by pandas, scipy and the library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mbrl_bilevel.pages.about import about
from mbrl_bilevel.pages.blocks import Matrix, Plot, Section, Table
from mbrl_bilevel.pages.folders import read_runs
from mbrl_bilevel.pages.page import sections_of
from mbrl_bilevel.pages.terminal import summary
from mbrl_bilevel.pages.words import frame_of

Make = Callable[..., Path]


def chapters(*folders: Path) -> dict[str, Section]:
    return {section.title: section for section in sections_of(read_runs(folders))}


def plot(section: Section, title: str) -> Plot:
    (found,) = [b for b in section.blocks if isinstance(b, Plot) and b.title == title]
    return found


def table(section: Section) -> Table:
    return next(b for b in section.blocks if isinstance(b, Table))


def starred(found: Table, column: str) -> list[str]:
    """The rows, by the texts of their looks, that are the best in a column."""
    place = [c.title for c in found.columns].index(column)
    return [" ".join(c.text for c in row[:3]) for row in found.rows if row[place].best]


def test_learning_curves_pool_seeds_and_have_reference_lines(make: Make, trained: Make) -> None:
    plain = {"env_id": "Line-v0", "seed": 0}
    rows = [
        {"env_id": "Line-v0", "planner": planner, "seed": seed, "return": value + seed}
        for planner, value in (("nothing", -9.0), ("random-actions", -8.0), ("icem", 1.0))
        for seed in (0, 1)
    ]
    planned = make("plan", "plan", {**plain, "model": "oracle"}, rows)
    found = chapters(
        trained("a", [0, 1, 2]), trained("sac", [0], steps=40, agent="sac", model=None), planned
    )
    curve = plot(found["Learning curves"], "Line-v0: return while learning")
    nll, sac = curve.lines
    assert (nll.name, sac.name, list(nll.x)) == ("mpc, nll", "sac", [100, 200, 300, 400])
    assert nll.y[1].mean == pytest.approx(-5.0 + 1.0)
    assert (nll.y[1].n, nll.y[1].low, nll.y[1].high) == (3, -5.0, -3.0)
    assert dict(curve.references) == {"doing nothing": -8.5, "random actions": -7.5}
    assert curve.log_x  # sac goes ten times as far
    assert "One repeat, so no interval: sac." in curve.note
    assert starred(table(found["Learning curves"]), "return [95 % interval]") == [
        "Line-v0 sac 4,000"
    ]
    health = plot(found["The model while learning"], "Line-v0: error one step ahead, on new steps")
    assert [y.mean for y in health.lines[0].y] == pytest.approx([1.0, 0.5, 1 / 3, 0.25])
    pair = plot(
        found["The model while learning"],
        "Line-v0, mpc, nll: imagined and real return of ten steps",
    )
    assert [line.y[0].mean for line in pair.lines] == [4.0, 5.0]
    seconds = [[c.text for c in row] for row in table(found["Timings"]).rows]
    assert ["a", "mpc, nll", "learning, processor time without evaluations", "8", "3"] in seconds


def test_the_parts_of_a_demo_stand_beside_its_references(make: Make, trained: Make) -> None:
    measured = {"name": "references", "doing nothing": -20.0, "true simulator": -1.5}
    demo = make("demo", "demo", {"env_id": "Line-v0"}, [measured])
    trained("demo/train-nll", [0])
    trained("demo/train-bilevel", [0], model="bilevel")
    section = chapters(demo)["Learning curves"]
    curve = plot(section, "Line-v0: return while learning")
    assert {line.name for line in curve.lines} == {"mpc, nll", "mpc, bilevel"}
    assert dict(curve.references) == {"doing nothing": -20.0, "true simulator": -1.5}
    assert [row[1].text for row in table(section).rows][2:] == ["doing nothing", "true simulator"]


def test_the_last_return_is_of_all_repeats(trained: Make) -> None:
    folder = trained("a", [0, 1])
    with (folder / "seed-1" / "rows.jsonl").open("r+") as file:  # seed 1 has come to step 200
        file.truncate(sum(map(len, file.readlines()[:2])))
    section = chapters(folder)["Learning curves"]
    (row,) = table(section).rows
    assert [cell.text for cell in row[2:]] == ["200", "-4.50", "2"]
    curve = plot(section, "Line-v0: return while learning")
    assert [y.n for y in curve.lines[0].y] == [2, 2, 1, 1]
    assert curve.note == "Not all repeats have come to the end: mpc, nll."


def test_compare_has_the_numbers_of_pandas_and_marks_the_best(compared: Make) -> None:
    folder = compared("run", [0, 1, 2])
    frame = pd.DataFrame(map(json.loads, (folder / "rows.jsonl").read_text().splitlines()))
    found = chapters(folder)
    rows = table(found["Comparison of models"])
    assert len(rows.rows) == 2 * 2 * 3
    expected = frame.groupby(["dataset", "n_train", "method"])["nrmse"].mean()
    for row in rows.rows:
        key = (row[0].text, row[1].value, row[2].text)
        assert row[3].value == pytest.approx(expected[key])
    best = [f"{d} {n} bilevel" for d in ("Hopper-v5", "Swimmer-v5") for n in (100, 400)]
    for column in ("RMSE (target std)", "NLL (nats)", "coverage of the 90 % interval, best: 0.9"):
        assert starred(rows, column) == best
    curve = plot(found["Calibration"], "Calibration, 400 training rows")
    assert [y.mean for y in curve.lines[2].y][:3] == pytest.approx([0.0, 0.0, 0.1])
    ahead = plot(found["Error k steps ahead"], "Swimmer-v5: error k steps ahead")
    assert list(ahead.lines[0].x) == [1, 5]  # no test episode is long enough for 20
    here = frame[(frame["dataset"] == "Swimmer-v5") & (frame["n_train"] == 400)]
    twice = here.groupby("method", sort=False)["k_nrmse"].agg(lambda c: np.mean([k[1] for k in c]))
    assert [line.y[1].mean for line in ahead.lines] == pytest.approx(twice.tolist())


def test_pairs_are_ratios_of_repeats_that_share_a_split(compared: Make) -> None:
    folder = compared("run", [0, 1, 2, 3])
    frame = pd.DataFrame(map(json.loads, (folder / "rows.jsonl").read_text().splitlines()))
    wide = frame.pivot(index=["dataset", "n_train", "seed"], columns="method", values="nrmse")
    found = table(chapters(folder)["bilevel against the others, all data together"])
    for row in found.rows:
        expected = stats.gmean(wide["bilevel"] / wide[row[0].text])
        assert row[1].value == pytest.approx(expected)
        low, high = map(float, row[1].interval.strip("[]").split(","))
        assert low < expected < high < 1.0
        assert row[2].text == "100 %"


def test_two_compares_are_put_together(compared: Make) -> None:
    first, second = compared("a", [0, 1]), compared("b", [2, 3], methods=("bilevel", "nll"))
    rows = table(chapters(first, second)["Comparison of models"]).rows
    assert {(row[2].text, row[-1].text) for row in rows} == {
        *(("bilevel", "4"), ("nll", "4"), ("mse", "2"))
    }


@pytest.mark.parametrize(("seeds", "members"), [([2, 3], 7), ([1, 2], 5)])
def test_other_options_or_the_same_repeats_are_told_apart(
    compared: Make, seeds: Sequence[int], members: int
) -> None:
    first = compared("a", [0, 1], methods=("bilevel", "nll"), members=5)
    second = compared("b", seeds, methods=("nll",), members=members)
    rows = table(chapters(first, second)["Comparison of models"]).rows
    assert {row[2].text for row in rows} == {"bilevel", "nll · a", "nll · b"}


def test_what_diverged_is_said_and_never_the_best(make: Make) -> None:
    rows = [
        {**{"method": m, "dataset": "d", "seed": s, "n_train": 9, "nrmse": 1.0}, "nll": value}
        for m, values in (("nll", (None, 1.0)), ("mse", (2.0, 4.0)))
        for s, value in enumerate(values)
    ]
    found = table(chapters(make("run", "compare", {}, rows))["Comparison of models"])
    assert starred(found, "NLL (nats)") == ["d 9 mse"]
    assert found.rows[0][4].text == "1 of 2 not finite"


def test_forgetting_is_that_of_the_matrices(forgot: Make) -> None:
    section = chapters(forgot("run"))["Forgetting: hopper-mass"]
    found = table(section)
    assert [c.title for c in found.columns] == [
        *("method", "NLL, just learned", "NLL, at the end", "NLL, forgotten")
    ]
    # Of task 1: 3 × place, of task 2: place; task 3 is the last.
    assert [row[3].value for row in found.rows] == [0.0, 2.0, 4.0]
    assert [row[1].value for row in found.rows] == pytest.approx([(1.5 + 2 + 3) / 3] * 3)
    assert starred(found, "NLL, forgotten") == ["bilevel+kl 2.17 2.17"]
    pareto = plot(section, "Forgetting against learning: NLL")
    assert [(line.x[0], line.y[0].mean) for line in pareto.lines] == [
        (pytest.approx(6.5 / 3), forgotten) for forgotten in (0.0, 2.0, 4.0)
    ]
    seen = plot(section, "Mean over the tasks seen so far: NLL").lines[1]
    assert [y.mean for y in seen.y] == pytest.approx([1.5, (2.5 + 2) / 2, (4.5 + 3 + 3) / 3])
    matrix = next(b for b in section.blocks if isinstance(b, Matrix))
    assert matrix.values[2] == pytest.approx([1.5, 2.0, 3.0])
    assert matrix.column_names == ["light", "middle", "heavy"]
    assert "of a sequence 6" in " ".join(
        c.text for c in table(chapters(forgot("b"))["Timings"]).rows[0]
    )


def test_classifiers_are_compared_and_their_rewards_shown(classified: Make) -> None:
    found = chapters(classified("run"))
    assert starred(table(found["Comparison of classifiers"]), "accuracy") == ["wine nll 0.950"]
    line = plot(found["Reliability of classifiers"], "Reliability").lines[0]
    assert line.x == pytest.approx([0.5, 0.9])  # no answer was in the first bin
    assert [(y.mean, y.n) for y in line.y] == [(0.375, 2), (1.0, 2)]
    reward = found["The inferred reward"]
    values = {row[2].text: row[3].value for row in table(reward).rows if row[1].text == "bilevel"}
    assert values == {"bend": 1.0}
    matrix = next(b for b in reward.blocks if isinstance(b, Matrix))
    assert matrix.values == [[2.0, -1.0], [0.0, 3.0]]
    assert (matrix.low, matrix.high, matrix.row_names) == (-1.0, 3.0, ["red", "white"])


def test_rows_without_their_bins_are_left_out_of_reliability(classified: Make) -> None:
    folder = classified("run")
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    del rows[0]["confidence"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = plot(chapters(folder)["Reliability of classifiers"], "Reliability").lines[-1]
    assert (line.name, [(y.mean, y.n) for y in line.y]) == ("bilevel", [(0.5, 1), (1.0, 1)])


def test_values_of_the_outer_level_while_learning_are_drawn(make: Make) -> None:
    rows = [{"step": 10 * i, "mean": 0.0, "outer": {"lambda": 1.0 / i}} for i in (1, 2)]
    options = {"env_id": "Line-v0", "agent": "mpc", "model": "bilevel", "seed": 0, "seeds": 1}
    section = chapters(make("run", "train", options, rows))["The inferred reward"]
    assert [y.mean for y in plot(section, "Line-v0: lambda").lines[0].y] == [1.0, 0.5]


def test_the_other_scripts_have_chapters(make: Make) -> None:
    bench = make("bench", "bench", {}, [{"name": "plan", "ours": 6.0, "peer": 2.0, "ratio": 3.0}])
    trials = [
        {"method": "nll", "trial": i, "learning_rate": 10.0**-i, "value": value}
        for i, value in enumerate((3.0, 1.0, None))
    ]
    tune = make("tune", "tune", {}, trials)
    recover = {"part": "recover", "problem": "1d", "solver": "closed_form", "error": 0.25}
    theory = make(
        "theory", "theory", {}, [{**recover, "distance": [1.0, 0.25]}, {"part": "moments"}]
    )
    data = {"data": {"mean": 7.0}}
    rows = [{"policy": "clone", "seed": s, "mean": 5.0 + s} for s in (0, 1)]
    offline = make("offline", "offline", {"env_id": "Line-v0"}, rows, data)
    own = make("own", "my_script", {}, [{"what": "x", "value": 10**300}])
    found = chapters(bench, tune, theory, offline, own)
    assert plot(found["Speed"], "Throughput beside a peer").lines[0].y[0].mean == 3.0
    assert starred(table(found["Tuning"]), "held-out NLL") == ["nll 1 0.100"]
    assert (
        plot(found["Recovering the known reward"], "1d: distance to U*").lines[0].y[1].mean == 0.25
    )
    learned = plot(found["Policies learned offline"], "Line-v0: return")
    assert (learned.lines[0].y[0].mean, dict(learned.references)) == (5.5, {"the data itself": 7.0})
    assert [c.text for c in table(found["my_script: own"]).rows[0]] == ["x", "not finite"]


def test_a_value_that_broke_down_does_not_hide_the_others(make: Make) -> None:
    rows = [
        {**{"method": f"m{i}", "dataset": "d", "seed": 0, "n_train": 9, "nrmse": 1.0}, "nll": value}
        for i, value in enumerate((1.0, 1.1, 1.2, 1.3, 1.4, 900.0))
    ]
    section = chapters(make("run", "compare", {}, rows))["Comparison of models"]
    frame = frame_of(plot(section, "NLL (nats), 9 training rows"))
    assert frame is not None
    assert frame[0] < 1.0 < 1.4 < frame[1] < 10.0
    assert frame_of(plot(section, "RMSE (target std), 9 training rows")) is None


def test_the_command_can_be_typed_again(make: Make) -> None:
    options = {"env_id": "My Env-v0", "methods": ["nll", "mse"], "noise": -0.5, "quick": True}
    (run,) = read_runs([make("run", "compare", {**options, "csv": [], "resume": True}, [])])
    assert about(run, run.path / "report.html").command == (
        "python scripts/compare.py '--env-id=My Env-v0' --methods nll mse --noise=-0.5 --quick"
    )


def test_the_terminal_has_the_first_table(compared: Make, make: Make) -> None:
    lines = summary([compared("run", [0, 1])]).splitlines()
    assert lines[1].split()[:4] == ["data", "training", "rows", "method"]
    assert lines[3].startswith("Hopper-v5")
    assert "*" in lines[3]
    assert len(lines) == 3 + 12
    assert summary([make("new", "compare", {}, [])]) == ""

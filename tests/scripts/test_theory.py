"""A quick run of theory: its keys, and the thresholds it is there to show."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))  # where a script finds its neighbours

from theory import Args, main  # noqa: E402

from mbrl_bilevel.studies.launching import launch  # noqa: E402
from mbrl_bilevel.theory.catalogue import solvers  # noqa: E402


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("theory") / "run"
    launch(Args, main, ["--quick", "--quiet", "--no-report", "--out", str(folder)])
    return folder


def metrics(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_every_solver_recovers_u(out: Path) -> None:
    errors = metrics(out)["u_star_relative_error"]
    assert set(errors) == {"closed_form", "fisher_implicit_sampled", *solvers()}
    for solver, by_problem in errors.items():
        assert set(by_problem) == {"1d", "2d_full"}
        limit = 0.05 if solver == "fisher_implicit_sampled" else 1e-3
        assert max(by_problem.values()) <= limit, solver
    to_truth = metrics(out)["u_star_relative_error_to_truth"]
    assert max(max(e.values()) for e in to_truth.values()) <= 0.05


def test_it_converges_at_the_predicted_rate(out: Path) -> None:
    found, predicted = (
        metrics(out)[key] for key in ("convergence_rate", "predicted_convergence_rate")
    )
    for solver in ("exact_implicit", "fisher_implicit", "function_space"):
        # Heavy ball on the steepest direction decays as k·rate^k, a little slower.
        assert found[solver]["1d"] == pytest.approx(predicted["1d"], abs=0.005)
        assert found[solver]["2d_full"] == pytest.approx(predicted["2d_full"], abs=0.05)


def test_hypergradients(out: Path) -> None:
    found = metrics(out)
    errors = found["hypergradient_relative_error"]
    assert max(errors["exact_implicit"].values()) <= 1e-5
    well = found["well_specified"]
    assert well == ["gaussian_1d", "categorical_2"]
    for solver in ("fisher_implicit", "function_space"):
        assert max(errors[solver][name] for name in well) <= 1e-3
        assert errors[solver]["misspecified_rbf"] > 1e-2  # a bias is told, not hidden


def test_moments_and_figures(out: Path) -> None:
    curves = {row["method"]: row for row in metrics(out)["moments"]}
    assert {len(row["mean_error"]) for row in curves.values()} == {41}
    assert curves["PG, U = U*"]["covariance_error"][-1] < 0.3
    assert curves["PG, U = I"]["covariance_error"][-1] > 0.6
    names = {path.name for path in (out / "figures").iterdir()}
    assert names == {"u_star.png", "outer_objective.png", "moments.png", "hypergradients.png"}


def test_a_finished_run_is_not_run_again(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "rows.jsonl").read_bytes()
    launch(Args, main, ["--quick", "--resume", "--out", str(out)])
    assert (out / "rows.jsonl").read_bytes() == before
    assert json.loads(capsys.readouterr().out)["u_star_exact_solvers"] <= 1e-3


@pytest.mark.parametrize("wrong", [("--n", "5"), ("--epochs", "0"), ("--dims", "0")])
def test_bad_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(Args, main, ["--out", str(tmp_path / "a"), *wrong])
    assert caught.value.code == 2
    assert wrong[0] in capsys.readouterr().err

"""The metrics of forgetting against the formulas by hand and by loops, their laws, and the runner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.continual.sequence import Better, run, transfer

#: Accuracies of three tasks; b before any learning, c of models that learned one task alone.
R = [[0.9, 0.3, 0.2], [0.7, 0.8, 0.4], [0.5, 0.85, 0.95]]
B, C = [0.1, 0.2, 0.15], [0.92, 0.9, 0.9]

matrices = st.integers(2, 5).flatmap(
    lambda n: arrays(np.float64, (n, n), elements=st.floats(-10.0, 10.0, width=32))
)


def test_by_hand() -> None:
    found = transfer(R, "higher", before=B, alone=C)
    assert found.final == pytest.approx((0.5 + 0.85 + 0.95) / 3)
    assert found.learning == pytest.approx((0.9 + 0.8 + 0.95) / 3)
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)
    assert found.forgetting_max == pytest.approx(((0.9 - 0.5) + (0.8 - 0.85)) / 2)
    assert found.backward == pytest.approx(((0.5 - 0.9) + (0.85 - 0.8)) / 2)
    assert found.backward_all == pytest.approx(((0.7 - 0.9) + (0.5 - 0.9) + (0.85 - 0.8)) / 3)
    assert found.forward == pytest.approx(((0.3 - 0.2) + (0.4 - 0.15)) / 2)
    assert found.plasticity == pytest.approx((-0.02 - 0.1 + 0.05) / 3)


def test_against_avalanche() -> None:
    """What Forgetting and ForwardTransfer of avalanche-lib 0.6.0 return for this recorded matrix."""
    recorded = [
        [0.812, 0.304, 0.251, 0.118],
        [0.655, 0.794, 0.402, 0.233],
        [0.703, 0.611, 0.871, 0.345],
        [0.587, 0.642, 0.799, 0.902],
    ]
    found = transfer(recorded, "higher", before=[0.101, 0.148, 0.092, 0.125])
    assert found.forgetting == pytest.approx(0.1496666666666667)
    assert found.backward == pytest.approx(-0.1496666666666667)
    assert found.forward == pytest.approx(0.22866666666666668)


def test_one_form_of_forgetting_looks_at_the_best_before_the_other_at_the_first() -> None:
    """Task 0 is best after task 1: ``forgetting_max`` counts from there."""
    found = transfer([[0.6, 0.0, 0.0], [0.9, 0.5, 0.0], [0.7, 0.5, 0.5]], "higher")
    assert found.forgetting_max == pytest.approx((0.2 + 0.0) / 2)
    assert found.forgetting == pytest.approx((-0.1 + 0.0) / 2)
    assert found.backward == pytest.approx((0.1 + 0.0) / 2)


@given(matrices)
def test_an_error_is_a_return_turned_round(r: np.ndarray) -> None:
    b, c = r[0], r[-1]
    low = transfer(r, "lower", before=b, alone=c)
    high = transfer(-r, "higher", before=-b, alone=-c)
    assert (low.final, low.learning) == (-high.final, -high.learning)
    for name in (
        *("forgetting", "forgetting_max", "backward", "backward_all", "forward", "plasticity"),
    ):
        assert getattr(low, name) == getattr(high, name), name


@given(matrices, st.floats(-5.0, 5.0), st.floats(0.125, 4.0), st.sampled_from(["lower", "higher"]))
def test_laws(r: np.ndarray, shift: float, scale: float, better: Better) -> None:
    found = transfer(r, better, before=r[0], alone=r[-1])
    assert found.forgetting is not None
    assert found.forgetting_max is not None
    assert found.backward is not None
    assert found.forgetting == -found.backward
    assert found.forgetting_max >= found.forgetting - 1e-9  # the best is no worse than the first
    # Differences do not see a shift, and are in the metric's units.
    moved = transfer(scale * r + shift, better, before=scale * r[0] + shift)
    for name in ("forgetting", "forgetting_max", "backward", "backward_all", "forward"):
        assert getattr(moved, name) == pytest.approx(scale * getattr(found, name), abs=1e-6), name
    sign = 1.0 if better == "higher" else -1.0
    # final − learning is what all tasks but the last gained since.
    gained = sign * (found.final - found.learning) * len(r) / (len(r) - 1)
    assert found.backward == pytest.approx(gained, abs=1e-6)


@given(matrices)
def test_against_loops_over_the_published_sums(r: np.ndarray) -> None:
    found, n = transfer(r, "higher", before=r[0], alone=r[1]), len(r)
    best = [max(r[i][j] for i in range(n - 1)) - r[n - 1][j] for j in range(n - 1)]
    assert found.forgetting_max == pytest.approx(sum(best) / (n - 1))
    pairs = [r[i][j] - r[j][j] for i in range(1, n) for j in range(i)]
    assert found.backward_all == pytest.approx(2.0 * sum(pairs) / (n * (n - 1)))
    ahead = [r[j - 1][j] - r[0][j] for j in range(1, n)]
    assert found.forward == pytest.approx(sum(ahead) / (n - 1))


def test_what_cannot_be_said_is_none_and_nan_is_not_hidden() -> None:
    single = transfer([[0.5]], "lower", before=[1.0], alone=[0.4])
    assert {single.forgetting, single.forgetting_max, single.backward, single.forward} == {None}
    assert single.plasticity == pytest.approx(-0.1)
    assert transfer(R, "higher").forward is None
    broken = np.array(R)
    broken[2, 0] = np.nan
    found = transfer(broken, "higher")
    assert found.forgetting is not None
    assert found.forgetting_max is not None
    assert np.isnan([found.final, found.forgetting, found.forgetting_max]).all()


@pytest.mark.parametrize(
    ("matrix", "options", "told"),
    [
        ([[1.0, 2.0]], {}, "matrix must be"),
        ([], {}, "matrix must be"),
        (R, {"better": "more"}, "better must be"),
        (R, {"before": [1.0]}, "before must be"),
        (R, {"alone": [1.0, 2.0]}, "alone must be"),
    ],
)
def test_bad_input(matrix: object, options: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        transfer(matrix, **{"better": "higher", **options})  # type: ignore[arg-type]


def test_the_runner_fills_the_matrix_in_order() -> None:
    """A learner that steps half of the way to each task's number: every entry is known."""
    tasks = [1.0, 3.0, -2.0]
    seen: list[float] = []

    def fit_task(model: float, task: float) -> float:
        seen.append(task)
        return 0.5 * (model + task)

    found = run(tasks, 0.0, fit_task, lambda m, t: {"error": abs(m - t), "return": m})
    states = [0.5, 1.75, -0.125]
    assert seen == tasks
    assert found.model == states[-1]
    np.testing.assert_allclose(found.before["error"], np.abs(tasks))
    wanted = np.abs(np.subtract.outer(states, tasks))
    np.testing.assert_allclose(found.matrices["error"], wanted)
    np.testing.assert_allclose(found.matrices["return"], np.repeat(states, 3).reshape(3, 3))
    with pytest.raises(InvalidInputError, match="at least one task"):
        run([], 0.0, fit_task, lambda m, t: {"error": 0.0})

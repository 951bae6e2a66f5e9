from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_moons
from sklearn.exceptions import NotFittedError
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.models.sklearn import BilevelClassifier, BilevelRegressor
from mbrl_bilevel.training.class_methods import CLASS_METHODS

#: Minibatches are drawn and folds dealt out by row, so repeating a row is another experiment than
#: doubling its weight: as for scikit-learn's own SGDClassifier, this holds on average only.
STOCHASTIC = {
    "check_sample_weight_equivalence_on_dense_data": "minibatches and folds are drawn by row"
}
QUICK: dict[str, Any] = {
    "members": 2,
    "steps": 60,
    "hidden": (16,),
    "learning_rate": 1e-2,
    "random_state": 0,
}


@pytest.mark.parametrize(
    "estimator", [BilevelClassifier(**QUICK), BilevelRegressor("mse", **QUICK)]
)
def test_scikit_learns_own_checks(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            estimator, expected_failed_checks=STOCHASTIC, on_skip=None, on_fail="raise"
        )
    assert len(found) > 50
    skipped = [check["check_name"] for check in found if check["status"] == "skipped"]
    assert set(skipped) <= {"check_array_api_input"}  # asks for an environment variable


def logistic(rows: int, seed: int, slope: float = 1.5) -> tuple[Any, Any, Any]:
    """Noisy classes with known probabilities: P(1|x) = sigmoid(slope·x₀ + ½)."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    truth = 1.0 / (1.0 + np.exp(-slope * x[:, 0] - 0.5))
    return x, (random.random(rows) < truth).astype(int), truth


@pytest.mark.parametrize(("unit", "offset"), [(1e-7, 0.0), (1.0, 1.7e9), (1e-12, -3e-11)])
def test_units_of_features_and_targets_change_nothing(unit: float, offset: float) -> None:
    x, y, _ = logistic(400, seed=0)
    plain = BilevelClassifier(**QUICK).fit(x, y).predict_proba(x)
    found = BilevelClassifier(**QUICK).fit(offset + unit * x, y)
    np.testing.assert_allclose(found.predict_proba(offset + unit * x), plain, atol=1e-3)
    target = x @ [1.0, 2.0]
    line = BilevelRegressor("mse", **QUICK).fit(x, target).predict(x)
    moved = BilevelRegressor("mse", **QUICK).fit(offset + unit * x, offset + unit * target)
    error = (moved.predict(offset + unit * x) - offset) / unit - line
    assert np.abs(error).max() < 2e-2


def test_it_recovers_the_true_probabilities_where_a_constant_reward_cannot() -> None:
    """R = I bounds the logits; λ(x) from held-out rows brings them back, and a reward of x needs it less."""
    x, y, _ = logistic(3000, seed=0)
    unseen, _, truth = logistic(2000, seed=1)
    error = {}
    for method in ("bilevel", "bilevel-bounded", "pg-identity"):
        model = BilevelClassifier(method, members=10, hidden=(), steps=400, random_state=0)
        probs = model.fit(x, y).predict_proba(unseen)
        assert probs.sum(1) == pytest.approx(1.0)
        error[method] = np.abs(probs[:, 1] - truth).mean()
    assert max(error["bilevel"], error["bilevel-bounded"]) < 0.02
    assert error["pg-identity"] > 2.0 * error["bilevel"]


def test_it_recovers_probabilities_where_several_classes_are_likely() -> None:
    """The default comes near what four likely classes were drawn from, a constant reward does not."""
    random = np.random.default_rng(0)
    weight, offset = 0.7 * random.normal(size=(3, 4)), np.array([1.5, 1.3, 0.0, -1.5])
    x = random.normal(size=(4000, 3))
    probs = np.exp(x @ weight + offset)
    probs /= probs.sum(1, keepdims=True)
    y = (probs.cumsum(1) < random.random((4000, 1))).sum(1)
    apart = {}
    for method in ("bilevel", "bilevel-bounded"):
        options = {"members": 5, "hidden": (), "steps": 300, "learning_rate": 3e-2}
        model = BilevelClassifier(method, **options, random_state=0)
        found = model.fit(x[:2000], y[:2000]).predict_proba(x[2000:])
        truth = probs[2000:]
        apart[method] = (truth * (np.log(truth) - np.log(found))).sum(1).mean()
    assert apart["bilevel"] < 0.015
    assert apart["bilevel-bounded"] > 3.0 * apart["bilevel"]


@pytest.mark.parametrize("method", CLASS_METHODS)
def test_every_method_learns(method: str) -> None:
    x, y = make_moons(400, noise=0.1, random_state=0)
    model = BilevelClassifier(method, members=5, steps=300, learning_rate=1e-2, random_state=0)
    assert model.fit(x[:200], y[:200]).score(x[200:], y[200:]) > 0.9


def test_same_seed_same_result() -> None:
    x, y, _ = logistic(100, seed=0)
    first, second, other = (
        BilevelClassifier(**QUICK | {"random_state": seed}).fit(x, y).predict_proba(x)
        for seed in (3, 3, 4)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_strings_frames_pipelines_and_searches() -> None:
    x, y, _ = logistic(80, seed=0)
    frame, names = pd.DataFrame(x, columns=["dose", "age"]), np.array(["well", "ill"])[y]
    model = BilevelClassifier(**QUICK).fit(frame, names)
    assert model.classes_.tolist() == ["ill", "well"]
    assert set(model.predict(frame)) <= {"ill", "well"}
    assert model.feature_names_in_.tolist() == ["dose", "age"]
    pipeline = make_pipeline(StandardScaler(), BilevelClassifier(**QUICK))
    assert cross_val_score(pipeline, frame, names, cv=3).mean() > 0.6
    grid = {"method": ["bilevel", "nll"], "hidden": [(), (8,)]}
    search = GridSearchCV(BilevelClassifier(**QUICK), grid, cv=2).fit(frame, names)
    assert search.best_score_ > 0.6
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.rename(columns={"age": "height"}))


def test_bad_input_is_told_in_scikit_learns_words() -> None:
    x, y, _ = logistic(40, seed=0)
    model = BilevelClassifier(**QUICK)
    holes = x.copy()
    holes[3, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        model.fit(holes, y)
    with pytest.raises(ValueError, match=r"at least 2 classes.*one class: 1"):
        model.fit(x, np.ones(40, dtype=int))
    with pytest.raises(ValueError, match="could not convert string to float"):
        model.fit(np.array([["a", "b"]] * 40), y)
    with pytest.raises(ValueError, match="minimum of 4"):
        model.fit(x[:2], y[:2])
    with pytest.raises(ValueError, match="did you mean 'bilevel'"):
        BilevelClassifier("bilevl").fit(x, y)
    with pytest.raises(ValueError, match="balanced_accuracy or a cost matrix"):
        BilevelClassifier(objective="f1").fit(x, y)
    with pytest.raises(ValueError, match=r"infers no reward.*such as bilevel"):
        BilevelClassifier("nll", objective="balanced_accuracy").fit(x, y)
    with pytest.raises(ValueError, match="there are 2 classes"):
        BilevelClassifier(objective=[[0, 1, 1]] * 3, **QUICK).fit(x, y)
    with pytest.raises(NotFittedError):
        model.predict(x)


@pytest.mark.parametrize("kind", [BilevelClassifier, BilevelRegressor])
def test_what_users_of_scikit_learn_type(kind: Any) -> None:
    """hidden=16 is (16,), batch_size="auto" the default; what cannot be meant names the argument."""
    x, y, _ = logistic(60, seed=0)
    short = {"method": "nll", "members": 2, "steps": 20, "random_state": 0}
    plain = kind(**short, hidden=(16,)).fit(x, y).predict(x)
    typed = kind(**short, hidden=np.int64(16), batch_size="auto").fit(x, y).predict(x)
    assert np.array_equal(typed, plain)
    assert np.array_equal(kind(**short, hidden=[16]).fit(x, y).predict(x), plain)
    for given, told in (
        ({"learning_rate": "adaptive"}, r"learning_rate must be a positive number.*'adaptive'"),
        ({"batch_size": "all"}, 'batch_size must be an int or "auto"'),
        ({"hidden": 16.0}, r"hidden must be the width of a layer.*16\.0"),
        ({"hidden": (16, 0)}, "hidden must be the width of a layer"),
        ({"hidden": "wide"}, "hidden must be the width of a layer"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            kind(**short | given).fit(x, y)


def test_weights_are_rows() -> None:
    """Weight zero is absence, to the last bit; a class of nine times the weight is nine times as likely."""
    x, y, _ = logistic(120, seed=0)
    weight = (np.arange(120) < 90).astype(float)
    model = BilevelClassifier(**QUICK)
    without = model.fit(x[:90], y[:90]).predict_proba(x)
    assert np.array_equal(model.fit(x, y, weight).predict_proba(x), without)
    coin = np.random.default_rng(0).integers(0, 2, 600)
    flat = np.zeros((600, 1))
    flat[:, 0] = np.random.default_rng(1).normal(size=600)
    heavy = BilevelClassifier(members=5, hidden=(), steps=300, learning_rate=3e-2, random_state=0)
    probs = heavy.fit(flat, coin, np.where(coin == 1, 9.0, 1.0)).predict_proba(flat)
    assert probs[:, 1].mean() == pytest.approx(0.9, abs=0.03)


def imbalanced(rows: int, seed: int) -> tuple[Any, Any]:
    """One in ten is of class 1; the likeliest class is 0 nearly everywhere."""
    random = np.random.default_rng(seed)
    y = (random.random(rows) < 0.1).astype(int)
    return random.normal(size=(rows, 2)) + 1.2 * y[:, None], y


def test_a_reward_for_balanced_accuracy_does_not_forget_the_rare_class() -> None:
    x, y = imbalanced(1500, seed=0)
    unseen, truth = imbalanced(3000, seed=1)
    score = {
        wanted: balanced_accuracy_score(
            truth,
            BilevelClassifier(objective=wanted, members=5, steps=400, random_state=0)
            .fit(x, y)
            .predict(unseen),
        )
        for wanted in ("nll", "balanced_accuracy")
    }
    # Best possible: the two normals are 1.2·√2 apart, Φ(0.849) = .802.
    assert score["balanced_accuracy"] > 0.77 > 0.72 > score["nll"]


def test_costs_move_the_answers() -> None:
    """Missing class 1 costs nine times a false alarm: about as if both classes were as frequent."""
    x, y = imbalanced(1500, seed=0)
    unseen, truth = imbalanced(3000, seed=1)
    costs = np.array([[0.0, 1.0], [9.0, 0.0]])
    paid = {}
    for name, objective in (("nll", "nll"), ("cost", costs)):
        model = BilevelClassifier(objective=objective, members=5, steps=400, random_state=0)
        paid[name] = costs[truth, model.fit(x, y).predict(unseen)].mean()
    assert paid["cost"] < 0.85 * paid["nll"]
    assert model.reward_matrix_.shape == (2, 2)


def test_partial_fit_learns_a_pass_at_a_time() -> None:
    x, y, _ = logistic(600, seed=0)
    model = BilevelClassifier("nll", members=3, hidden=(), learning_rate=1e-1, random_state=0)
    with pytest.raises(ValueError, match="classes must be given at the first call"):
        model.partial_fit(x[:50], y[:50])
    first = model.partial_fit(x[:50], y[:50], classes=[0, 1]).score(x, y)
    for _ in range(8):
        for start in range(0, 600, 100):
            model.partial_fit(x[start : start + 100], y[start : start + 100])
    assert model.score(x, y) > 0.71 > 0.68 > first  # the true probabilities reach .727
    with pytest.raises(ValueError, match="not among those of the first call"):
        model.partial_fit(x[:50], y[:50] + 7)


def test_partial_fit_keeps_what_fit_inferred() -> None:
    x, y, _ = logistic(200, seed=0)
    model = BilevelClassifier(**QUICK).fit(x, y)
    kept = model.model_.policy.temper.clone()
    before = model.predict_proba(x)
    model.partial_fit(x[:30], y[:30])
    assert np.array_equal(model.model_.policy.temper.numpy(), kept.numpy())
    assert not np.array_equal(model.predict_proba(x), before)


def test_nothing_is_left_of_the_method_before() -> None:
    x, y, _ = logistic(60, seed=0)
    model = BilevelClassifier("bilevel-bounded", **QUICK).fit(x, y)
    assert model.reward_matrix_.shape == (2, 2)
    assert not hasattr(model.set_params(method="nll").fit(x, y), "reward_matrix_")


def test_verbose_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    x, y, _ = logistic(60, seed=0)
    BilevelClassifier(**QUICK).fit(x, y)
    assert capsys.readouterr().err == ""
    BilevelClassifier(**QUICK, verbose=1).fit(x, y)
    assert "fit" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["bilevel", "nll"])
def test_the_regressor_knows_mean_and_noise(method: str) -> None:
    random = np.random.default_rng(0)
    x = random.uniform(-1.0, 1.0, size=(800, 2))
    y = 100.0 + 30.0 * np.sin(2.0 * x[:, 0]) + 5.0 * random.normal(size=800)
    model = BilevelRegressor(method, steps=400, random_state=0).fit(x[:600], y[:600])
    mean, std = model.predict(x[600:], return_std=True)
    assert np.abs(mean - 100.0 - 30.0 * np.sin(2.0 * x[600:, 0])).mean() < 2.5
    assert std.mean() == pytest.approx(5.0, rel=0.2)
    assert model.score(x[600:], y[600:]) > 0.85


def test_the_regressor_of_few_rows_and_of_a_constant() -> None:
    x = np.arange(6.0).reshape(-1, 1)
    few = BilevelRegressor("mse", **QUICK).fit(x, 2.0 * x[:, 0])
    assert np.isfinite(few.predict(x)).all()
    constant = BilevelRegressor(**QUICK).fit(x, np.full(6, 3.5))
    mean, std = constant.predict(x, return_std=True)
    assert (mean == 3.5).all()
    assert (std == 0.0).all()


def test_the_regressor_heeds_weights() -> None:
    x = np.random.default_rng(0).normal(size=(400, 1))
    y = (np.arange(400) % 2).astype(float)  # 0 and 1 in turn, whatever x
    model = BilevelRegressor(
        "mse", members=5, hidden=(), steps=300, learning_rate=3e-2, random_state=0
    )
    assert model.fit(x, y, 1.0 + 3.0 * y).predict(x).mean() == pytest.approx(0.8, abs=0.04)

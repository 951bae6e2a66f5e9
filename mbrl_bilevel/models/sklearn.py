"""scikit-learn estimators on the same core: a classifier and a regressor that are generative policies.

``fit`` is ``mbrl_bilevel.training.fit.fit`` on cross-fitted folds; which inner loss and which outer level, if
any, is the value of ``method`` (class_methods.py, methods.py). Source: arXiv 2510.07624.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from operator import index
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rounding import ULPS
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import FitData, Folds
from mbrl_bilevel.data.table_folds import FEWEST_ROWS, row_folds
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import RewardMatrix
from mbrl_bilevel.models.classification import CHUNK, FAR, Classification
from mbrl_bilevel.models.regression import fit_regression
from mbrl_bilevel.outer.class_objectives import ExpectedCost
from mbrl_bilevel.outer.objectives import BalancedError, Objective, OneStepNLL
from mbrl_bilevel.training.class_methods import get_class_method
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

Array = npt.NDArray[Any]
#: What an outer level may want of a classifier: a name, or costs [C, C] of answering ŷ where y is true.
#: or an objective of your own.
Wanted = Literal["nll", "balanced_accuracy"] | Sequence[Sequence[float]] | Objective

#: What a ``batch_size`` of "auto" stands for.
_BATCH = 64
#: A regression's folds need this many rows; fewer are repeated.
_REGRESSION_ROWS = 10


class BilevelClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An ensemble of linear (``hidden=()``) or MLP policies over classes.

    ``method`` is one of ``class_methods.CLASS_METHODS``. ``objective`` is what the outer level wants on
    held-out rows: "nll", "balanced_accuracy", a cost matrix [C, C], row y, column ŷ, in the order of
    ``classes_``, or a function of your own ``objective(policy, batch) -> [E]`` to be minimised
    (``examples/my_objective.py``). Five folds; member k holds out fold k mod 5, half of it to stop by and half for the
    outer level. ``hidden`` is the width of a layer or a sequence of widths. ``steps`` of Adam at most, fewer
    after ``patience`` readings (every 20 steps) without gain; ``learning_rate`` is its first step size, which
    falls by a cosine to zero; ``batch_size`` rows of a minibatch, "auto" for 64. A ``verbose`` above zero
    shows a progress bar.

    ``sample_weight`` weighs rows in every mean, and a row of weight zero is absent to the last bit. A row of
    weight 2 and the same row twice give the same fit on average only: rows are dealt out to folds and drawn
    into minibatches one by one, and two equal rows of a table with few values are two observations, of which
    one may be held out from the other.

    After ``fit``: ``classes_``, ``n_features_in_``, ``feature_names_in_``, ``result_`` (FitResult: the
    curves, and the outer level's report) and, where there is one, ``reward_matrix_`` [C, C], row ŷ,
    column y.

    Raises ValueError for bad input, in scikit-learn's own words where it has them.
    """

    classes_: Array
    reward_matrix_: Array
    model_: Classification

    def __init__(
        self,
        method: str = "bilevel",
        *,
        objective: Wanted = "nll",
        hidden: int | Sequence[int] = (64,),
        members: int = 20,
        steps: int = 600,
        batch_size: int | Literal["auto"] = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        patience: int = 10,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.objective = objective
        self.hidden = hidden
        self.members = members
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X [N, X] and classes y [N] of any kind; rows of weight zero are as if not there."""
        objective = _objective(self.objective)
        method = get_class_method(self.method).wanting(objective)
        X, y, weight = _checked(self, X, y, sample_weight)
        check_classification_targets(y)
        X, y, weight = X[weight > 0.0], y[weight > 0.0], weight[weight > 0.0]
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes to tell apart; y holds one class: "
                f"{classes.tolist()[0]!r}"
            )
        if isinstance(objective, ExpectedCost) and len(objective.cost) != len(classes):
            raise ValueError(
                f"objective: the cost matrix has {len(objective.cost)} rows, but there are "
                f"{len(classes)} classes: {classes.tolist()}"
            )
        random = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
        data = self._start(X, classes, generator)
        folds = row_folds(
            np.searchsorted(classes, y),
            self.members,
            np.random.default_rng(int(random.randint(2**31 - 1))),
        )
        rows = self._data(data, y, weight, folds)
        self._loss = method.make_loss(self.model_.policy, rows)
        self.result_ = method.fit(
            self.model_.policy,
            rows,
            generator=generator,
            loss=self._loss,
            schedule=_schedule(self, self.steps),
            progress=self.verbose > 0,
        )
        self._keep_reward()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One pass over these rows on the inner level; the reward stays what ``fit`` inferred.

        The first call without a ``fit`` before it needs all ``classes``, and takes the features' means
        and spreads from its own rows. The outer level needs held-out rows: that is for ``fit``.
        """
        method, first = get_class_method(self.method), not hasattr(self, "classes_")
        X, y, weight = _checked(self, X, y, sample_weight, first=first, rows=1)
        check_classification_targets(y)
        X, y, weight = X[weight > 0.0], y[weight > 0.0], weight[weight > 0.0]
        if first and classes is None:
            raise ValueError(
                "classes must be given at the first call to partial_fit: all there are"
            )
        known = np.unique(classes) if first else self.classes_
        unknown = np.setdiff1d(y if classes is None else np.append(y, classes), known)
        if len(unknown):
            raise ValueError(
                f"classes={unknown.tolist()} are not among those of the first call: {known.tolist()}"
            )
        if first:
            random = check_random_state(self.random_state)
            generator = torch.Generator().manual_seed(int(random.randint(2**31 - 1)))
            self._start(X, known, generator)
        everything = (np.arange(len(X)),) * self.members
        none = (np.arange(0),) * self.members
        rows = self._data(self._inputs(X), y, weight, Folds(everything, everything, none))
        if first:
            self._loss = method.make_loss(self.model_.policy, rows)
            self._keep_reward()
        # The temperature is for answers, not for training: the inner problem is the one at λ.
        policy = self.model_.policy
        kept = policy.temper.detach().clone()
        policy.temper.data.zero_()
        schedule = _schedule(self, 1)
        passes = -(-len(X) // schedule.batch_size)
        self.result_ = fit(
            policy,
            self._loss,
            rows,
            generator=self._generator,
            schedule=replace(schedule, steps=passes, evaluate_every=passes),
            progress=self.verbose > 0,
        )
        policy.temper.data.copy_(kept)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probabilities [N, C] in the order of ``classes_``: the mean over the members."""
        check_is_fitted(self, "result_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        probabilities: Array = self.model_.probs(torch.tensor(X)).numpy()
        return probabilities

    def predict(self, X: Any) -> Array:
        """The likeliest class of each row [N]."""
        probabilities = self.predict_proba(X)
        answers: Array = self.classes_[probabilities.argmax(1)]
        return answers

    def _start(self, X: Array, classes: Array, generator: torch.Generator) -> Tensor:
        """An untrained policy over ``classes``; the inputs of X."""
        if hasattr(self, "reward_matrix_"):  # of another method, fitted before
            del self.reward_matrix_
        self.classes_ = classes
        self._generator = generator
        policy = get_class_method(self.method).make_policy(
            X.shape[1],
            len(classes),
            generator=generator,
            members=self.members,
            hidden=_widths(self.hidden),
        )
        self.model_ = Classification(policy, Normaliser.fit(torch.tensor(X)))
        return self._inputs(X)

    def _inputs(self, X: Array) -> Tensor:
        return self.model_.normalise(torch.tensor(X))

    def _data(self, x: Tensor, y: Array, weight: Array, folds: Folds) -> FitData:
        codes = torch.from_numpy(np.searchsorted(self.classes_, y)).float().unsqueeze(1)
        return FitData(x.float(), codes, folds, weight=_weights(weight))

    def _keep_reward(self) -> None:
        if isinstance(self._loss, PolicyGradient) and isinstance(self._loss.reward, RewardMatrix):
            self.reward_matrix_ = self._loss.reward.matrix.detach().double().numpy()


class BilevelRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """An ensemble of Gaussian policies; ``method`` is one of ``methods.METHODS`` that look one step ahead.

    The rest, what weights are included, as for BilevelClassifier. Early stopping and the outer level look at held-out rows
    (``splits.cross_fit``); fewer than ten rows are repeated until there are ten, and then nothing is
    really held out.
    """

    def __init__(
        self,
        method: str = "bilevel",
        *,
        hidden: int | Sequence[int] = (64, 64),
        members: int = 5,
        steps: int = 1000,
        batch_size: int | Literal["auto"] = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        patience: int = 10,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.method = method
        self.hidden = hidden
        self.members = members
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.patience = patience
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X [N, X] and numbers y [N]; rows of weight zero are as if not there."""
        method = get_method(self.method)
        X, y, weight = _checked(self, X, y, sample_weight, rows=2, y_numeric=True)
        X, y, weight = X[weight > 0.0], y[weight > 0.0].astype(np.float64), weight[weight > 0.0]
        self._centre, self._spread = float(y.mean()), float(y.std())
        self._normaliser = Normaliser.fit(torch.tensor(X))
        self.model_ = None
        if not self._spread > ULPS * np.finfo(np.float64).eps * np.abs(y).max():
            self._spread = 0.0  # a constant target: there is nothing to learn
            return self
        if len(y) < _REGRESSION_ROWS:
            again = np.resize(np.arange(len(y)), _REGRESSION_ROWS)
            X, y, weight = X[again], y[again], weight[again]
        random = check_random_state(self.random_state)
        model, self.result_ = fit_regression(
            self._inputs(X).float(),
            torch.from_numpy((y - self._centre) / self._spread).float().unsqueeze(1),
            np.arange(len(y)),
            method,
            generator=torch.Generator().manual_seed(int(random.randint(2**31 - 1))),
            members=self.members,
            hidden=_widths(self.hidden),
            schedule=_schedule(self, self.steps),
            progress=self.verbose > 0,
            weight=_weights(weight),
        )
        model.policy.double()
        self.model_ = model
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The ensemble's mean [N]; with ``return_std`` also the standard deviation of its mixture."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, reset=False, dtype=np.float64)
        if self.model_ is None:
            mean, std = np.full(len(X), self._centre), np.zeros(len(X))
            return (mean, std) if return_std else mean
        means, stds = [], []
        with torch.inference_mode():
            for part in torch.split(self._inputs(X), CHUNK):
                each, covariance = self.model_.dist(part).moments()  # [E, B, 1], [E, B, 1, 1]
                spread = covariance[..., 0].mean(0) + each.var(0, correction=0)
                means.append(each.mean(0).squeeze(-1))
                stds.append(spread.sqrt().squeeze(-1))
        mean = torch.cat(means).numpy() * self._spread + self._centre
        return (mean, torch.cat(stds).numpy() * self._spread) if return_std else mean

    def _inputs(self, X: Array) -> Tensor:
        return self._normaliser.normalise(torch.tensor(X)).clamp(-FAR, FAR)


def _widths(hidden: object) -> tuple[int, ...]:
    """``hidden`` as a sequence: a number is the width of the one hidden layer."""
    try:
        widths = tuple(map(index, hidden if isinstance(hidden, Iterable) else (hidden,)))
    except TypeError:
        widths = (0,)
    if min(widths, default=1) < 1:
        raise InvalidInputError(
            "hidden must be the width of a layer or a sequence of widths, such as 64, (64, 64) or () for a "
            f"linear model; got {hidden!r}"
        )
    return widths


def _schedule(estimator: BilevelClassifier | BilevelRegressor, steps: int) -> Schedule:
    """How long and how fast ``estimator`` trains. Raises InvalidInputError, naming the argument."""
    # Whatever a user typed.
    rate: Any = estimator.learning_rate
    batch_size: Any = estimator.batch_size
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise InvalidInputError(
            "learning_rate must be a positive number: Adam's first step size, which falls by a cosine to zero "
            f"(scikit-learn's learning_rate_init); got {rate!r}: leave it out for 0.003"
        )
    if isinstance(batch_size, str) and batch_size != "auto":
        raise InvalidInputError(f'batch_size must be an int or "auto"; got {batch_size!r}')
    return Schedule(
        steps=steps,
        batch_size=_BATCH if batch_size == "auto" else batch_size,
        learning_rate=float(rate),
        weight_decay=estimator.weight_decay,
        evaluate_every=20,
        patience=estimator.patience,
    )


def _objective(wanted: Wanted) -> Objective:
    if isinstance(wanted, str):
        known: dict[str, Objective] = {
            "nll": OneStepNLL(),
            "balanced_accuracy": BalancedError(),
        }
        if wanted not in known:
            raise InvalidInputError(
                f"objective must be one of {', '.join(known)} or a cost matrix; got {wanted!r}"
            )
        return known[wanted]
    if callable(wanted):
        return wanted
    return ExpectedCost(tuple(tuple(map(float, row)) for row in wanted))


def _checked(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    first: bool = True,
    rows: int = FEWEST_ROWS,
    y_numeric: bool = False,
) -> tuple[Array, Array, Array]:
    X, y = validate_data(
        estimator,
        X,
        y,
        reset=first,
        dtype=np.float64,
        ensure_min_samples=rows,
        y_numeric=y_numeric,
    )
    weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
    return X, y, weight


def _weights(weight: Array) -> Tensor | None:
    """None where all are alike: the mean is then the plain one, to the last bit."""
    if (weight == weight[0]).all():
        return None
    return torch.from_numpy(weight / weight.mean()).float()

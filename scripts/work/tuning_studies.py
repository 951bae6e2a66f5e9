"""The Optuna study of a method: in memory, where every proposal can be made again, or in a storage that several
processes and machines share."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from options.tune import Args
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Row

#: What is tuned, on a logarithmic scale, alike for every method: options of ``fit.Schedule``.
SPACE: Mapping[str, tuple[float, float]] = {
    "learning_rate": (3e-4, 1e-2),
    "weight_decay": (1e-6, 1e-1),
}

_DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    name: optuna.distributions.FloatDistribution(*ends, log=True) for name, ends in SPACE.items()
}

#: Options that decide what the value of a trial is: they are the same for all who share a study.
_JUDGED_BY = (
    *("seed", "env_id", "minari", "seeds", "n_train", "n_test", "segment", "members", "hidden"),
    *("train_steps", "import_module", "trials"),
)


class HaltonThenTPE(optuna.samplers.TPESampler):
    """TPE (Bergstra 2011) whose first ``count`` trials are points of a Halton sequence, by their number."""

    def __init__(self, count: int, seed: int, tpe_seed: int) -> None:
        super().__init__(seed=tpe_seed % 2**32, n_startup_trials=count)
        random = np.random.default_rng(seed)
        self._points = qmc.Halton(len(SPACE), rng=random).random(count)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """The value of one setting."""
        if trial.number >= len(self._points):
            return super().sample_independent(study, trial, param_name, param_distribution)
        low, high = SPACE[param_name]
        u = self._points[trial.number][list(SPACE).index(param_name)]
        return float(low * (high / low) ** u)


class MethodStudy:
    """The trials of one method. ``run``: the folder of this run, by which it knows its own trials in a storage."""

    def __init__(self, args: Args, method: str, run: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.method, self._args, self._run = method, args, str(run.resolve())
        # Processes that share a study must not all propose the same next point.
        mine = 0 if args.storage is None else zlib.crc32(self._run.encode())
        sampler = HaltonThenTPE(-(-args.trials // 2), args.seed, args.seed + mine)
        if args.storage is None:
            self._study = optuna.create_study(sampler=sampler)
        else:
            self._study = _shared(args.storage, method, sampler)
            self._require_same_options()
        self._own = [t for t in self._study.trials if t.user_attrs.get("run") == self._run]

    def _require_same_options(self) -> None:
        """Raises InvalidInputError where the storage holds trials that were judged otherwise."""
        now = json.dumps({name: getattr(self._args, name) for name in _JUDGED_BY})
        then = self._study.user_attrs.get("options")
        if then is None:
            self._study.set_user_attr("options", now)
        elif then != now:
            old, new = json.loads(then), json.loads(now)
            name = next(n for n in new if old.get(n) != new[n])
            raise InvalidInputError(
                f"--storage: its trials of {self.method} were made with {name} {old.get(name)}, now it is "
                f"{new[name]}; give the same options, or another --storage"
            )

    def own(self) -> list[Row]:
        """The trials that this run has proposed, cells each."""
        return [self._key(trial) for trial in self._own]

    def ask(self, most: int) -> list[Row]:
        """Up to ``most`` more trials for this run, while the method has some left."""
        first = len(self._own)
        while len(self._own) < first + most and len(self._study.trials) < self._args.trials:
            trial = self._study.ask(_DISTRIBUTIONS)
            if trial.number >= self._args.trials:  # another process was quicker
                self._study.tell(trial, state=TrialState.FAIL)
                break
            trial.set_user_attr("run", self._run)
            self._own.append(self._study.trials[trial.number])
        return self.own()[first:]

    def _key(self, trial: FrozenTrial) -> Row:
        return {"method": self.method, "trial": trial.number, **trial.params}

    def tell(self, rows: Sequence[Row]) -> None:
        """Tell the values of this run's trials; one that diverged has none, one that failed no row."""
        values = {row["trial"]: row["value"] for row in rows if row["method"] == self.method}
        for trial in self._own:
            value = values.get(trial.number)
            state = TrialState.FAIL if value is None else None
            self._study.tell(trial.number, value, state=state, skip_if_finished=True)

    def rows(self) -> list[Row]:
        """Every trial with a value, or that diverged, whoever made it."""
        done = (TrialState.COMPLETE, TrialState.FAIL)
        return [
            self._key(t) | {"value": t.value}
            for t in self._study.get_trials(states=done)
            if "run" in t.user_attrs
        ]


def best(rows: Sequence[Row]) -> Row | None:
    """The settings of the lowest value; None if every trial diverged."""
    mine = [row for row in rows if row["value"] is not None]
    if not mine:
        return None
    found = min(mine, key=lambda row: (row["value"], row["trial"]))
    return {"settings": {name: found[name] for name in SPACE}, "value": found["value"]}


def _shared(place: str, method: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = place if "://" in place else JournalStorage(JournalFileBackend(place))
        return optuna.create_study(
            storage=storage, sampler=sampler, study_name=method, load_if_exists=True
        )
    except Exception as error:  # of whatever database it is
        why = " ".join(str(error).split())[:200]
        raise InvalidInputError(
            f"--storage {place!r}: {type(error).__name__}: {why}; give the path of a journal file, or a URL such as "
            "sqlite:///tuning.db"
        ) from error

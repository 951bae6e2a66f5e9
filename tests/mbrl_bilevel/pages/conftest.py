"""Run folders as the scripts leave them, with rows made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, script, options, rows, metrics=None): the folder."""

    def made(
        name: str,
        script: str,
        options: dict[str, Any],
        rows: list[dict[str, Any]],
        metrics: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = {"script": script, "args": options, "versions": {"torch": "2.13"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if metrics is not None:
            (folder / "metrics.json").write_text(json.dumps(metrics))
        return folder

    return made


@pytest.fixture
def trained(make: Make) -> Make:
    """trained(name, seeds, **options): a train of several seeds; the mean is −1000/step + seed."""

    def made(name: str, seeds: list[int], steps: int = 4, **options: Any) -> Path:
        asked = {"env_id": "Line-v0", "agent": "mpc", "model": "nll", "seed": seeds[0], **options}
        folder = make(name, "train", {**asked, "seeds": len(seeds)}, [], {"returns": []})
        for seed in seeds:
            rows = [
                {
                    "step": 100 * (i + 1),
                    "mean": -10.0 / (i + 1) + seed,
                    "cpu_seconds": 2.0,
                    "health": {
                        "model_rmse": 1.0 / (i + 1),
                        "imagined_return": 5.0,
                        "real_return": 4.0,
                    },
                }
                for i in range(steps)
            ]
            make(f"{name}/seed-{seed}", "train", {**asked, "seed": seed, "seeds": 1}, rows)
        return folder

    return made


@pytest.fixture
def compared(make: Make) -> Make:
    """compared(name, seeds, methods, **options): a compare with noise from a generator of its own."""

    def made(
        name: str,
        seeds: list[int],
        methods: tuple[str, ...] = ("bilevel", "nll", "mse"),
        **options: Any,
    ) -> Path:
        random = np.random.default_rng(seeds[0])
        rows = []
        for seed in seeds:
            for dataset in ("Hopper-v5", "Swimmer-v5"):
                for n in (100, 400):
                    for place, method in enumerate(methods):
                        error = (1.0 + place) / np.sqrt(n) * random.uniform(0.9, 1.1)
                        rows.append(
                            {
                                **{"method": method, "dataset": dataset, "seed": seed},
                                **{"n_train": n, "nrmse": error, "nll": np.log(error)},
                                **{"ncrps": error / 2, "calibration_error": 0.01},
                                **{"coverage_90": 0.9 - 0.1 * place, "train_seconds": 3.0},
                                "coverage": [
                                    max(0.0, level - 0.1 * place)
                                    for level in (
                                        *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
                                    )
                                ],
                                **{"k": [1, 5, 20], "k_nrmse": [error, 2 * error, None]},
                                **{"k_nll": [0.0, 1.0, None], "k_coverage_90": [0.9, 0.8, None]},
                            }
                        )
        return make(name, "compare", {"methods": list(methods), **options}, rows, {"rows": []})

    return made


@pytest.fixture
def forgot(make: Make) -> Make:
    """forgot(name, methods): a continual of two seeds and three tasks."""

    def made(name: str, methods: tuple[str, ...] = ("bilevel+kl", "nll", "nll+ewc")) -> Path:
        rows = [
            {
                **{"method": method, "sequence": "hopper-mass", "seed": seed},
                "nll": [
                    [1.0 + seed, 9.0, 9.0],
                    [1.0 + seed + place, 2.0, 9.0],
                    [1.0 + seed + 3 * place, 2.0 + place, 3.0],
                ],
                **{"train_seconds": [1.0, 2.0, 3.0], "tasks": ["light", "middle", "heavy"]},
            }
            for seed in (0, 1)
            for place, method in enumerate(methods)
        ]
        return make(name, "continual", {"methods": list(methods)}, rows, {"rows": []})

    return made


@pytest.fixture
def classified(make: Make) -> Make:
    """classified(name): a classify of two methods on one set."""

    def made(name: str) -> Path:
        rows = [
            {
                **{"method": method, "dataset": "wine", "seed": seed, "n_train": 0},
                **{"learning_rate": 0.003, "accuracy": 0.9 + 0.05 * place, "nll": 0.3},
                **{"ece": 0.05, "brier": 0.2, "balanced_accuracy": 0.9, "train_seconds": 1.0},
                **{"count": [0, 4, 6], "confidence": [0.0, 0.5, 0.9]},
                "correct": [0.0, 0.25 * (seed + 1), 1.0],
                "outer": {"bend": 0.5 + seed, "inner_gradient_norm": 1e-9},
                "reward_matrix": [[2.0, -1.0], [0.0, 2.0 + 2 * seed]],
                "labels": ["red", "white"],
            }
            for seed in (0, 1)
            for place, method in enumerate(("bilevel", "nll"))
        ]
        return make(name, "classify", {}, rows, {"rows": []})

    return made

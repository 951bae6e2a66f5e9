"""Makes the reference rows beside this script: small runs of compare, continual and train.

Run once, with the code of commit b042254, whose numbers later versions must find again:

    git clone . /tmp/then && git -C /tmp/then checkout b042254
    OMP_NUM_THREADS=1 PYTHONPATH=/tmp/then:/tmp/then/scripts python tests/data/reference/make.py

It takes half a minute on one core. Each file holds runs by name: the ``options`` as they are typed, and
what the run's metrics.json then said, without times.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from mbrl_bilevel.studies.launching import launch

HERE = Path(__file__).resolve().parent
#: Times, devices and folders are no results.
LEFT_OUT = ("train_seconds", "wall_seconds", "seconds", "device", "folder")

NET = "--quiet --members 2 --seeds 1"
COMPARE = (
    f"{NET} --env-id Pendulum-v1 --methods bilevel nll mse beta-nll faithful bilevel-mixture "
    "--hidden 16 16 --n-train 200 --train-steps 100 --n-test 300 --horizons 1 5 20"
)
CONTINUAL = f"{NET} --hidden 16 --n-train 100 --n-test 100 --learning-rate 1e-2"
TRAIN = "--quiet --env-id Pendulum-v1 --eval-episodes 1 --seed 3"
MODEL = "--members 2 --hidden 16 --train-steps 60 --learning-rate 3e-3 --refit-every 100"
POLICY = "--policy-hidden 16 --batch-size 32"

#: File -> run -> options.
RUNS: dict[str, dict[str, str]] = {
    "compare": {"pendulum": COMPARE},
    "continual": {
        "dynamics": f"{CONTINUAL} --sequences hopper-mass --train-steps 30 --horizon 3 "
        "--methods bilevel+kl-seen bilevel nll+kl nll+replay nll",
        "classes": f"{CONTINUAL} --sequences cancer-labs --train-steps 40 --memory 50 "
        "--methods bilevel-bounded+kl nll+der nll+ewc nll",
    },
    "train": {
        "mpc": f"{TRAIN} --agent mpc {MODEL} --steps 240 --eval-every 120 --learning-starts 100 "
        "--particles 2 --horizon 3 --population 16 --iterations 2 --replan-every 2",
        "mbpo": f"{TRAIN} --agent mbpo {MODEL} {POLICY} --steps 240 --eval-every 120 "
        "--learning-starts 100 --updates-per-step 2 --rollouts-per-step 4",
        "sac": f"{TRAIN} --agent sac {POLICY} --steps 300 --eval-every 150 --learning-starts 100",
    },
}
#: What of a run's metrics is kept.
KEPT = {"compare": ("rows",), "continual": ("rows", "matrices"), "train": ("returns",)}


def plain(value: Any) -> Any:
    """Without times, and floats to nine digits."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in LEFT_OUT}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    """Run all of it."""
    torch.set_num_threads(1)
    for script, runs in RUNS.items():
        module, found = importlib.import_module(script), {}
        for name, options in runs.items():
            with tempfile.TemporaryDirectory() as folder:
                launch(module.Args, module.main, [*options.split(), "--out", f"{folder}/run"])
                metrics = json.loads((Path(folder) / "run" / "metrics.json").read_text())
            kept = {part: plain(metrics[part]) for part in KEPT[script]}
            found[name] = {"options": options.split(), **kept}
        text = json.dumps(found, indent=1, allow_nan=False)
        (HERE / f"{script}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

"""From a file of logged steps to a rollout with its band: what a model says, and how sure it is.

    python examples/logged_steps.py my_log.npz

The file holds obs, action, next_obs, reward, terminated and truncated, a row a step. A model is fitted to all
but the last tenth of the episodes; from the start of one of these it predicts 20 steps under the actions that
were taken, and says in which band nine of ten should lie.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from envs.datasets.steps import load_steps
from mbrl_bilevel.evaluation.dynamics import rollout_band
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule


def band_of(path: str, ahead: int = 20, steps: int = 2000) -> dict[str, torch.Tensor]:
    """``truth``, ``mean``, ``low`` and ``high`` [ahead, O] of a stretch of unseen steps."""
    generator = torch.Generator().manual_seed(0)
    logged = load_steps(path)
    unseen = logged.episode >= np.quantile(logged.episode, 0.9)
    method, schedule = get_method("bilevel"), Schedule(steps=steps)
    model, _ = fit_dynamics(logged[~unseen], method, generator=generator, schedule=schedule)
    return rollout_band(model, logged[unseen], ahead, generator=generator)


if __name__ == "__main__":
    band = band_of(sys.argv[1])
    inside = (band["low"] <= band["truth"]) & (band["truth"] <= band["high"])
    for t in range(len(inside)):
        where = zip(*(band[name][t].tolist() for name in ("truth", "low", "high")), strict=True)
        print(t + 1, "  ".join(f"{x:.3g} in [{low:.3g}, {high:.3g}]" for x, low, high in where))
    print(f"inside the band: {inside.float().mean():.2f}")

"""The example of a policy of one's own: its formulas against SciPy, its fit, its plans; what is told where it lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))

import student_t  # noqa: E402

from mbrl_bilevel import Schedule, fit_dynamics, get_method  # noqa: E402
from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError  # noqa: E402
from mbrl_bilevel.evaluation.dynamics import evaluate_one_step  # noqa: E402
from mbrl_bilevel.models.dynamics_checkpoint import save_model  # noqa: E402


def test_the_distribution_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, raw, y = (torch.randn(1, 5, 2, generator=generator).double() for _ in range(3))
    dist = student_t.StudentTs(mean, raw).affine(torch.tensor([2.0, 0.5]), torch.tensor([1.0, -1]))
    for b, found in enumerate(dist.log_prob(y)[0]):
        shape = np.diag(np.exp(2.0 * dist.log_scale[0, b].numpy()))
        wanted = stats.multivariate_t(dist.mean[0, b].numpy(), shape, df=student_t.DOF)
        assert found.item() == pytest.approx(wanted.logpdf(y[0, b].numpy()), rel=1e-9)
    one = student_t.StudentTs(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    noise = torch.randn(1, 20_000, 1 + student_t.DOF, generator=generator)
    assert stats.kstest(one.drawn(noise)[0, :, 0], stats.t(student_t.DOF).cdf).pvalue > 0.01


def test_it_is_fitted_and_planned_with(tmp_path: Path) -> None:
    model = student_t.fitted(student_t.pushed_mass(np.random.default_rng(0)), steps=300)
    obs = torch.tensor([[-1.0], [-0.4], [0.4], [1.0]])
    # It saw through the outliers: next = .9·obs + .5·action.
    said = model.predict(obs, torch.zeros(4, 1))
    assert (said.next_obs - 0.9 * obs).abs().max() < 0.2
    # The action that lands on zero is −1.8·obs, within its bounds.
    action = student_t.first_action(model, obs)
    assert (action + (1.8 * obs).clamp(-1.0, 1.0)).abs().max() < 0.4
    with pytest.raises(UnsupportedCombinationError, match="score it by its log_prob"):
        evaluate_one_step(model, student_t.pushed_mass(np.random.default_rng(1), episodes=2))
    with pytest.raises(InvalidInputError, match=r"policy of your own \(StudentT\)"):
        save_model(tmp_path / "model.safetensors", model)


@pytest.mark.parametrize("lacks", ["noise_width", "drawn", "affine", "log_prob"])
def test_what_is_missing_is_named(lacks: str) -> None:
    class Short(student_t.StudentTs):
        if lacks != "noise_width":
            locals()[lacks] = property(lambda self: self.absent)

    class Policy(student_t.StudentT):
        def __init__(self, *sizes: int, **rest: object) -> None:
            super().__init__(*sizes, **rest)  # type: ignore[arg-type]
            if lacks == "noise_width":
                del self.noise_width

        def dist(self, x: torch.Tensor) -> student_t.StudentTs:
            return Short(*super().dist(x).params)

    data = student_t.pushed_mass(np.random.default_rng(0))
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(InvalidInputError, match=f"policy: .* has no {lacks}, which is"):
        fit_dynamics(
            data,
            get_method("nll"),
            policy=Policy,
            generator=generator,
            members=2,
            hidden=(4,),
            schedule=Schedule(steps=1),
        )

"""The setting in which all is known: its condensed rows, its curvature, its covariance."""

from __future__ import annotations

import pytest
import torch

from mbrl_bilevel.inner.positive import Form
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.theory.catalogue import hypergradient, solvers
from mbrl_bilevel.theory.linear_gaussian import (
    build,
    condensed,
    descent,
    linear_gaussian,
    outer_hessian,
    settle,
    true_covariance,
)

FORMS: tuple[Form, ...] = ("scaled_identity", "diagonal", "full")


@pytest.mark.parametrize("form", FORMS)
def test_condensed_rows_give_the_same_hypergradient(form: Form) -> None:
    """Inner objective, outer objective and all derivatives are those of the whole sample."""
    setting = build(3, form, 500, 0)
    train, held_out, _, _ = linear_gaussian(500, 3, 0)
    assert condensed(train).x.shape == (1, 6, 2)
    whole = Problem(setting.problem.policy, setting.problem.loss, train, held_out)
    assert settle(setting.problem) < 1e-9
    for name in ("exact_implicit", "function_space"):
        torch.testing.assert_close(
            hypergradient(solvers()[name], whole),
            hypergradient(solvers()[name], setting.problem),
            rtol=1e-8,
            atol=1e-10,
        )


@pytest.mark.parametrize("form", FORMS)
def test_outer_hessian_is_the_slope_of_the_hypergradient(form: Form) -> None:
    setting = build(3, form, 500, 0)
    moment = 0.5 * torch.linalg.inv(setting.optimum) if form == "full" else None
    if moment is None:
        moment = 0.5 * torch.diag(1.0 / setting.optimum.diagonal())
    setting.reward.set_matrix(setting.optimum)
    columns = []
    for parameter in setting.reward.parameters():
        for index in range(parameter.numel()):
            flat = parameter.data.view(-1)
            sides = []
            for step in (1e-4, -1e-4):
                flat[index] += step
                settle(setting.problem)
                sides.append(hypergradient(solvers()["exact_implicit"], setting.problem))
                flat[index] -= step
            columns.append((sides[0] - sides[1]) / 2e-4)
    found = torch.linalg.eigvalsh(torch.stack(columns, dim=1))
    # Ours is ordered column by column, theirs diagonal first: the eigenvalues are the same.
    torch.testing.assert_close(
        found, torch.linalg.eigvalsh(outer_hessian(form, moment)), rtol=1e-5, atol=1e-6
    )
    assert 0.0 < descent(form, moment).rate < 1.0


def test_the_true_covariance_is_one() -> None:
    for dim in (1, 2, 10):
        assert torch.linalg.eigvalsh(true_covariance(dim)).min() > 0.0

"""Every solver on the catalogue, against finite differences of the fully solved inner problem."""

from __future__ import annotations

import pytest
import torch

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.theory.brute_force import finite_differences, relative_error, solve_inner
from mbrl_bilevel.theory.catalogue import catalogue, hypergradient, hypergradient_errors, solvers

WELL = {name for name, build in catalogue().items() if build().well_specified}
FREE = {name for name, build in catalogue().items() if build().free}


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    # Half as many steps as on the pages: its errors are a tenth of what is asked for here.
    return hypergradient_errors(unrolled=150)


def test_exact_implicit_is_exact_everywhere(errors: dict[str, dict[str, float]]) -> None:
    assert set(errors["exact_implicit"]) == set(catalogue())
    assert max(errors["exact_implicit"].values()) <= 1e-5


@pytest.mark.parametrize("solver", ["neumann", "unrolled"])
def test_the_other_hessian_solvers_agree(errors: dict[str, dict[str, float]], solver: str) -> None:
    assert set(errors[solver]) == set(catalogue())
    assert max(errors[solver].values()) <= 1e-3


def test_fisher_implicit_is_exact_where_well_specified(
    errors: dict[str, dict[str, float]],
) -> None:
    found = errors["fisher_implicit"]
    assert set(found) == set(catalogue())
    assert len(WELL) >= 11
    assert max(found[name] for name in WELL) <= 1e-3


def test_fisher_implicit_is_biased_where_misspecified(errors: dict[str, dict[str, float]]) -> None:
    """The catalogue can tell the difference: these numbers are recorded, not hidden."""
    found = errors["fisher_implicit"]
    assert all(found[name] > 1e-3 for name in set(catalogue()) - WELL)


@pytest.mark.parametrize("solver", ["function_space", "closed_form_gradient"])
def test_function_space_is_exact_where_the_policy_is_free(
    errors: dict[str, dict[str, float]], solver: str
) -> None:
    found = {name: error for name, error in errors[solver].items() if name in FREE}
    assert len(found) >= 5
    assert max(found.values()) <= 1e-3
    # The means are not free, but with these many rows they hardly move with φ.
    assert errors[solver]["heteroscedastic_linear"] <= 1e-3
    assert errors[solver]["mlp"] <= 1e-3


def test_sampled_cross_term_is_close(errors: dict[str, dict[str, float]]) -> None:
    found = errors["fisher_implicit_sampled"]
    assert max(found[name] for name in WELL) <= 0.05


def test_an_ensemble_sums_over_its_members() -> None:
    """φ is shared: the finite differences are of the sum of the members' objectives."""
    entry = catalogue()["gaussian_2d"]()
    assert entry.problem.policy.members == 2
    solve_inner(entry.problem)
    objective = entry.problem.objective(entry.problem.policy, entry.problem.held_out)
    assert objective.shape == (2,)
    assert abs(objective[0].item() - objective[1].item()) > 1e-3  # two different samples


def test_another_seed_agrees_too() -> None:
    found = hypergradient_errors(["gaussian_2d_full", "categorical_2"], seed=7)
    assert max(found["exact_implicit"].values()) <= 1e-5
    assert max(found["fisher_implicit"].values()) <= 1e-3


def test_finite_differences_leave_everything_as_it_was() -> None:
    problem = catalogue()["kl_weight"]().problem
    solve_inner(problem)
    before = [
        p.detach().clone() for p in (*problem.policy.parameters(), *problem.loss.parameters())
    ]  # type: ignore[attr-defined]
    finite_differences(problem)
    after = (*problem.policy.parameters(), *problem.loss.parameters())  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_wrong_hypergradient_would_be_found_out() -> None:
    """Away from the inner optimum the implicit formula is wrong, and the comparison says so."""
    problem = catalogue()["gaussian_1d"]().problem
    solve_inner(problem)
    truth = finite_differences(problem)
    with torch.no_grad():
        for parameter in problem.policy.parameters():
            parameter += 0.3
    assert relative_error(hypergradient(solvers()["exact_implicit"], problem), truth) > 1e-2


def test_unknown_name() -> None:
    with pytest.raises(InvalidInputError, match="gaussian_1d"):
        hypergradient_errors(["nonsense"])

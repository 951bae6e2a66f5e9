"""The iterative solvers against numpy's dense one, and what they say when they fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.outer.linear_solvers import (
    LinearSolver,
    MatVec,
    conjugate_gradient,
    largest_eigenvalue,
    neumann_series,
)

E, P = 3, 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spd(scales: Tensor | None = None) -> Tensor:
    """Well-conditioned SPD matrices [E, P, P], one scale per member."""
    factor = draw(E, P, P)
    matrix = factor @ factor.mT / P + torch.eye(P, dtype=torch.float64)
    return matrix if scales is None else matrix * scales.reshape(E, 1, 1)


def times(matrix: Tensor) -> MatVec:
    return lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)


def counted(matvec: MatVec) -> tuple[MatVec, list[int]]:
    calls: list[int] = []

    def wrapped(v: Tensor) -> Tensor:
        calls.append(1)
        return matvec(v)

    return wrapped, calls


@pytest.mark.parametrize("solve", [conjugate_gradient, neumann_series])
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_agrees_with_numpy(solve: LinearSolver, damping: float) -> None:
    matrix, b = spd(torch.tensor([1.0, 1e-3, 1e4], dtype=torch.float64)), draw(E, P, seed=1)
    x, info = solve(times(matrix), b, damping=damping, tolerance=1e-11, max_iterations=2000)  # type: ignore[call-arg]
    damped = matrix.numpy() + damping * np.eye(P)
    truth = np.linalg.solve(damped, b.numpy()[..., None])[..., 0]
    np.testing.assert_allclose(x.numpy(), truth, rtol=1e-8, atol=1e-10)
    assert bool(info.converged.all())
    residual = np.linalg.norm(b.numpy() - (damped @ x.numpy()[..., None])[..., 0], axis=-1)
    np.testing.assert_allclose(
        info.residual.numpy(), residual / np.linalg.norm(b.numpy(), axis=-1), rtol=1e-6, atol=1e-15
    )


def test_conjugate_gradient_ends_after_as_many_steps_as_dimensions() -> None:
    _, info = conjugate_gradient(times(spd()), draw(E, P), tolerance=1e-9, max_iterations=500)
    assert info.iterations <= P + 1


def test_an_exhausted_budget_is_reported() -> None:
    _, info = conjugate_gradient(times(spd()), draw(E, P), tolerance=1e-10, max_iterations=2)
    assert info.iterations == 2
    assert not info.converged.any()
    assert info.report()["linear_converged"] == 0.0
    assert info.report()["linear_residual"] == info.residual.max().item() > 1e-10


def test_members_do_not_disturb_each_other() -> None:
    matrix, b = spd(), draw(E, P)
    alone, _ = conjugate_gradient(times(matrix[1:2]), b[1:2], tolerance=1e-6)
    scales = torch.tensor([1e6, 1.0, 1e-6], dtype=torch.float64)
    among, _ = conjugate_gradient(times(spd(scales)), b, tolerance=1e-6)
    torch.testing.assert_close(among[1:2], alone)


def test_warm_start_at_the_solution_takes_no_iteration() -> None:
    matrix, b = spd(), draw(E, P)
    x, _ = conjugate_gradient(times(matrix), b, tolerance=1e-10)
    again, info = conjugate_gradient(times(matrix), b, x, tolerance=1e-8)
    assert info.iterations == 0
    torch.testing.assert_close(again, x, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("bad", [1e8, float("nan")])
def test_a_start_worse_than_zero_is_dropped(bad: float) -> None:
    matrix, b = spd(), draw(E, P)
    start = torch.full_like(b, bad)
    x, info = conjugate_gradient(times(matrix), b, start, tolerance=1e-8)
    cold, _ = conjugate_gradient(times(matrix), b, tolerance=1e-8)
    assert bool(info.converged.all())
    torch.testing.assert_close(x, cold)


def test_zero_right_side_and_singular_matrix() -> None:
    zero, info = conjugate_gradient(times(spd()), torch.zeros(E, P, dtype=torch.float64))
    assert not zero.any()
    assert bool(info.converged.all())
    # A right side inside the range of a singular matrix is solved without a part outside of it.
    flat = spd()
    flat[:, -1], flat[:, :, -1] = 0.0, 0.0
    b = times(flat)(draw(E, P))
    x, info = conjugate_gradient(times(flat), b, tolerance=1e-9)
    assert bool(info.converged.all())
    assert not x[:, -1].any()


def test_negative_curvature_stops_the_member_and_is_reported() -> None:
    matrix = spd()
    matrix[1] = -matrix[1]
    x, info = conjugate_gradient(times(matrix), draw(E, P), tolerance=1e-8)
    assert info.converged.tolist() == [True, False, True]
    assert bool(x.isfinite().all())


def test_neumann_is_the_partial_sum() -> None:
    matrix, b, step = spd() / 4.0, draw(E, P), 0.3
    x, _ = neumann_series(times(matrix), b, step=step, tolerance=0.0, max_iterations=7)
    term, total = step * b, torch.zeros_like(b)
    for _ in range(7):
        total = total + term
        term = term - step * times(matrix)(term)
    torch.testing.assert_close(x, total)


@pytest.mark.parametrize("cause", ["step", "indefinite"])
def test_neumann_divergence_is_reported_with_a_finite_iterate(cause: str) -> None:
    matrix, step = spd(), None
    if cause == "step":
        step = 10.0
    else:
        matrix[:, 0], matrix[:, :, 0] = 0.0, 0.0
        matrix[:, 0, 0] = -1.0
    x, info = neumann_series(
        times(matrix), draw(E, P), step=step, tolerance=1e-6, max_iterations=5000
    )
    assert not info.converged.any()
    assert info.iterations < 5000
    assert bool(x.isfinite().all())


def test_largest_eigenvalue() -> None:
    matrix = spd(torch.tensor([1.0, 1e-3, 1e3], dtype=torch.float64))
    truth = torch.linalg.eigvalsh(matrix)[:, -1:]
    found = largest_eigenvalue(times(matrix), draw(E, P), iterations=200)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"x0": torch.zeros(E, P + 1)}, "x0"),
        ({"damping": -1.0}, "damping"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"tolerance": float("nan")}, "tolerance"),
    ],
)
def test_refusals_name_the_argument(change: dict[str, object], name: str) -> None:
    for solve in (conjugate_gradient, neumann_series):
        with pytest.raises(InvalidInputError, match=name):
            solve(times(spd()), draw(E, P), **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="b must be"):
        conjugate_gradient(times(spd()), draw(P))
    with pytest.raises(InvalidInputError, match="step"):
        neumann_series(times(spd()), draw(E, P), step=0.0)

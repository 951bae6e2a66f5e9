"""The affine map and back, its log-determinant by change of variables, and constant dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.normaliser import Normaliser


def rows(n: int = 50, dim: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.floats(-3.0, 4.0), st.floats(-1e3, 1e3))
def test_round_trip_and_unit_moments(n: int, seed: int, log_scale: float, shift: float) -> None:
    values = rows(n, 3, seed) * 10.0**log_scale + shift
    normaliser = Normaliser.fit(values)
    normalised = normaliser.normalise(values)
    varying = ~normaliser.constant
    torch.testing.assert_close(normaliser.denormalise(normalised), values)
    moments = normalised[:, varying]
    zeros, ones = torch.zeros(2, int(varying.sum()), dtype=torch.float64).unbind()
    torch.testing.assert_close(moments.mean(0), zeros, rtol=0.0, atol=1e-7)
    torch.testing.assert_close(moments.std(0, correction=0), ones + 1.0, rtol=0.0, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(-2.0, 2.0))
def test_log_det_changes_a_density_from_normalised_to_raw(seed: int, log_scale: float) -> None:
    """N(shift, scale²) of a raw value is N(0, 1) of the normalised one, less the log-determinant."""
    values = rows(30, 3, seed) * 10.0**log_scale + 5.0
    normaliser = Normaliser.fit(values)
    raw = Normal(normaliser.shift, normaliser.scale).log_prob(values).sum(-1)
    normalised = Normal(0.0, 1.0).log_prob(normaliser.normalise(values)).sum(-1)
    torch.testing.assert_close(normalised - normaliser.log_det(), raw)
    jacobian = torch.func.jacfwd(normaliser.denormalise)(values[0])
    torch.testing.assert_close(normaliser.log_det(), torch.linalg.slogdet(jacobian)[1])


def test_a_dimension_that_does_not_vary_is_marked_and_left_out_of_the_density() -> None:
    values = rows()
    values[:, 1] = 7.3
    normaliser = Normaliser.fit(values)
    assert normaliser.constant.tolist() == [False, True, False]
    assert normaliser.scale[1] == 1.0
    assert (normaliser.normalise(values)[:, 1].abs() < 1e-12).all()
    torch.testing.assert_close(normaliser.denormalise(normaliser.normalise(values)), values)
    torch.testing.assert_close(normaliser.log_det(), Normaliser.fit(values[:, [0, 2]]).log_det())


@pytest.mark.parametrize(
    ("offset", "spread", "constant"), [(1e4, 1.0, False), (1e4, 1e-3, True), (0.0, 1e-3, False)]
)
def test_spread_is_told_from_rounding(offset: float, spread: float, constant: bool) -> None:
    """In float32 a constant far from zero seems to vary by its rounding error."""
    values = (offset + spread * rows(200, 1)).float()
    assert len(values.unique()) > 1
    assert Normaliser.fit(values).constant.tolist() == [constant]


@pytest.mark.parametrize("unit", [1e-7, 1e-15, 1e-30])
def test_what_varies_does_not_depend_on_the_unit(unit: float) -> None:
    values = rows().float()
    values[:, 1] = 7.3
    small = Normaliser.fit(values * unit)
    assert small.constant.tolist() == [False, True, False]
    torch.testing.assert_close(
        small.normalise(values * unit)[:, [0, 2]],
        Normaliser.fit(values).normalise(values)[:, [0, 2]],
        rtol=0.0,
        atol=1e-5,
    )


def test_time_stamps_in_double_vary() -> None:
    seconds = rows(200, 1)
    normaliser = Normaliser.fit(1.7e9 + seconds)
    assert not normaliser.constant.any()
    torch.testing.assert_close(
        normaliser.normalise(1.7e9 + seconds),
        Normaliser.fit(seconds).normalise(seconds),
        rtol=0.0,
        atol=1e-6,
    )


def test_one_row_is_all_constant() -> None:
    normaliser = Normaliser.fit(rows(1))
    assert normaliser.constant.all()
    assert normaliser.log_det() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_the_data_is_kept(dtype: torch.dtype) -> None:
    normaliser = Normaliser.fit(rows().to(dtype))
    assert normaliser.shift.dtype == normaliser.scale.dtype == normaliser.log_det().dtype == dtype
    assert normaliser.normalise(rows().to(dtype)).dtype == dtype


def test_float32_moments_are_summed_in_double() -> None:
    """100 000 rows about 1000: summed in float32 the mean would be off by more."""
    values = (1000.0 + rows(100_000, 1)).float()
    normaliser = Normaliser.fit(values)
    exact = values.double()
    assert abs(normaliser.shift.item() - exact.mean().item()) < 1e-4
    assert abs(normaliser.scale.item() - exact.std(correction=0).item()) < 1e-6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(0, 3), r"N >= 1; got \(0, 3\)"),
        (torch.zeros(3), r"must be \[N, D\]"),
        (torch.tensor([[math.nan]]), "NaN or infinity"),
        (torch.tensor([[1.0], [math.inf]]), "NaN or infinity"),
        (torch.tensor([[1], [2]]), "must be floats; got torch.int64"),
    ],
)
def test_bad_values_are_refused(values: Tensor, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Normaliser.fit(values)

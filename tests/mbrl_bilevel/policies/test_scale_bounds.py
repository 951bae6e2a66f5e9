"""Log-scales stay within their bounds whatever a network says, and can be set exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.policies.scale_bounds import LogBounds

bounds = st.builds(LogBounds, st.floats(-20.0, -0.01), st.floats(0.01, 10.0))


@settings(deadline=None)
@given(bounds, st.floats(allow_nan=False), st.sampled_from([torch.float32, torch.float64]))
def test_any_number_comes_out_within_the_bounds(
    limits: LogBounds, raw: float, dtype: torch.dtype
) -> None:
    value = limits.bound(torch.tensor(raw, dtype=dtype))
    low, high = (torch.tensor(v, dtype=dtype) for v in (limits.low, limits.high))
    assert value.dtype == dtype
    assert low <= value <= high


@settings(deadline=None)
@given(bounds, st.floats(0.001, 0.999))
def test_raw_is_the_inverse(limits: LogBounds, share: float) -> None:
    value = torch.tensor(limits.low + (limits.high - limits.low) * share, dtype=torch.float64)
    torch.testing.assert_close(limits.bound(limits.raw(value, "std")), value, rtol=0.0, atol=1e-9)


@settings(deadline=None)
@given(bounds)
def test_zero_means_one_and_the_gradient_lives(limits: LogBounds) -> None:
    raw = torch.linspace(-3.0, 3.0, 7, dtype=torch.float64, requires_grad=True)
    value = limits.bound(raw)
    assert abs(value[3].item()) < 1e-12
    (gradient,) = torch.autograd.grad(value.sum(), raw)
    assert (gradient > 0.0).all()


@pytest.mark.parametrize(
    "limits",
    [(0.0, 1.0), (-1.0, 0.0), (1.0, -1.0), (-math.inf, 1.0), (-1.0, 1e300), (-1e39, 1.0)],
)
def test_bounds_that_do_not_hold_zero_or_a_number_are_refused(limits: tuple[float, float]) -> None:
    with pytest.raises(InvalidInputError, match="low < 0 < high"):
        LogBounds(*limits)


@pytest.mark.parametrize("value", [-2.0, 3.0, -2.5, math.inf, -math.inf, math.nan])
def test_a_value_outside_is_refused_not_moved(value: float) -> None:
    with pytest.raises(InvalidInputError, match="std: every scale must lie between"):
        LogBounds(-2.0, 3.0).raw(torch.tensor([0.0, value]), "std")

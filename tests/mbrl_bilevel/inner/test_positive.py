"""Positive functions of x: positive, bounded and constant at the start, whatever the parameters."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.inner.positive import PositiveFunction


@pytest.mark.parametrize("outputs", [None, 1, 3])
@pytest.mark.parametrize("hidden", [(), (6,)])
def test_it_starts_at_the_constant(outputs: int | None, hidden: tuple[int, ...]) -> None:
    function = PositiveFunction(
        2, outputs, initial=0.7, hidden=hidden, generator=torch.Generator().manual_seed(0)
    )
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(1))
    value = function(x)
    assert value.shape == ((4, 5) if outputs is None else (4, 5, outputs))
    torch.testing.assert_close(value, torch.full_like(value, 0.7))
    gradients = torch.autograd.grad(value.sum(), list(function.network.layers[-1].parameters()))
    assert all(g.abs().max() > 0.1 for g in gradients)  # the bound does not stop it at the start


@settings(max_examples=60, deadline=None)
@given(scale=st.floats(-1e6, 1e6), x=st.floats(-1e6, 1e6), span=st.sampled_from([1.5, 10.0, 1e4]))
def test_it_is_positive_and_bounded(scale: float, x: float, span: float) -> None:
    function = PositiveFunction(1, initial=0.3, span=span).double()
    with torch.no_grad():
        for parameter in function.parameters():
            parameter.fill_(scale)
    value = function(torch.full((1, 1, 1), x, dtype=torch.float64)).item()
    assert 0.3 / span * (1 - 1e-6) <= value <= 0.3 * span * (1 + 1e-6)


def test_recentre_and_freezing() -> None:
    function = PositiveFunction(2, 2, learnable=False)
    assert not [p for p in function.parameters() if p.requires_grad]
    with torch.no_grad():
        function.network.layers[-1].weight.fill_(1.0)
    x = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    assert function(x).std() > 0.1
    function.recentre(torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(function(x), torch.tensor([2.0, 5.0]).expand(1, 4, 2))
    with pytest.raises(InvalidInputError, match="positive"):
        function.recentre(torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "settings", [{"initial": 0.0}, {"span": 1.0}, {"initial": math.inf}, {"hidden": (3,)}]
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        PositiveFunction(1, **settings)  # type: ignore[arg-type]

"""The batched ensemble equals a loop over nn.Linear, and its members know nothing of each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.policies.networks import EnsembleLinear, EnsembleMLP

E, B, X, D = 3, 5, 4, 2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(hidden: tuple[int, ...] = (7, 6), seed: int = 0) -> EnsembleMLP:
    return EnsembleMLP(E, (X, *hidden, D), generator(seed))


def inputs() -> Tensor:
    return torch.randn(E, B, X, generator=generator(9))


def alone(ensemble: EnsembleMLP, member: int) -> nn.Sequential:
    """One member as the plain network it stands for."""
    layers: list[nn.Module] = []
    for ours in ensemble.layers:
        assert isinstance(ours, EnsembleLinear)
        layer = nn.Linear(ours.weight.shape[1], ours.weight.shape[2])
        with torch.no_grad():
            layer.weight.copy_(ours.weight[member].T)
            layer.bias.copy_(ours.bias[member, 0])
        layers += [layer, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
def test_it_equals_a_loop_over_plain_networks(hidden: tuple[int, ...]) -> None:
    ensemble, x = network(hidden), inputs()
    expected = torch.stack([alone(ensemble, member)(x[member]) for member in range(E)])
    torch.testing.assert_close(ensemble(x), expected)


def test_members_know_nothing_of_each_other() -> None:
    ensemble, x = network(), inputs()
    before = ensemble(x)
    (gradients) = torch.autograd.grad(before[1].sum(), list(ensemble.parameters()))
    assert all((g[[0, 2]] == 0).all() and (g[1] != 0).any() for g in gradients)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter[0] += 1.0
    after = ensemble(x)
    assert torch.equal(after[1:], before[1:])
    assert not torch.allclose(after[0], before[0])


def test_it_starts_as_pytorch_starts_a_linear_layer() -> None:
    layer = EnsembleLinear(4, 25, 2000, generator(0))
    for values in (layer.weight, layer.bias):
        assert values.abs().max() <= 0.2
        # The standard deviation of a uniform on ±1/√25.
        torch.testing.assert_close(values.std().item(), 0.2 / 3**0.5, rtol=0.05, atol=0.0)
    assert not torch.equal(layer.weight[0], layer.weight[1])


def test_same_seed_same_network() -> None:
    one, same, other = network(seed=1), network(seed=1), network(seed=2)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_double_precision() -> None:
    assert network().double()(inputs().double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("members", "sizes"), [(0, (2, 2)), (2, (2,)), (2, ()), (2, (2, 0, 2)), (2, (2, -1))]
)
def test_sizes_below_one_are_refused(members: int, sizes: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="must be positive"):
        EnsembleMLP(members, sizes, generator(0))


@pytest.mark.parametrize("shape", [(B, X), (E + 1, B, X), (1, B, X), (E, B, X + 1), (2, E, B, X)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"x must be \[E, B, X\]"):
        network()(torch.zeros(shape))

"""A policy that goes on from another one: in the units of new data, shrunk and perturbed.

Networks that go on from their last fit as they are end up worse than new ones on the same data; shrunk, and
with a new network's parameters added, they do not (Ash & Adams 2020, arXiv 1910.08475, section 5).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.policies.networks import EnsembleLinear
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy
from mbrl_bilevel.training.settings import WarmStart

AnyPolicy = GaussianPolicy | MixturePolicy

#: A target whose spread has changed by more than this factor is not what the network was made for.
_MOST_CHANGE = 2.0


def lasting_units(old: Normaliser, new: Normaliser) -> Normaliser | None:
    """``new`` with the scale of ``old``, for the targets of a fit that goes on; None where it cannot.

    σ(x) is bounded, so a network cannot say the same in another scale to the last digit, and need not: a
    likelihood is the same in any. It cannot go on where other targets vary than did, or one's spread is
    more than twice what it was, or less than half.
    """
    if not torch.equal(old.constant, new.constant):
        return None
    change = (new.scale / old.scale).log().abs()
    if bool((change > math.log(_MOST_CHANGE)).any()):
        return None
    return Normaliser(new.shift, old.scale, new.constant)


@torch.no_grad()
def warm_start(
    policy: AnyPolicy,
    start: AnyPolicy,
    inputs: tuple[Normaliser, Normaliser],
    targets: tuple[Normaliser, Normaliser],
    how: WarmStart,
) -> None:
    """Let the newly initialised ``policy`` go on from ``start``; ``inputs`` and ``targets`` are the units of
    ``start`` and those of ``policy``, where targets have one scale (``lasting_units``).

    Before it is shrunk and perturbed, it says in raw units what ``start`` says there, mean and σ, wherever
    inputs that never varied for ``start`` are what they were. Raises InvalidInputError for a ``start`` of
    another form.
    """
    _require_alike(policy, start)
    moved = copy.deepcopy(start)
    for weight, bias in _readers(moved):
        _reread(weight, bias, *inputs)
    _move_targets(moved, *targets)
    shrunk = dict(moved.named_parameters())
    for name, parameter in policy.named_parameters():
        parameter.copy_(how.shrink * shrunk[name] + how.perturb * parameter)
    if (how.shrink, how.perturb) == (1.0, 0.0):
        # What an outer solver found of σ(x) belongs to just this θ.
        for name, buffer in moved.named_buffers():
            policy.get_buffer(name).copy_(buffer)


def _require_alike(policy: AnyPolicy, start: object) -> None:
    def form(of: object) -> list[object]:
        names = ("inputs", "outputs", "members", "hidden", "scale", "log_std_bounds", "components")
        return [type(of).__name__, *(getattr(of, name, 1) for name in names)]

    if form(policy) != form(start):
        raise InvalidInputError(
            "start: a fit goes on from a model with the same inputs, targets, members, hidden layers and "
            f"kind of policy; this one is {form(policy)}, start {form(start)}"
        )


def _readers(policy: AnyPolicy) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight [E, X, ·] and bias [E, 1, ·] of each map that reads the inputs."""
    first = policy.network.layers[0]
    assert isinstance(first, EnsembleLinear)
    yield first.weight, first.bias
    if policy.hidden:
        return
    # Without hidden layers the features that σ(x) is read from are the inputs themselves.
    if policy.scale in ("detached", "tempered"):
        yield policy.temper_weight, policy.raw_scale
    if policy.scale == "separate":
        own = policy.scale_network.layers[0]
        assert isinstance(own, EnsembleLinear)
        yield own.weight, own.bias


def _reread(weight: Tensor, bias: Tensor, old: Normaliser, new: Normaliser) -> None:
    """W·(raw − s_old)/c_old + b in terms of (raw − s_new)/c_new. What never varied has had no gradient: its
    weights are still those of the initialisation, and zero is what it has said so far."""
    gain = torch.where(old.constant, 0.0, new.scale.double() / old.scale.double())
    offset = (new.shift.double() - old.shift.double()) / old.scale.double()
    wide = torch.where(old.constant.unsqueeze(1), 0.0, weight.double())
    bias.copy_(bias.double() + (offset @ wide).unsqueeze(1))
    weight.copy_(wide * gain.unsqueeze(1))


def _move_targets(policy: GaussianPolicy | MixturePolicy, old: Normaliser, new: Normaliser) -> None:
    """The means in the new units: y_new = y_old + (s_old − s_new)/c."""
    active = ~new.constant
    move = ((old.shift.double() - new.shift.double()) / old.scale.double())[active]
    means = policy.network.last.bias[..., : policy.outputs]
    if isinstance(policy, MixturePolicy):
        count = policy.components
        means = policy.network.last.bias[..., count : count * (1 + policy.outputs)]
        move = move.repeat(count)
    means.copy_(means.double() + move)

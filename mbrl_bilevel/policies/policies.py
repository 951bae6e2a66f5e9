"""Generative policies p_θ(y|x): the dynamics model (or classifier) seen as a policy over targets.

Each is a batched ensemble: ``policy.dist(x [E, B, X])`` gives a distribution over y [E, B, D].
With ``hidden=()`` each is linear in x, with a bias. Every parameter has E as its first dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.policies.distributions import Categorical, DiagonalGaussian, FullGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.networks import EnsembleMLP
from mbrl_bilevel.policies.scales import Scale, ScaledPolicy

#: Entries left of the diagonal stay within this multiple of their row's diagonal entry.
_OFF_DIAGONAL_LIMIT = 1e3


class GaussianPolicy(ScaledPolicy):
    """Diagonal Gaussian N(μ_θ(x), diag σ²), an ensemble of E networks.

    ``inputs`` and ``outputs`` are the dimensions of x and y, ``members`` the networks E, ``hidden`` the units of
    their hidden layers; ``generator`` draws the initial weights.

    ``scale="constant"`` learns one σ per member and dimension: all that a constant reward matrix
    can ask for. ``scale="network"`` learns σ(x) from the same trunk (Lakshminarayanan 2017, eq. 1).
    ``scale="detached"`` learns σ(x) from the same trunk without moving it (Stirn 2023).
    ``scale="separate"`` is constant until an outer solver gives it a small network on the detached features
    of the last hidden layer (``HeldOutSpread``). In ``scale="tempered"`` log σ(x) is linear in these
    features; nothing sets it any more, but stored models have it.
    log σ lies within ``log_std_bounds`` by a sigmoid (``LogBounds``), so its gradient never dies
    at once; raw zero, where both start, means σ = 1.

    Raises InvalidInputError for non-positive sizes or empty bounds.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int = 5,
        hidden: Sequence[int] = (200, 200),
        scale: Scale = "constant",
        log_std_bounds: tuple[float, float] = (-10.0, 3.0),
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            (outputs, outputs),
            generator=generator,
            members=members,
            hidden=hidden,
            scale=scale,
            log_std_bounds=log_std_bounds,
        )
        #: Standard normal numbers that a draw of ``dist`` takes.
        self.noise_width = outputs

    def dist(self, x: Tensor) -> DiagonalGaussian:
        """The predicted distribution at ``x`` [E, B, X]: mean and log σ [E, B, D]."""
        return self.from_outputs(*self._outputs(x))

    def from_outputs(self, mean: Tensor, raw: Tensor) -> DiagonalGaussian:
        """The distribution that these outputs of its layers stand for, [E, B, D] both."""
        log_std = self._bounds.bound(self._within_range(raw))
        if self.scale == "separate" and self.members > 1:
            log_std = log_std + self.dispersion
        return DiagonalGaussian(mean, log_std)

    def bounded_log_std(self, raw: Tensor) -> Tensor:
        """log σ for raw scales of any shape."""
        return self._bounds.bound(raw)

    def set_std(self, std: Tensor) -> None:
        """Set the constant σ to ``std``, [E, D] or [D]. Only for scale="constant".

        Raises InvalidInputError for another shape, or a σ that is not inside the bounds.
        """
        self._check_settable(std, "std", (self.outputs,))
        self._set_raw_scale(self._bounds.raw(std.log(), "std"))


class FullGaussianPolicy(ScaledPolicy):
    """Gaussian N(μ_θ(x), L Lᵀ) with a full covariance, an ensemble of E networks; arguments as of GaussianPolicy.

    L = diag(l)·(I + C): log l lies within ``log_std_bounds`` as in GaussianPolicy, and C, strictly
    lower triangular, within ±1000 by a tanh, so every entry of L is finite and L can be inverted.
    Taken relative to l, C does not change with the units of y. Raw zero means L = I,
    where both scales start.
    ``scale="constant"`` learns one L per member, ``scale="network"`` L(x).

    Raises InvalidInputError for non-positive sizes or empty bounds.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int = 5,
        hidden: Sequence[int] = (200, 200),
        scale: Scale = "constant",
        log_std_bounds: tuple[float, float] = (-10.0, 3.0),
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            (outputs, outputs * (outputs + 1) // 2),
            generator=generator,
            members=members,
            hidden=hidden,
            scale=scale,
            log_std_bounds=log_std_bounds,
        )
        self._place: Tensor
        self.register_buffer("_place", _places(outputs), persistent=False)

    def dist(self, x: Tensor) -> FullGaussian:
        """The predicted distribution at ``x`` [E, B, X]: mean [E, B, D], scale_tril [E, B, D, D]."""
        mean, raw = self._outputs(x)
        return FullGaussian(mean, self._scale_tril(self._within_range(raw)))

    def set_covariance(self, covariance: Tensor) -> None:
        """Set the constant L Lᵀ to ``covariance``, [E, D, D] or [D, D]. Only for scale="constant".

        Raises InvalidInputError if it is not symmetric positive definite, or its Cholesky factor
        does not lie inside the bounds.
        """
        self._check_settable(covariance, "covariance", (self.outputs, self.outputs))
        wide = covariance.detach().double()
        if not torch.allclose(wide, wide.mT, rtol=1e-5, atol=1e-12):
            raise InvalidInputError(
                "covariance must be finite and symmetric; give (S + S.mT) / 2 of a nearly symmetric S"
            )
        factor, failed = torch.linalg.cholesky_ex(wide)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        relative = factor / diagonal.unsqueeze(-1)
        if bool(failed.any()) or bool((relative.tril(-1).abs() >= _OFF_DIAGONAL_LIMIT).any()):
            raise InvalidInputError(
                "covariance must be positive definite and not nearly singular (the standard deviation "
                "of a dimension given the earlier ones is too small beside its whole one): add a "
                "small multiple of the identity"
            )
        rows, columns = torch.tril_indices(self.outputs, self.outputs, -1)
        below = _OFF_DIAGONAL_LIMIT * torch.atanh(
            relative[..., rows, columns] / _OFF_DIAGONAL_LIMIT
        )
        raw = self._bounds.raw(diagonal.log(), "covariance")
        self._set_raw_scale(torch.cat([raw, below], dim=-1))

    def _scale_tril(self, raw: Tensor) -> Tensor:
        """[..., D(D+1)/2] raw scales, the diagonal first, to [..., D, D]."""
        diagonal = self._bounds.bound(raw[..., : self.outputs]).exp()
        below = _OFF_DIAGONAL_LIMIT * torch.tanh(raw[..., self.outputs :] / _OFF_DIAGONAL_LIMIT)
        zero, one = torch.zeros_like(diagonal[..., :1]), torch.ones_like(diagonal[..., :1])
        # Read from a list of entries, not written into a matrix: writing would be in place.
        unit = torch.cat([zero, one, below], dim=-1)[..., self._place]
        return diagonal.unsqueeze(-1) * unit


class MixturePolicy(ScaledPolicy):
    """A mixture of M = ``components`` diagonal Gaussians, an ensemble of E networks; other arguments as of
    GaussianPolicy.

    Weights and means depend on x; ``scale="constant"`` learns one σ per member, component and
    dimension, ``scale="network"`` σ(x), within ``log_std_bounds`` as in GaussianPolicy. The means
    start spread out over a standard normal (targets are normalised): two components that start
    alike would get the same gradient and stay alike.

    Raises InvalidInputError for non-positive sizes or empty bounds.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        components: int = 5,
        members: int = 5,
        hidden: Sequence[int] = (200, 200),
        scale: Scale = "constant",
        log_std_bounds: tuple[float, float] = (-10.0, 3.0),
    ) -> None:
        if components < 1:
            raise InvalidInputError(f"components must be at least 1; got {components}")
        each = components * outputs
        super().__init__(
            inputs,
            outputs,
            (components + each, each),
            generator=generator,
            members=members,
            hidden=hidden,
            scale=scale,
            log_std_bounds=log_std_bounds,
        )
        self.components = components
        #: Standard normal numbers that a draw of ``dist`` takes, one of them for the component.
        self.noise_width = outputs + 1
        with torch.no_grad():
            means = self.network.last.bias[..., components : components + each]
            means.copy_(_spread_out(members, components, outputs, generator).reshape(means.shape))

    def dist(self, x: Tensor) -> GaussianMixture:
        """The predicted distribution at ``x`` [E, B, X]: M components over y [E, B, D]."""
        return self.from_outputs(*self._outputs(x))

    def from_outputs(self, located: Tensor, raw: Tensor) -> GaussianMixture:
        """The distribution that these outputs of its layers stand for: M logits and M·D means
        [E, B, M + M·D], and the raw scales [E, B, M·D]."""
        form = (*located.shape[:2], self.components, self.outputs)
        return GaussianMixture(
            located[..., : self.components].log_softmax(-1),
            located[..., self.components :].reshape(form),
            self._bounds.bound(self._within_range(raw)).reshape(form),
        )


class CategoricalPolicy(nn.Module):
    """Classes with probabilities softmax(f_θ(x)), an ensemble of E networks.

    ``inputs`` is the dimension of x, ``classes`` how many there are, ``members`` the networks E, ``hidden`` the
    units of their hidden layers; ``generator`` draws the initial weights.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        generator: torch.Generator,
        members: int = 1,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if classes < 2:
            raise InvalidInputError(f"classes must be at least 2; got {classes}")
        self.inputs, self.classes, self.members = inputs, classes, members
        self.hidden = tuple(hidden)
        self.network = EnsembleMLP(members, (inputs, *hidden, classes), generator)

    def dist(self, x: Tensor) -> Categorical:
        """The predicted distribution at ``x`` [E, B, X]: logits [E, B, C]."""
        return Categorical(self.network(x))


Policy = GaussianPolicy | FullGaussianPolicy | MixturePolicy | CategoricalPolicy
AnyPolicy = TypeVar("AnyPolicy", bound=Policy)


def with_members(policy: AnyPolicy, members: Sequence[int]) -> AnyPolicy:
    """A copy of ``policy`` that has only these ``members``, in this order.

    Raises InvalidInputError if there are none, or one is not there.
    """
    if not members or not all(0 <= member < policy.members for member in members):
        raise InvalidInputError(
            f"members must name some of 0 to {policy.members - 1}; got {list(members)}"
        )
    # What is saved has the members as its first dimension, parameters and buffers alike.
    state = {name: v.detach()[list(members)].clone() for name, v in policy.state_dict().items()}
    return _of_state(policy, state, len(members))


def stacked(policies: Sequence[AnyPolicy]) -> AnyPolicy:
    """One policy with the members of all of them, of the form of the first, in this order: a copy."""
    states = [policy.state_dict() for policy in policies]
    state = {name: torch.cat([s[name].detach() for s in states]) for name in states[0]}
    return _of_state(policies[0], state, sum(policy.members for policy in policies))


def set_tensor(policy: nn.Module, name: str, value: Tensor) -> None:
    """Let the parameter or buffer of this dotted ``name`` be ``value``, of any number of members, without a copy."""
    place, _, leaf = name.rpartition(".")
    module = policy.get_submodule(place)
    if isinstance(old := getattr(module, leaf), nn.Parameter):
        old.data = value
    else:
        setattr(module, leaf, value)


def _of_state(policy: AnyPolicy, state: Mapping[str, Tensor], members: int) -> AnyPolicy:
    """A copy of ``policy`` with this state, of so many members."""
    made = copy.deepcopy(policy)
    for name, value in state.items():
        set_tensor(made, name, value)
    for part in made.modules():
        if hasattr(part, "members"):
            setattr(part, "members", members)  # noqa: B010 (of a module of any kind)
    return made


def _spread_out(members: int, components: int, dim: int, generator: torch.Generator) -> Tensor:
    """A Latin hypercube over the standard normal, [E, M, D].

    In each dimension the components stand at the M equally likely quantiles, in random order.
    """
    quantiles = torch.special.ndtri((torch.arange(components) + 0.5) / components)
    order = torch.rand(members, components, dim, generator=generator).argsort(1)
    return torch.gather(quantiles.reshape(1, -1, 1).expand(order.shape), 1, order)


def _places(dim: int) -> Tensor:
    """Where each entry of a unit lower-triangular matrix [D, D] stands in (0, 1, entries below)."""
    place = torch.eye(dim, dtype=torch.int64)
    rows, columns = torch.tril_indices(dim, dim, -1)
    place[rows, columns] = 2 + torch.arange(len(rows))
    return place

"""Quantities that stay positive whatever step the outer level takes: functions of x, matrices.

λ(x) and u(x) are v₀·exp(s·tanh(f(x)/s)), bounded by the factor eˢ either way; U = L·Lᵀ with the
logarithms of L's diagonal as parameters (the log-Cholesky form, Pinheiro & Bates 1996, section 2.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.policies.networks import EnsembleMLP

Form = Literal["scaled_identity", "diagonal", "full"]


class PositiveFunction(nn.Module):
    """x [E, B, X] -> [E, B] (or [E, B, outputs]): positive, bounded, shared by the members.

    It starts at the constant ``initial`` and stays within a factor of ``span`` of it. log value is
    linear in x without ``hidden`` layers, else a small network whose last layer starts at zero
    (``generator`` draws the others). With ``learnable=False`` it is no part of φ.

    Raises InvalidInputError for sizes below one, ``initial`` <= 0, ``span`` <= 1, or hidden layers
    without a generator.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int | None = None,
        *,
        initial: float = 1.0,
        span: float = 100.0,
        hidden: Sequence[int] = (),
        generator: torch.Generator | None = None,
        learnable: bool = True,
    ) -> None:
        super().__init__()
        if not (0.0 < initial < math.inf and 1.0 < span < math.inf):
            raise InvalidInputError(
                f"initial must be positive and span above 1, both finite; "
                f"got initial={initial}, span={span}"
            )
        if hidden and generator is None:
            raise InvalidInputError("hidden layers are drawn at random: pass generator as well")
        sizes = (inputs, *hidden, 1 if outputs is None else outputs)
        self.outputs, self.span = outputs, span
        self.network = EnsembleMLP(1, sizes, generator or torch.Generator())
        last = self.network.layers[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.log_centre: Tensor
        self.register_buffer("log_centre", torch.full((sizes[-1],), initial).log())
        self.requires_grad_(learnable)

    def forward(self, x: Tensor) -> Tensor:
        scale = math.log(self.span)
        raw = self.network(x.reshape(1, -1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        value = (self.log_centre + scale * torch.tanh(raw / scale)).exp()
        return value.squeeze(-1) if self.outputs is None else value

    @torch.no_grad()
    def recentre(self, value: Tensor) -> None:
        """Make the function the constant ``value`` ([outputs] or a scalar, positive) again."""
        if not (value.isfinite() & (value > 0)).all():
            raise InvalidInputError(f"value must be positive and finite; got {value.tolist()}")
        self.log_centre.copy_(value.log().expand_as(self.log_centre))
        for parameter in self.network.layers[-1].parameters():
            parameter.zero_()


class QuadraticForm(nn.Module):
    """dᵀ U d with U [D, D] symmetric positive definite by construction; its parameters are φ.

    ``form`` "scaled_identity" is U = u·I, "diagonal" is diag(u), "full" is L·Lᵀ; U starts at
    ``initial``·I. With a ``function`` x [E, B, X] -> [E, B, D] of positive values (PositiveFunction),
    U(x) = diag(function(x)) and ``form`` becomes "input_dependent".

    Raises InvalidInputError for an unknown form, dim < 1 or ``initial`` that is not positive.
    """

    form: Form | Literal["input_dependent"]

    def __init__(
        self,
        dim: int,
        form: Form = "diagonal",
        initial: float = 0.5,
        *,
        function: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if form not in ("scaled_identity", "diagonal", "full"):
            raise InvalidInputError(
                f'form must be "scaled_identity", "diagonal" or "full"; got {form!r}'
            )
        if dim < 1 or not 0.0 < initial < math.inf:
            raise InvalidInputError(
                f"dim must be >= 1 and initial > 0; got dim={dim}, initial={initial}"
            )
        self.dim, self.form, self.function = dim, form, function
        if function is not None:
            self.form = "input_dependent"
        elif form == "full":
            self.log_diagonal = nn.Parameter(torch.full((dim,), math.sqrt(initial)).log())
            self.below_diagonal = nn.Parameter(torch.zeros(dim * (dim - 1) // 2))
        else:
            free = 1 if form == "scaled_identity" else dim
            self.log_u = nn.Parameter(torch.full((free,), initial).log())

    @property
    def u(self) -> Tensor:
        """The diagonal of a constant U, [D]. Raises UnsupportedCombinationError for U(x)."""
        if self.form == "full":
            return self.lower.square().sum(-1)
        self._refuse_function("u")
        return self.log_u.exp().expand(self.dim)

    @property
    def lower(self) -> Tensor:
        """The Cholesky factor L of a constant U, [D, D]. Raises UnsupportedCombinationError for U(x)."""
        self._refuse_function("lower")
        if self.form != "full":
            return torch.diag_embed(self.u.sqrt())
        rows = torch.tril_indices(self.dim, self.dim, -1, device=self.log_diagonal.device)
        below = self.log_diagonal.new_zeros(self.dim, self.dim)
        below = below.index_put((rows[0], rows[1]), self.below_diagonal)
        return below + torch.diag_embed(self.log_diagonal.exp())

    @property
    def matrix(self) -> Tensor:
        """A constant U, [D, D]. Raises UnsupportedCombinationError for U(x)."""
        lower = self.lower
        return lower @ lower.mT

    def diagonal(self, x: Tensor) -> Tensor:
        """The diagonal of U at ``x`` [E, B, X]: [D] where U is constant, else [E, B, D]."""
        return self.u if self.function is None else self.function(x)

    def quadratic(self, residual: Tensor, x: Tensor) -> Tensor:
        """dᵀ U d for ``residual`` d [..., E, B, D]: [..., E, B], never negative."""
        if self.form == "full":
            return (residual @ self.lower).square().sum(-1)
        return (residual.square() * self.diagonal(x)).sum(-1)

    def trace(self, covariance: Tensor, x: Tensor) -> Tensor:
        """tr(U S) for ``covariance`` S [E, B, D, D]: [E, B]."""
        if self.form == "full":
            return (covariance * self.matrix).sum((-2, -1))
        return (covariance.diagonal(dim1=-2, dim2=-1) * self.diagonal(x)).sum(-1)

    @torch.no_grad()
    def set_u(self, u: Tensor) -> None:
        """Set U to diag(``u``), ``u`` [D] positive (all alike for the scaled identity).

        Raises InvalidInputError for values that are not, UnsupportedCombinationError for a U(x)
        that is no PositiveFunction.
        """
        if u.shape != (self.dim,) or not (u > 0).all():
            raise InvalidInputError(f"u must be [{self.dim}] and positive; got {u.tolist()}")
        if self.form == "full":
            self.set_matrix(torch.diag_embed(u))
        elif self.function is not None:
            if not isinstance(self.function, PositiveFunction):
                self._refuse_function("set_u")
            else:
                self.function.recentre(u)
        else:
            if self.form == "scaled_identity" and not torch.allclose(u, u[0], rtol=1e-4, atol=0.0):
                raise InvalidInputError(
                    f'u must be all alike for form "scaled_identity"; got {u.tolist()}: pass their '
                    'mean, or use "diagonal"'
                )
            self.log_u.copy_(u[: self.log_u.numel()].log())

    @torch.no_grad()
    def set_matrix(self, matrix: Tensor) -> None:
        """Set U to ``matrix`` [D, D].

        Raises InvalidInputError unless it is symmetric positive definite, and diagonal where the
        form is.
        """
        lower = _cholesky(matrix, self.dim)
        if self.form == "full":
            rows = torch.tril_indices(self.dim, self.dim, -1, device=lower.device)
            self.log_diagonal.copy_(lower.diagonal().log())
            self.below_diagonal.copy_(lower[rows[0], rows[1]])
        elif bool((matrix - torch.diag_embed(matrix.diagonal())).any()):
            raise InvalidInputError(
                f'matrix must be diagonal for form "{self.form}"; use form "full", or set_u'
            )
        else:
            self.set_u(matrix.diagonal())

    def _refuse_function(self, name: str) -> None:
        if self.function is not None:
            raise UnsupportedCombinationError(
                f"{name} is for a constant U, but U depends on x here: use diagonal(x)"
            )


def _cholesky(matrix: Tensor, dim: int) -> Tensor:
    """L of ``matrix`` = L·Lᵀ. Raises InvalidInputError if it is not [dim, dim] and SPD."""
    if matrix.shape != (dim, dim) or not matrix.isfinite().all():
        raise InvalidInputError(
            f"matrix must be [{dim}, {dim}] and finite; got shape {tuple(matrix.shape)}"
        )
    if not (matrix - matrix.mT).abs().max() <= 1e-5 * matrix.abs().max():
        raise InvalidInputError("matrix must be symmetric; pass (M + Mᵀ)/2")
    lower: Tensor
    lower, failed = torch.linalg.cholesky_ex((matrix + matrix.mT) / 2.0)
    if bool(failed):
        raise InvalidInputError(
            "matrix must be positive definite; add a small multiple of the identity"
        )
    return lower

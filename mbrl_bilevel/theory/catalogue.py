"""A catalogue of small bilevel problems whose hypergradient can be had by brute force.

``hypergradient_errors`` runs every outer solver over it: where the policy is well specified they agree
with the finite differences, elsewhere the numbers are each solver's bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import LeaveOneOut
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import KL, Entropy, Sum
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, Reward, RewardMatrix
from mbrl_bilevel.outer.closed_form import ClosedFormGradient
from mbrl_bilevel.outer.function_space import FunctionSpace
from mbrl_bilevel.outer.implicit import ExactImplicit, FisherImplicit, Neumann
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient, neumann_series
from mbrl_bilevel.outer.objectives import OneStepMSE
from mbrl_bilevel.outer.problem import (
    GradientSolver,
    Problem,
    Warm,
    reward_loss,
)
from mbrl_bilevel.outer.unrolled import Unrolled
from mbrl_bilevel.policies.networks import EnsembleMLP
from mbrl_bilevel.policies.policies import (
    CategoricalPolicy,
    FullGaussianPolicy,
    GaussianPolicy,
    Policy,
)
from mbrl_bilevel.policies.scale_bounds import LogBounds
from mbrl_bilevel.theory.brute_force import finite_differences, relative_error, solve_inner


@dataclass(frozen=True)
class Entry:
    """One problem of the catalogue.

    ``well_specified``: the policy can represent the inner optimum p*, so Fisher curvature is exact.
    ``free``: the policy is as good as free at each x, so the function-space gradient is exact.
    ``model`` gives FunctionSpace its second targets, where the policy itself cannot.
    """

    problem: Problem
    well_specified: bool = True
    free: bool = True
    model: Policy | None = None


def catalogue(seed: int = 0) -> dict[str, Callable[[], Entry]]:
    """Name -> builder. The same seed builds the same data and the same start."""
    builders: dict[str, Callable[[torch.Generator], Entry]] = {
        "gaussian_1d": partial(_gaussian, dim=1),
        "gaussian_2d": partial(_gaussian, dim=2, members=2),
        "gaussian_10d": partial(_gaussian, dim=10),
        "gaussian_2d_full": _gaussian_full,
        "heteroscedastic_linear": _heteroscedastic,
        "temperature_groups": _temperature_groups,
        "kl_weight": _kl_weight,
        "kl_weight_mse": _kl_weight_mse,
        "categorical_2": partial(_categorical, classes=2),
        "categorical_5": partial(_categorical, classes=5),
        "mlp": _mlp,
        "misspecified_scale": _misspecified_scale,
        "misspecified_classes": _misspecified_classes,
        "misspecified_rbf": _misspecified_rbf,
    }

    def build(make: Callable[[torch.Generator], Entry]) -> Entry:
        return make(torch.Generator().manual_seed(seed))

    return {name: partial(build, make) for name, make in builders.items()}


def solvers(model: Policy | None = None, unrolled: int = 300) -> dict[str, GradientSolver]:
    """Every hypergradient solver, set so tight that what is left is the error of its formula.

    ``model`` gives FunctionSpace its second targets; ``unrolled``: steps of Unrolled.
    """
    tight = partial(conjugate_gradient, tolerance=1e-10, max_iterations=500)
    fisher = FisherImplicit(tight, damping=0.0, rows=None)
    return {
        "exact_implicit": ExactImplicit(),
        "fisher_implicit": fisher,
        "neumann": Neumann(partial(neumann_series, tolerance=1e-7, max_iterations=3000)),
        "unrolled": Unrolled(steps=unrolled, tolerance=1e-4),
        "function_space": FunctionSpace(model),
        "closed_form_gradient": ClosedFormGradient(),
    }


def hypergradient_errors(
    names: list[str] | None = None, seed: int = 0, unrolled: int = 300
) -> dict[str, dict[str, float]]:
    """{solver: {problem: ‖g − g_fd‖/‖g_fd‖}} over the catalogue; refused combinations are left out.

    ``names``: of the problems, None takes all; ``seed``: of their data; ``unrolled``: steps of Unrolled.

    Raises InvalidInputError for a name that is not in the catalogue.
    """
    builders = catalogue(seed)
    errors: dict[str, dict[str, float]] = {}
    for name in names if names is not None else builders:
        if name not in builders:
            raise InvalidInputError(f"no problem {name!r}; choose from {', '.join(builders)}")
        entry = builders[name]()
        solve_inner(entry.problem)
        truth = finite_differences(entry.problem)
        every = solvers(entry.model, unrolled)
        tried = {key: (solver, entry.problem) for key, solver in every.items()}
        tried["fisher_implicit_sampled"] = (every["fisher_implicit"], sampled(entry.problem))
        for key, (solver, problem) in tried.items():
            try:
                error = relative_error(hypergradient(solver, problem, seed), truth)
            except UnsupportedCombinationError:
                continue
            errors.setdefault(key, {})[name] = error
    return errors


def sampled(problem: Problem, samples: int = 64) -> Problem:
    """The same problem with the closed form of its reward hidden: draws have to do."""
    loss = reward_loss(problem, "sampled")
    hidden = PolicyGradient(_Opaque(loss.reward), LeaveOneOut(samples), loss.regulariser)
    return replace(problem, loss=hidden)


def hypergradient(solver: GradientSolver, problem: Problem, seed: int = 0) -> Tensor:
    """The solver's hypergradient as one vector, after its own check of the problem."""
    solver.check(problem)
    generator = torch.Generator().manual_seed(seed)
    result = solver.hypergradient(problem, Warm(), generator)
    return torch.cat([g.flatten() for g in result.gradient])


class _Opaque(nn.Module):
    """A reward of which only its values are known; its φ is that of ``reward``."""

    def __init__(self, reward: Reward) -> None:
        super().__init__()
        self.reward = reward

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.reward(y_hat, y, x)


def _problem(
    policy: Policy,
    reward: Reward,
    train: Batch,
    held_out: Batch,
    regulariser: Entropy | Sum | None = None,
) -> Problem:
    loss = PolicyGradient(reward, regulariser=regulariser).double()
    return Problem(policy, loss, train, held_out)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _linear_data(
    generator: torch.Generator, members: int, dim: int, factor: Tensor, rows: int = 400
) -> tuple[Batch, Batch]:
    """y = A x + b + factor·ε with x standard normal [rows, 2], train and held out."""
    slope, shift = _normal(generator, 2, dim), _normal(generator, dim)
    x = _normal(generator, members, 2 * rows, 2)
    y = x @ slope + shift + _normal(generator, members, 2 * rows, dim) @ factor.mT
    return _halves(x, y)


def _halves(x: Tensor, y: Tensor) -> tuple[Batch, Batch]:
    half = x.shape[1] // 2
    return Batch(x[:, :half], y[:, :half]), Batch(x[:, half:], y[:, half:])


def _group_inputs(generator: torch.Generator, groups: int, rows: int) -> Tensor:
    """One-hot inputs [1, rows, groups]: a linear policy is then free at each x."""
    index = torch.randint(groups, (rows,), generator=generator)
    return nn.functional.one_hot(index, groups).double().unsqueeze(0)


def _gaussian(generator: torch.Generator, dim: int, members: int = 1) -> Entry:
    """A linear-Gaussian policy with one σ per dimension and a diagonal U."""
    factor = torch.diag_embed(0.3 + torch.rand(dim, generator=generator, dtype=torch.float64))
    data = _linear_data(generator, members, dim, factor)
    policy = GaussianPolicy(2, dim, generator=generator, members=members, hidden=()).double()
    return Entry(_problem(policy, Mahalanobis(dim, "diagonal", initial=0.8), *data))


def _gaussian_full(generator: torch.Generator) -> Entry:
    """Correlated noise, a full covariance and a full U."""
    factor = torch.tensor([[0.8, 0.0], [0.6, 0.3]], dtype=torch.float64)
    data = _linear_data(generator, 1, 2, factor)
    policy = FullGaussianPolicy(2, 2, generator=generator, members=1, hidden=()).double()
    reward = Mahalanobis(2, "full")
    matrix = torch.tensor([[1.5, -0.4], [-0.4, 0.9]])
    reward.set_matrix(matrix)
    return Entry(_problem(policy, reward, *data))


class _MatchedPrecision(nn.Module):
    """u(x) = ½ exp(−2·log σ(x)) with log σ(x) of the very form a linear GaussianPolicy has, so that
    the policy can represent the inner optimum at λ = 1."""

    def __init__(self, inputs: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.network = EnsembleMLP(1, (inputs, dim), generator)
        with torch.no_grad():  # gentle slopes: the bounds stretch them over 13 nats
            for parameter in self.network.parameters():
                parameter.mul_(0.2)
        self._bounds = LogBounds(-10.0, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        raw: Tensor = self.network(x.reshape(1, -1, x.shape[-1])).reshape(*x.shape[:-1], -1)
        return 0.5 * torch.exp(-2.0 * self._bounds.bound(raw))


def _heteroscedastic(generator: torch.Generator) -> Entry:
    """log σ linear in x, and a U(x) of the same form. The mean is shared: weighted least squares.

    The policy is not free, so function space leaves out how the mean moves with φ: the product of
    two differences between the samples, which falls as 1/rows. Inputs are bounded, as the weights
    u(x) are exponential in x and a few far rows would make up the whole fit.
    """
    x = 2.0 * torch.rand(1, 40_000, 2, generator=generator, dtype=torch.float64) - 1.0
    return _heteroscedastic_at(x, generator)


def _heteroscedastic_at(x: Tensor, generator: torch.Generator) -> Entry:
    slope = _normal(generator, 2, 1)
    noise = torch.exp(0.5 * x[..., :1] - 0.5) * _normal(generator, 1, x.shape[1], 1)
    policy = GaussianPolicy(
        2, 1, generator=generator, members=1, hidden=(), scale="network"
    ).double()
    reward = Mahalanobis(1, function=_MatchedPrecision(2, 1, generator))
    return Entry(_problem(policy, reward, *_halves(x, x @ slope + noise)), free=False)


def _temperature_groups(generator: torch.Generator) -> Entry:
    """λ(x) learned with U fixed (the gauge tr U = D), noise that differs between four groups."""
    x = _group_inputs(generator, 4, 800)
    level = torch.tensor([0.3, 0.6, 1.0, 1.5], dtype=torch.float64)
    y = (x @ level).unsqueeze(-1) * _normal(generator, 1, 800, 2) + x[..., :1]
    policy = GaussianPolicy(
        4, 2, generator=generator, members=1, hidden=(), scale="network"
    ).double()
    reward = Mahalanobis(2, "scaled_identity", initial=1.0).requires_grad_(False)
    temperature = PositiveFunction(4, initial=0.7)
    return Entry(_problem(policy, reward, *_halves(x, y), Entropy(temperature)))


def _kl_weight(generator: torch.Generator) -> Entry:
    """Entropy and KL to a reference, both U and λ_K in φ: the mean moves with φ as well."""
    factor = torch.diag(torch.tensor([0.5, 0.9], dtype=torch.float64))
    data = _linear_data(generator, 1, 2, factor)
    policy = GaussianPolicy(2, 2, generator=generator, members=1, hidden=()).double()
    reference = GaussianPolicy(2, 2, generator=generator, members=1, hidden=()).double()
    regulariser = Sum(Entropy(0.6), KL(reference, 0.4, learnable=True))
    reward = Mahalanobis(2, "diagonal", initial=0.8)
    return Entry(_problem(policy, reward, *data, regulariser), free=False)


def _kl_weight_mse(generator: torch.Generator) -> Entry:
    """The same, for another outer objective than the likelihood."""
    entry = _kl_weight(generator)
    return replace(entry, problem=replace(entry.problem, objective=OneStepMSE()))


def _categorical(generator: torch.Generator, classes: int) -> Entry:
    """Classes over three groups, logits free in each, and a full reward matrix."""
    x = _group_inputs(generator, 3, 2000)
    table = (1.5 * _normal(generator, 3, classes)).softmax(-1)
    y = torch.multinomial((x[0] @ table), 1, generator=generator).double().unsqueeze(0)
    train, held_out = _halves(x, y)
    policy = CategoricalPolicy(3, classes, generator=generator, hidden=()).double()
    matrix = torch.eye(classes) + 0.3 * _normal(generator, classes, classes).float()
    # The targets' own frequencies in the train rows: what a cross-fitted classifier would find.
    counts = train.x[0].mT @ nn.functional.one_hot(train.y[0, :, 0].long(), classes).double()
    model = CategoricalPolicy(3, classes, generator=generator, hidden=()).double()
    with torch.no_grad():
        weight, bias = model.parameters()
        weight.copy_(counts.log().unsqueeze(0))
        bias.zero_()
    return Entry(_problem(policy, RewardMatrix(matrix), train, held_out), model=model)


def _mlp(generator: torch.Generator) -> Entry:
    """A small network on targets made by one of its kind, well bent so that it is identified.

    Training starts at the truth: which of its mirror images is found does not matter here.
    """
    policy = GaussianPolicy(1, 2, generator=generator, members=1, hidden=(2,)).double()
    truth = {
        "network.layers.0.weight": [[-3.0, 4.0]],
        "network.layers.0.bias": [[1.0, -2.0]],
        "network.layers.1.weight": [[1.0, -0.5], [0.6, 1.2]],
        "network.layers.1.bias": [[0.3, -0.4]],
    }
    values = {name: torch.tensor([rows]) for name, rows in truth.items()}
    policy.load_state_dict(values, strict=False)
    x = _normal(generator, 1, 8000, 1)
    with torch.no_grad():
        y = policy.dist(x).mean + 0.3 * _normal(generator, 1, 8000, 2)
    reward = Mahalanobis(2, "diagonal", initial=1.2)
    return Entry(_problem(policy, reward, *_halves(x, y)), free=False)


def _misspecified_scale(generator: torch.Generator) -> Entry:
    """U(x) asks for a σ(x) that a policy with one constant σ cannot give."""
    entry = _heteroscedastic_at(_normal(generator, 1, 4000, 2), generator)
    policy = GaussianPolicy(2, 1, generator=generator, members=1, hidden=()).double()
    problem = replace(entry.problem, policy=policy)
    return Entry(problem, well_specified=False, free=False)


def _misspecified_classes(generator: torch.Generator) -> Entry:
    """Logits linear in x where the classes are not."""
    x = _normal(generator, 1, 2000, 2)
    y = (x.square().sum(-1, keepdim=True) > 1.4).double() + (x[..., :1] > 0.8)
    policy = CategoricalPolicy(2, 3, generator=generator, hidden=()).double()
    problem = _problem(policy, RewardMatrix.identity(3, 2.0), *_halves(x, y))
    return Entry(problem, well_specified=False, free=False)


def _misspecified_rbf(generator: torch.Generator) -> Entry:
    """A robust reward, whose inner optimum is no Gaussian."""
    factor = torch.full((1, 1), 0.4, dtype=torch.float64)
    data = _linear_data(generator, 1, 1, factor)
    policy = GaussianPolicy(2, 1, generator=generator, members=1, hidden=()).double()
    policy.set_std(torch.full((1,), 0.5))
    reward = RBF(1, "diagonal", initial=1.0)
    return Entry(_problem(policy, reward, *data, Entropy(0.1)), well_specified=False, free=False)

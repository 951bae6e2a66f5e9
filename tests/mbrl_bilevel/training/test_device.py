"""A step of every method works where its data are: on the meta device an operand on another is an error.

No test here has run on a GPU; what a step asks of one (values that Python looks at) would be an error there, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mbrl_bilevel.data.splits import Chain, FitData, Minibatches, cross_fit
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.outer.held_out_rows import _judges
from mbrl_bilevel.training.class_methods import CLASS_METHODS
from mbrl_bilevel.training.fit import Job
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule
from tests.mbrl_bilevel.models.test_dynamics import records

META = torch.device("meta")
SHORT = Schedule(steps=20, batch_size=32, evaluate_every=10)


def data(device: torch.device | str, classes: bool, horizon: int) -> FitData:
    x = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    y = (x[:, :1] > 0).float() if classes else torch.tanh(x[:, :2])
    folds = cross_fit(np.arange(120), 2, np.random.default_rng(0))
    chain = None
    if horizon > 1:
        successor = torch.arange(1, 121).where(torch.arange(120) < 119, -1).to(device)
        gain, drift = torch.eye(2).to(device), torch.zeros(2).to(device)
        chain = Chain(successor, gain, drift, horizon)
    found = FitData(x, y, folds, None)
    # Past the checks of values, which the meta device has none of.
    for name, value in (("x", x.to(device)), ("y", y.to(device)), ("chain", chain)):
        object.__setattr__(found, name, value)
    return found


@pytest.mark.parametrize("name", [*METHODS, *(f"class {name}" for name in CLASS_METHODS)])
def test_a_gradient_step_stays_on_its_device(name: str) -> None:
    classes = name.startswith("class ")
    method = CLASS_METHODS[name.removeprefix("class ")] if classes else METHODS[name]
    generator = torch.Generator().manual_seed(0)
    policy: Any = method.make_policy(3, 2, generator=generator, members=2, hidden=(8,)).to(META)
    rows = data(META, classes, method.horizon)
    job: Job = method._job(policy, rows, generator)
    if isinstance(job.loss, nn.Module):
        assert all(p.device == META for p in job.loss.parameters())
    batch = Minibatches(rows, 16).draw(generator)
    assert batch.x.device == batch.y.device == META
    value, _ = job.loss(policy, batch, generator)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value.sum(), parameters, materialize_grads=True)
    assert value.shape == (2,)
    assert all(g.device == META for g in gradients)


def test_an_operand_elsewhere_would_be_found_out() -> None:
    generator = torch.Generator().manual_seed(0)
    policy: Any = METHODS["nll"].make_policy(3, 2, generator=generator, members=2, hidden=(8,))
    batch = Minibatches(data(META, False, 1), 16).draw(generator)
    with pytest.raises(RuntimeError):
        METHODS["nll"].make_loss(policy, data("cpu", False, 1))(policy, batch, generator)


def test_who_judges_is_told_where_the_rows_are() -> None:
    for members in (1, 3):
        assert _judges(torch.zeros(6, dtype=torch.int64, device=META), members).device == META


def test_named_the_cpu_is_what_it_is_unnamed() -> None:
    random = np.random.default_rng(0)
    obs = random.normal(size=(200, 2)).astype(np.float32)
    steps = records(
        obs,
        obs[:, :1],
        obs[:, 0],
        0.9 * obs,
        np.arange(200) // 20,
        np.arange(200) % 20,
        np.zeros(200, bool),
    )
    told = []
    for named in ({}, {"device": "cpu"}, {"device": torch.device("cpu")}):
        model, result = fit_dynamics(
            steps,
            METHODS["bilevel"],
            generator=torch.Generator().manual_seed(3),
            members=2,
            hidden=(8,),
            schedule=SHORT,
            **named,  # type: ignore[arg-type]
        )
        assert model.device == torch.device("cpu")
        told.append(result)
    assert told[0] == told[1] == told[2]

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.class_losses import Focal, LabelSmoothing
from mbrl_bilevel.inner.losses import NLL, Loss
from mbrl_bilevel.outer.class_objectives import ExpectedCost, OwnLoss
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy

GENERATOR = torch.Generator()


def setup(weighted: bool = True) -> tuple[CategoricalPolicy, Batch, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    policy = CategoricalPolicy(4, 3, generator=generator, members=2, hidden=(5,))
    x = 2.0 * torch.randn(2, 7, 4, generator=generator)
    y = torch.randint(3, (2, 7, 1), generator=generator).float()
    weight = torch.rand(2, 7, generator=generator) + 0.1 if weighted else None
    return policy, Batch(x, y, weight), policy.dist(x).logits.detach()


def test_label_smoothing_is_pytorchs() -> None:
    policy, batch, logits = setup(weighted=False)
    value, _ = LabelSmoothing(0.2)(policy, batch, GENERATOR)
    for member in range(2):
        truth = functional.cross_entropy(
            logits[member], batch.y[member, :, 0].long(), label_smoothing=0.2
        )
        assert value[member].item() == pytest.approx(truth.item(), rel=1e-5)


def test_focal_is_its_formula_and_cross_entropy_at_zero() -> None:
    policy, batch, logits = setup()
    p = logits.softmax(-1).gather(-1, batch.y.long()).squeeze(-1)
    truth = batch.mean(-((1.0 - p) ** 1.5) * p.log())
    torch.testing.assert_close(Focal(1.5)(policy, batch, GENERATOR)[0], truth)
    torch.testing.assert_close(
        Focal(0.0)(policy, batch, GENERATOR)[0], NLL()(policy, batch, GENERATOR)[0]
    )


def test_focal_has_a_gradient_where_the_policy_is_sure() -> None:
    policy, batch, _ = setup()
    with torch.no_grad():
        policy.network.last.weight.mul_(1e4)
    loss = Focal(2.0)(policy, batch, GENERATOR)[0].sum()
    gradients = torch.autograd.grad(loss, list(policy.parameters()))
    assert all(g.isfinite().all() for g in gradients)


def test_expected_cost_is_its_formula() -> None:
    policy, batch, logits = setup()
    cost = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0], [7.0, 3.0, 0.0]])
    each = (logits.softmax(-1) * cost[batch.y[..., 0].long()]).sum(-1)
    objective = ExpectedCost(tuple(tuple(row.tolist()) for row in cost))
    torch.testing.assert_close(objective(policy, batch), batch.mean(each))


def test_own_loss_is_the_loss() -> None:
    policy, batch, _ = setup()
    loss = LabelSmoothing(0.3)
    torch.testing.assert_close(OwnLoss(loss)(policy, batch), loss(policy, batch, GENERATOR)[0])


@pytest.mark.parametrize("loss", [LabelSmoothing(), Focal()])
def test_losses_of_classes_refuse_real_targets(loss: Loss) -> None:
    gaussian = GaussianPolicy(2, 1, generator=GENERATOR, members=1, hidden=())
    batch = Batch(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1))
    with pytest.raises(UnsupportedCombinationError, match="needs a policy over classes"):
        loss(gaussian, batch, GENERATOR)


def test_bad_numbers_are_refused() -> None:
    for build in (
        lambda: LabelSmoothing(1.0),
        lambda: Focal(-0.1),
        lambda: ExpectedCost(((0.0, 1.0),)),
        lambda: ExpectedCost(((0.0, float("nan")), (1.0, 0.0))),
    ):
        with pytest.raises(InvalidInputError):
            build()
    policy, batch, _ = setup()
    with pytest.raises(InvalidInputError, match="there are 3 classes"):
        ExpectedCost(((0.0, 1.0), (1.0, 0.0)))(policy, batch)

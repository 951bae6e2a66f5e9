"""Several policies of one form as one larger ensemble, so that a step of all costs one batched product a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.policies.distributions import Distribution
from mbrl_bilevel.policies.policies import Policy, set_tensor, stacked
from mbrl_bilevel.policies.tempered import TemperedPolicy


class Joined:
    """``policies`` whose tensors lie side by side in those of one, member behind member: who changes either changes
    both. ``trained`` are that one's parameters with a gradient, ``rows`` the members of each policy in it.

    A single policy is joined with nothing and stays as it is.
    """

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = list(policies)
        self._lay()

    def asked(self, batches: Sequence[Batch]) -> list[Any]:
        """Each policy as its loss is to ask it at its own of the ``batches``: all answers come of one pass."""
        if len(self._policies) == 1:
            return list(self._policies)
        whole = self._whole.dist(torch.cat([batch.x for batch in batches]))
        answers = _split(whole, [policy.members for policy in self._policies])
        asked = zip(self._policies, batches, answers, strict=True)
        return [_Answered(policy, batch.x, answer) for policy, batch, answer in asked]

    def require_asked(self, loss: Tensor) -> None:
        """Raises UnsupportedCombinationError for a ``loss`` that reaches a policy's parameters in another way than by
        its answers: what it does there would have no effect."""
        if len(self._policies) == 1:
            return
        own = [p for policy in self._policies for p in policy.parameters() if p.requires_grad]
        reached = torch.autograd.grad(loss, own, allow_unused=True, retain_graph=True)
        if any(gradient is not None for gradient in reached):
            raise UnsupportedCombinationError(
                "this loss reads the parameters of the policy, so such fits cannot be made side by side: make them "
                "one after another"
            )

    def keep(self, which: Sequence[int]) -> None:
        """Go on with these policies alone; all others have tensors of their own from here on."""
        self.part()
        self._policies = [self._policies[k] for k in which]
        self._lay()

    def part(self) -> None:
        """Give each policy tensors of its own."""
        if len(self._policies) > 1:
            for policy in self._policies:
                for name, value in policy.state_dict().items():
                    set_tensor(policy, name, value.detach().clone())

    def _lay(self) -> None:
        members = [policy.members for policy in self._policies]
        ends = list(accumulate(members, initial=0))
        self.rows = [slice(first, end) for first, end in pairwise(ends)]
        self._whole = self._policies[0]
        if len(self._policies) > 1:
            self._whole = stacked(self._policies)
            for name, value in self._whole.state_dict().items():
                for policy, rows in zip(self._policies, self.rows, strict=True):
                    set_tensor(policy, name, value.detach()[rows])
        self.trained = [p for p in self._whole.parameters() if p.requires_grad]


@contextmanager
def joined(policies: Sequence[Policy]) -> Iterator[Joined]:
    """The policies side by side; each has tensors of its own again behind the block.

    Raises InvalidInputError for policies of different forms.
    """
    require_one_form(policies)
    together = Joined(policies)
    try:
        yield together
    finally:
        together.part()


def require_one_form(policies: Sequence[Policy]) -> None:
    """Raises InvalidInputError for policies that cannot be joined."""
    first, *others = policies
    # A subclass may hold tensors, or settings, that nobody here knows how to join.
    if others and type(first) not in (*get_args(Policy), TemperedPolicy):
        raise InvalidInputError(
            f"policies: fits side by side need policies of this library; got a {type(first).__name__}: make "
            "the fits one after another"
        )
    for policy in others:
        if type(policy) is not type(first) or _form(policy) != _form(first):
            raise InvalidInputError(
                "policies: fits side by side need policies of one class, one size and the same settings, on one "
                f"device; got a {type(first).__name__} and another {type(policy).__name__}"
            )


def _form(policy: nn.Module) -> dict[str, Any]:
    """What one member's tensors are like, which of them are trained, and the policy's settings."""
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    tensors = {
        name: (v.shape[1:], v.dtype, v.device, name in trained)
        for name, v in policy.state_dict().items()
    }
    plain = (int, float, str, tuple)
    settings = {k: v for k, v in vars(policy).items() if isinstance(v, plain) and k != "members"}
    return {**tensors, "settings": settings}


def _split(dist: Distribution, members: Sequence[int]) -> list[Distribution]:
    """The distribution of each of so many members. By ``split``, whose derivative is one ``cat``."""
    parts = zip(*(torch.split(value, list(members)) for value in dist.params), strict=True)
    return [type(dist).from_params(values) for values in parts]


class _Answered:
    """A policy that was asked at ``x`` already: ``dist(x)`` is its answer, with a gradient for the ensemble that it
    is a part of."""

    def __init__(self, policy: Policy, x: Tensor, dist: Distribution) -> None:
        self._policy, self._x, self._dist = policy, x, dist

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def dist(self, x: Tensor) -> Distribution:
        """Raises UnsupportedCombinationError for any other x: what is computed there would have no gradient."""
        if x is not self._x:
            raise UnsupportedCombinationError(
                "this loss asks the policy at other inputs than its minibatch's, so such fits cannot be made side "
                "by side: make them one after another"
            )
        return self._dist

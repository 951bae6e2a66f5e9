"""A second device, made in Python: its tensors lie on the CPU, and refuse to meet those that are not on it, as CUDA's do.

So code for a GPU runs, and gives numbers, where there is none: ``with another_device() as there``. PyTorch calls what this
rests on experimental (``torch.utils.backend_registration``); where it is missing, ``another_device`` skips the test. What
it cannot tell: how fast a GPU is, and what its own kernels round otherwise.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

_MAKE = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
#: Whether this process is one for it: with a device autograd has threads, and such a process cannot be forked.
IN_USE = "ANOTHER_DEVICE" in os.environ
#: For a file of tests that need it.
needs_it = pytest.mark.skipif(
    not IN_USE, reason="tests/test_another_device.py runs it in a process of its own"
)
_CPU_TENSOR, _CPU_GENERATOR = torch.tensor, torch.Generator
#: What is registered lasts as long as this.
_LIBRARY: list[torch.library.Library] = []
#: What may have an argument on either side, as on CUDA.
_CROSSING = ("aten::_to_copy", "aten::copy_", "aten::index")


class There(torch.Tensor):
    """``raw``, a tensor of the CPU, as one of the device "there"."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> There:
        found: There = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device("there:0"),
            requires_grad=False,
        )
        found.raw = raw
        return found

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))

    @property
    def data(self) -> Any:
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: There) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw

    # What PyTorch does for a tensor of a device by functions that are none of its operators.
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    def tolist(self) -> Any:
        return self.raw.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(
            "can't convert a tensor of the device there to numpy: use Tensor.cpu() first"
        )

    def new_tensor(self, data: Any, **kwargs: Any) -> Any:
        return _CPU_TENSOR(data, **{"dtype": self.dtype, **kwargs}).to("there")


class ThereGenerator(torch.Generator):
    """It draws on the CPU, for tensors of the device "there"."""

    device = property(lambda self: torch.device("there:0"))  # type: ignore[assignment]


#: Tensors that went from one side to the other, by type.
COPIES: Counter[torch.dtype] = Counter()


@contextmanager
def another_device() -> Iterator[torch.device]:
    """The device, for as long as the context lasts."""
    if _MAKE is None:
        pytest.skip("this PyTorch makes no devices in Python")
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", _tensor)
        patch.setattr(torch, "Generator", _Generator)
        # ``Module.to`` keeps parameters what they are, so that optimisers know them, as it does for CUDA.
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield torch.device("there:0")
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)


def make_known() -> None:
    """Tell PyTorch of the device; to be called before the first ``backward`` of the process, which counts devices."""
    if _MAKE is not None and not _LIBRARY:
        _MAKE("there")
        _LIBRARY.append(torch.library.Library("_", "IMPL"))
        _LIBRARY[0].fallback(_run, "PrivateUse1")


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """``op`` on what lies behind tensors of the device."""
    name = op.name()
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd"):
        found = op.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    here = [t for t in tensors if not isinstance(t, There) and t.dim() > 0]
    if here and there and not name.startswith(_CROSSING):
        raise RuntimeError(f"{name}: tensors of the CPU and of another device meet")
    goes = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else "there"
    if name.startswith(("aten::_to_copy", "aten::copy_")) and (bool(here) or goes == "cpu"):
        COPIES.update(t.dtype for t in tensors[:1] if t.dim() > 0)
    if "device" in kwargs and kwargs["device"] is not None:
        kwargs["device"] = "cpu"
    behind = pytree.tree_map(lambda t: t.raw if isinstance(t, There) else t, (args, kwargs))
    with torch._C._AutoDispatchBelowAutograd():
        found = op(*behind[0], **behind[1])
    same = {id(t.raw): t for t in there}  # what is changed in place stays the tensor that it was

    def wrapped(t: Any) -> Any:
        if not isinstance(t, torch.Tensor) or goes == "cpu":
            return t
        if id(t) in same:
            return same[id(t)]
        # A view of a tensor that knows its gradient is one, too.
        if torch.is_inference_mode_enabled() and any(not part.is_inference() for part in there):
            with torch.inference_mode(False):
                return There(t)
        return There(t)

    return pytree.tree_map(wrapped, found)


def _without_lists(index: Any) -> Any:
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(_CPU_TENSOR(part) if isinstance(part, list) else part for part in parts)
    return parts if isinstance(index, tuple) else parts[0]


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    if device is not None and torch.device(device).type == "there":
        return _CPU_TENSOR(data, *args, **kwargs).to("there")
    return _CPU_TENSOR(data, *args, device=device, **kwargs)


class _Generator:
    def __new__(cls, device: Any = "cpu") -> Any:
        there = torch.device(device).type == "there"
        return ThereGenerator() if there else _CPU_GENERATOR(device)

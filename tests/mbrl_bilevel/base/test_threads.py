"""Threads are as many as the work is worth, and afterwards as many as before."""

from __future__ import annotations

import pytest
import torch

from mbrl_bilevel.base.threads import few_threads


@pytest.mark.parametrize(("widest", "inside"), [(600, 1), (601, 3)])
def test_few_threads_are_as_many_as_before_afterwards(widest: int, inside: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with few_threads(widest):
            assert torch.get_num_threads() == inside
            with few_threads(widest):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyError), few_threads(widest):
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

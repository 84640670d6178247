"""What maps of attention launch, compiled for a GPU: nothing spills, loads are wide."""

import pytest
import torch

from vitkern.kernels.attention_map import attention_map
from vitkern.lab.compiling.compiled import compile_launches

pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("relevant", [False, True])
def test_maps_of_vit_base(relevant):
    q, k, v, grad = (torch.empty(2, 197, 12, 64, dtype=torch.bfloat16).transpose(1, 2) for _ in range(4))
    lse, rest = torch.empty(2, 12, 197), (v, grad) if relevant else (None, None)
    (kernel,) = compile_launches(lambda: attention_map(q, k, *rest, None, None, None, lse, 0.125, False, False), 90)
    assert ("relevance" if relevant else "weights") in kernel.label
    assert kernel.spills == 0 and kernel.problems() == []

"""Every case of ``python -m vitkern check`` has a kernel in every dtype: forward and backward launch, into nothing."""

import pytest
import torch

from vitkern import dispatch
from vitkern.kernels.machine.launch import redirected
from vitkern.lab.fuzzing.case import DTYPES
from vitkern.lab.proving.verify import Trial
from vitkern.lab.specimens import gathered

pytestmark = pytest.mark.interpreter


@pytest.mark.unsanitized(reason="no kernel runs", repaired=False)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("problem", gathered("check"), ids=str)
def test_a_kernel_takes_it(problem, dtype):
    launched = []
    with dispatch.use_backend("interpreter"), redirected(lambda kernel, *_: launched.append(kernel.__name__)):
        Trial(problem, dtype, torch.device("cpu"), seed=0).actual()
    assert any("fwd" in name for name in launched) and any("bwd" in name or "dq" in name for name in launched), launched

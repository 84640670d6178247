"""The same cases under pytest-benchmark: ``pytest benchmarks/test_speed.py``, with its --benchmark-* options.

On a CPU only the quick cases run. Each is verified before it is timed; there is no timed assertion.
"""

import functools

import pytest
import torch

from benchmarks.cases import CASES, QUICK, batch_for
from benchmarks.measure import verify
from benchmarks.runs import runner, tensors_of

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32


@functools.cache
def is_right(case) -> list[str]:
    return verify(case, DTYPE, DEVICE)


@pytest.mark.parametrize("mode", ("forward", "backward"))
@pytest.mark.parametrize("case", CASES if GPU else QUICK, ids=lambda case: f"{case.op}: {case}")
def test_speed(benchmark, case, mode):
    assert is_right(case) == []
    problem = case.problem(batch_for(case, gpu=GPU, quick=not GPU))
    tensors = tensors_of(problem, DTYPE, DEVICE)
    run = runner(
        functools.partial(problem.run, **tensors, **problem.options),
        [tensors[name] for name in problem.gradients],
        mode,
    )
    benchmark.group = f"{case.op} {mode}"
    benchmark.extra_info.update(dtype=str(DTYPE), device=torch.cuda.get_device_name() if GPU else "cpu")

    def timed():
        run()
        if GPU:
            torch.cuda.synchronize()

    timed()
    benchmark(timed)

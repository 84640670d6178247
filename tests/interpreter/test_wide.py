"""The mode in which single precision is double: it is exact, it takes float32's tiles, and nothing of it stays."""

import inspect
import pkgutil
import sys

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter as interp

import vitkern.kernels
from vitkern import dispatch
from vitkern.kernels.machine.launch import redirected
from vitkern.lab.interpreting import interpreter
from vitkern.lab.interpreting.wide import wide
from vitkern.lab.specimens import attention, layernorm, layernorm_mlp, window_attention

pytestmark = pytest.mark.interpreter

PROBLEMS = (
    attention.problem("one tile", (2, 1, 20, 20), bias=(1, 1, 20, 20)),
    attention.problem("streaming", (1, 1, 18, 4), keys=34, causal=True, bias=(1, 1, 18, 34)),
    attention.packed("packed", 1, 40, 1, 24),
    window_attention.problem("padded, cosine", (5, 6), (3, 4), shift=(1, 1), heads=1, cosine=True),
    layernorm.problem("residual", 5, 20, residual=True),
    layernorm_mlp.problem("pre-norm", 2, 3, 20, 24, scales=True),
    layernorm_mlp.problem("post-norm", 2, 3, 20, 24, scales=True, post_norm=True, act="gelu_tanh"),
)


def solve(problem, dtype, function=None):
    generator = torch.Generator().manual_seed(0)
    leaves = {
        name: value.to(dtype).requires_grad_(name in problem.gradients)
        for name, value in problem.inputs(generator).items()
    }
    outputs = (function or problem.run)(**leaves, **problem.options)
    outputs = (outputs if isinstance(outputs, tuple) else (outputs,))[: problem.differentiable]
    grads = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype) for out in outputs]
    return *outputs, *torch.autograd.grad(outputs, [leaves[name] for name in problem.gradients], grads)


def attributes():
    """Everything that a mode of the interpreter could have replaced."""
    modules = [sys.modules[found.name] for found in pkgutil.walk_packages(vitkern.kernels.__path__, "vitkern.kernels.")]
    owners = (*modules, tl, tl.core, tl.math, interp, interp.InterpreterBuilder, type(interp.interpreter_semantic))
    owners += (torch.Tensor, dispatch)
    return {(str(owner), name): id(value) for owner in owners for name, value in vars(owner).items()}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_values_and_gradients_are_those_of_float64(problem):
    with wide(), dispatch.use_backend("interpreter"):
        actual = solve(problem, torch.float64)
    for value, expected in zip(actual, solve(problem, torch.float64, problem.reference), strict=True):
        assert value.dtype == torch.float64
        assert (value - expected).abs().max() <= 1e-13 * max(1.0, expected.abs().max())


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_kernels_get_the_tiles_of_float32(problem):
    def launches(dtype):
        found = []

        def receive(kernel, grid, args, constants, options):
            found.append((kernel.__name__, grid, constants, options))
            kernel[grid](*args, **constants, **options)

        with redirected(receive):
            solve(problem, dtype)
        return found

    single = launches(torch.float32)
    with wide():
        assert launches(torch.float64) == single
    assert single


def test_nothing_of_it_stays():
    before = attributes()
    values = [solve(problem, torch.float32) for problem in PROBLEMS]
    with wide():
        assert attributes() != before
        assert tl.float32.name == "fp64"
        with wide():
            solve(PROBLEMS[0], torch.float64)
        assert tl.float32.name == "fp64"
    assert attributes() == before
    for problem, expected in zip(PROBLEMS, values, strict=True):
        assert all(map(torch.equal, solve(problem, torch.float32), expected)), problem
    assert dispatch.why_not([torch.zeros(1, dtype=torch.float64)])


def test_an_error_undoes_it():
    before = attributes()
    with pytest.raises(KeyError), wide():
        raise KeyError
    assert attributes() == before


def test_an_interpreter_that_rounds_is_refused(monkeypatch):
    exp2 = interp.InterpreterBuilder.create_exp2

    def rounding(self, arg):
        result = exp2(self, arg)
        return interp.TensorHandle(result.data.astype(np.float32).astype(result.data.dtype), result.dtype)

    monkeypatch.setattr(interp.InterpreterBuilder, "create_exp2", rounding)
    before = attributes()
    with pytest.raises(interpreter.InterpreterChanged, match="still rounds to single precision: got exp2"), wide():
        raise AssertionError("the block must not run")
    assert attributes() == before


def test_float32_tensors_have_no_kernel():
    from vitkern.kernels.rows.layernorm import normalise_rows
    from vitkern.ops.layernorm import layernorm

    x = torch.ones(2, 4)
    with wide(), dispatch.use_backend("interpreter"):
        with pytest.raises(NotImplementedError, match=r"torch\.float32"):
            layernorm(x, None, None, 1e-6)
        with pytest.raises(Exception, match="expected float64"):
            normalise_rows(x, None, None, 1e-6, y=torch.empty_like(x))


def test_launchers_see_all_of_torch():
    from vitkern.kernels import layernorm

    with wide():
        assert layernorm.torch.float32 is torch.float64
        assert layernorm.torch.Tensor is torch.Tensor and layernorm.torch.empty is torch.empty
        assert not inspect.isfunction(layernorm.torch.float16)
    assert layernorm.torch is torch

"""A fault on the way: the forward kernels ran, and those of the backward cannot be built; or the other way round. Only
here do kernels run on a CPU, so only here is there a result of theirs to go on from."""

import os
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from triton.runtime.errors import OutOfResources
from triton.runtime.interpreter import InterpretedFunction

import vitkern
from vitkern import dispatch, faults
from vitkern.lab.differentiating.gradient_check import operators
from vitkern.lab.interpreting.sanitizer import MemoryFault
from vitkern.lab.specimens import gathered
from vitkern.reference.dropout import philox

pytestmark = pytest.mark.interpreter

PROBLEMS = {str(problem): problem for problem in gathered("faults")}
FORWARD, BACKWARD = ("_fwd",), ("_bwd", "_dq", "_dkdv")


@pytest.fixture(autouse=True)
def _fresh():
    faults.forget()
    yield
    faults.forget()


@contextmanager
def failing(parts, error=None):
    """Launches of kernels whose name has one of ``parts`` raise."""
    start = InterpretedFunction.__getitem__
    error = error or OutOfResources(147456, 101376, "shared memory")

    def getitem(self, grid):
        if not any(part in self.fn.__name__ for part in parts):
            return start(self, grid)

        def refuse(*args, **options):
            raise error

        return refuse

    InterpretedFunction.__getitem__ = getitem
    try:
        yield
    finally:
        InterpretedFunction.__getitem__ = start


@contextmanager
def caught():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found
    found[:] = [w for w in found if issubclass(w.category, faults.FallbackWarning)]


def compute(problem, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for name, value in problem.inputs(generator).items():
        value = value.to(dtype) if value.is_floating_point() else value
        inputs[name] = value.requires_grad_(name in problem.gradients)
    torch.manual_seed(3)
    outputs = problem.run(**inputs, **problem.options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    graded = outputs[: problem.differentiable]
    grads = [torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype) for out in graded]
    return [*outputs, *torch.autograd.grad(graded, [inputs[name] for name in problem.gradients], grads)]


def test_every_operator_has_a_fallback_and_a_problem_here():
    assert [op.name for op in operators() if op.fallback is None] == []
    assert {op.name for op in operators()} <= {problem.function or problem.op for problem in PROBLEMS.values()}


@pytest.mark.walk(4)
@pytest.mark.parametrize("parts", [BACKWARD, FORWARD + BACKWARD], ids=["backward", "both"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_pytorch_goes_on_where_kernels_stopped(name, parts):
    problem = PROBLEMS[name]
    wanted = compute(problem)
    with failing(parts):
        with vitkern.use_backend("interpreter"), pytest.raises(NotImplementedError, match=r"cannot run: .*101376"):
            compute(problem)
        with caught() as found:
            results = compute(problem)
            again = compute(problem)
    assert len(found) == 1
    op = problem.function if problem.function in {op.name for op in operators()} else problem.op
    assert str(found[0].message).startswith(f"{op}: ") and faults.faulted(torch.device("cpu"))[0][0] == op
    for result in (results, again):
        for actual, reference in zip(result, wanted, strict=True):
            assert actual.shape == reference.shape and actual.stride() == reference.stride()
            torch.testing.assert_close(actual, reference, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("parts", [BACKWARD, FORWARD + BACKWARD], ids=["backward", "both"])
def test_too_large_for_some_sizes_is_no_fault_of_others(parts, monkeypatch):
    def attend(batch, tokens):
        q = torch.linspace(-1, 1, batch * tokens * 16).view(batch, 1, tokens, 16).requires_grad_()
        out = vitkern.attention(q, q, q)
        return out, *torch.autograd.grad(out, q, torch.ones_like(out))

    wanted = attend(2, 50)
    with failing(parts), caught() as found:
        attend(1, 50)
    assert len(found) == 1 and "of such sizes" in str(found[0].message)
    ((op, reason),) = faults.faulted(torch.device("cpu"))
    assert op == "attention" and "float32 (*, 1, 50, 16)" in reason
    assert vitkern.dispatch.why_not([torch.zeros(1)], op="attention") == []
    started = []
    monkeypatch.setattr(InterpretedFunction, "__getitem__", counting(InterpretedFunction.__getitem__, started))
    again = attend(2, 50)
    assert not started, "another batch has the same sizes"
    attend(1, 49)
    assert started, "another length has its kernels"
    for actual, reference in zip(again, wanted, strict=True):
        torch.testing.assert_close(actual, reference)


def counting(start, started):
    def getitem(self, grid):
        started.append(self.fn.__name__)
        return start(self, grid)

    return getitem


@pytest.mark.walk(4)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_in_half_precision(name, dtype):
    wanted = compute(PROBLEMS[name], dtype)
    with failing(BACKWARD), caught() as found:
        results = compute(PROBLEMS[name], dtype)
    assert len(found) == 1
    for actual, reference in zip(results, wanted, strict=True):
        assert actual.dtype == reference.dtype
        scale = reference.float().abs().max().item()
        torch.testing.assert_close(actual, reference, rtol=0.02, atol=0.02 * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("parts", [BACKWARD, FORWARD + BACKWARD], ids=["backward", "both"])
def test_under_autocast_the_residual_stream_stays_wide(parts, dtype):
    """float32 rows beside half-precision weights: autocast is over when the backward runs."""
    problem = PROBLEMS["layernorm_mlp: mlp"]

    def run():
        inputs = {n: v.float().requires_grad_() for n, v in problem.inputs(torch.Generator().manual_seed(0)).items()}
        with torch.autocast("cpu", dtype):
            out = problem.run(**inputs, **problem.options)
        return [out, *torch.autograd.grad(out.square().sum(), list(inputs.values()))]

    wanted = run()
    with failing(parts), caught() as found:
        results = run()
    assert len(found) == 1 and results[0].dtype == torch.float32
    for actual, reference in zip(results, wanted, strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(actual, reference, rtol=0.02, atol=0.02 * scale)


@pytest.mark.parametrize("parts", [BACKWARD, FORWARD + BACKWARD], ids=["backward", "both"])
def test_compiled(parts):
    """The fault is met within the operator. Training keeps its graph; inference is compiled again, without the
    operator."""
    torch._dynamo.reset()
    q = torch.randn(1, 2, 18, 16, requires_grad=True)

    def model(q):
        return vitkern.attention(q.sin(), q, q).cos()

    wanted = torch.autograd.grad(model(q).square().sum(), q)[0]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with failing(parts, RuntimeError("0 active drivers")), caught() as found:
        for _ in range(3):
            torch.testing.assert_close(
                torch.autograd.grad(compiled(q).square().sum(), q)[0], wanted, rtol=1e-4, atol=1e-5
            )
        assert counter.frame_count == 1
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(compiled(q), model(q))
        assert counter.frame_count == 2
    assert len(found) == 1
    assert not any("vitkern" in str(node.target) for node in counter.graphs[1].graph.nodes)


class Block(torch.nn.Module):
    def forward(self, x, w):
        return vitkern.layernorm(x, w, None, 1e-6)


def test_an_exported_program():
    x, w = torch.randn(3, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    wanted = [Block()(x, w), *torch.autograd.grad(Block()(x, w).square().sum(), (x, w))]
    program = torch.export.export(Block(), (x, w)).module()
    with failing(FORWARD + BACKWARD), caught() as found:
        out = program(x, w)
        results = [out, *torch.autograd.grad(out.square().sum(), (x, w))]
    assert len(found) == 1
    torch.testing.assert_close(results, wanted)


@pytest.mark.parametrize("parts", [BACKWARD, FORWARD + BACKWARD], ids=["backward", "both"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks(parts, reentrant):
    """The forward is computed again when the fault is known already, and must save the same tensors."""
    x, w = torch.randn(3, 32, requires_grad=True), torch.randn(32, requires_grad=True)

    def run(block):
        out = x
        for _ in range(3):
            out = block(out, w)
        return torch.autograd.grad(out.square().sum(), (x, w)) if not reentrant else backward(out)

    def backward(out):
        x.grad = w.grad = None
        out.square().sum().backward()
        return x.grad, w.grad

    wanted = run(Block())
    with failing(parts), caught() as found:
        results = [run(lambda *inputs: checkpoint(Block(), *inputs, use_reentrant=reentrant)) for _ in range(2)]
    assert len(found) == 1
    for result in results:
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("parts", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryFault("out of view"),
        RuntimeError("CUDA error: misaligned address"),
        IndexError("tile"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_is_raised_as_it_came(error, parts):
    with failing(parts, error), caught() as found, pytest.raises(type(error)) as raised:
        compute(PROBLEMS["layernorm: rows"])
    assert raised.value is error and not found and not faults.faulted(torch.device("cpu"))


def test_a_bug_in_a_kernel_is_no_fault():
    """The sanitizer's finding in a launch that reads beyond its operand."""
    from vitkern.kernels.rows.layernorm import normalise_rows

    x, y = torch.randn(4, 32), torch.empty(4, 32)
    with pytest.raises(MemoryFault) as raised:
        normalise_rows(x[:, :16].as_strided((4, 32), (32, 1)), torch.ones(16), None, 1e-6, y=y)
    assert raised.value.kernel_of_launch == "_layernorm_fwd" and faults.fault_of(raised.value) is None


def test_a_kernel_that_failed_once_is_not_started_again_until_forgotten():
    with failing(FORWARD, RuntimeError("0 active drivers")), caught():
        compute(PROBLEMS["layernorm: rows"])
    assert dispatch.why_not([torch.zeros(1)], op="layernorm") and not dispatch.why_not([torch.zeros(1)], op="attention")
    with (
        vitkern.use_backend("interpreter"),
        pytest.raises(NotImplementedError, match="cannot run: the kernel could not"),
    ):
        compute(PROBLEMS["layernorm: rows"])
    faults.forget()
    with vitkern.use_backend("interpreter"):
        compute(PROBLEMS["layernorm: rows"])


def test_philox_is_the_published_one():
    """Known answers of Random123 (kat_vectors, philox 4x32, 10 rounds): counter and key all zeros, and all ones."""

    def first(seed, counter):
        return philox(torch.tensor([seed]), (torch.tensor([counter]),) * 4).item()

    assert first(0, 0) == 0x6627E8D5
    assert first(-1, 0xFFFFFFFF) == 0x408F276D


def test_fork_after_kernels_ran():
    compute(PROBLEMS["layernorm: rows"])
    with failing(FORWARD), caught():
        compute(PROBLEMS["layernorm: rows, residual"])
    child = os.fork()
    if child == 0:
        try:
            faults.forget()
            torch.set_num_threads(1)
            with vitkern.use_backend("interpreter"):
                out = vitkern.layernorm(torch.ones(2, 32), None, None, 1e-6)
            with failing(FORWARD), caught() as found:
                vitkern.layernorm(torch.ones(2, 32), None, None, 1e-6)
            os._exit(7 if out.abs().max() == 0 and len(found) == 1 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

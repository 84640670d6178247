"""The operators on a GPU: numbers against float64, and what only hardware shows."""

import functools

import pytest
import torch

from benchmarks import measure
from benchmarks.cases import CASES as LAYERS
from vitkern import dispatch
from vitkern.lab.proving.verify import GPU_POOLED_MARGIN, pool_of, verify
from vitkern.lab.specimens import gathered, merged, specimens

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

OPS, PROBLEMS = tuple(specimens()), gathered("check")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHARE = 4  # of a layer's batch: enough to fill the device. Races and reused memory show in many programs, not in four


def most(specimen):
    """The layer with most operands."""
    every = (*specimen.layers, *(launch.layer for launch in specimen.launches))
    return max(every, key=lambda layer: len(layer.problem(1).gradients))


MOST = {name: most(specimen) for name, specimen in specimens().items()}


@pytest.fixture(autouse=True)
def _kernels_only():
    """A silent fall-back to PyTorch would pass every test here."""
    with dispatch.use_backend("triton"):
        yield


def large(op, dtype=torch.bfloat16, device="cuda", seed=0):
    """Inputs of a layer that fills the device, by name."""
    problem = MOST[op].problem(MOST[op].batch // SHARE)

    def placed(name, value):
        if not value.is_floating_point():
            return value.to(device)
        return (value * 0.2).to(device, dtype).requires_grad_(name in problem.gradients)

    return {n: placed(n, x) for n, x in problem.inputs(torch.Generator().manual_seed(seed)).items()}


def call(op, inputs):
    """The first output."""
    problem = MOST[op].problem(1)
    out = problem.run(**inputs, **problem.options)
    return out[0] if isinstance(out, tuple) else out


def graded(inputs):
    return [value for value in inputs.values() if value.requires_grad]


def detached(inputs):
    return {name: value.detach() for name, value in inputs.items()}


def forward_and_backward(op, inputs):
    out = call(op, inputs)
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, graded(inputs), grad)]


@functools.cache
def results_of(index, dtype):
    return verify(PROBLEMS[index], dtype, torch.device("cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(PROBLEMS)), ids=[str(case) for case in PROBLEMS])
def test_meets_float64(index, dtype):
    for result in results_of(index, dtype):
        assert result.comparison.passed, f"{result.name}: {result.comparison}"


@pytest.mark.parametrize("op", OPS)
def test_mean_errors_stay_near_the_ideal(op):
    indices = [index for index, case in enumerate(PROBLEMS) if case.op == op]
    pool = pool_of(result for index in indices for dtype in DTYPES for result in results_of(index, dtype))
    assert pool.failures(GPU_POOLED_MARGIN) == []


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: f"{case.op}: {case}")
def test_layers_of_real_models_meet_float64(case):
    assert measure.verify(case, torch.bfloat16, torch.device("cuda")) == []


@pytest.mark.parametrize("name", merged("properties"))
def test_what_has_no_formula_holds(name):
    assert merged("properties")[name](torch.device("cuda")) == []


@pytest.mark.parametrize("op", OPS)
def test_runs_are_equal_to_the_bit(op):
    inputs = large(op)
    first = forward_and_backward(op, inputs)
    for _ in range(50):
        assert all(torch.equal(a, b) for a, b in zip(first, forward_and_backward(op, inputs), strict=True))


@pytest.mark.parametrize("op", OPS)
def test_every_element_is_written(op):
    """Under deterministic algorithms PyTorch fills new tensors with NaN."""
    inputs = large(op)
    torch.use_deterministic_algorithms(False)
    expected = forward_and_backward(op, inputs)
    torch.use_deterministic_algorithms(True, warn_only=True)
    poisoned = forward_and_backward(op, inputs)
    assert all(torch.equal(a, b) for a, b in zip(expected, poisoned, strict=True))


@pytest.mark.parametrize("op", OPS)
def test_cuda_graph_replays_on_new_inputs(op):
    static = detached(large(op, seed=1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        call(op, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = call(op, static)
    other = detached(large(op, seed=2))
    for name, value in other.items():
        static[name].copy_(value)
    graph.replay()
    with torch.no_grad():
        assert torch.equal(captured, call(op, other))


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(op):
    """On a side stream that is kept busy the result depends on what that stream writes first."""
    inputs = detached(large(op))
    name = next(iter(inputs))
    with torch.no_grad():
        expected = call(op, inputs)
        value, late = inputs[name], torch.zeros_like(inputs[name])
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(value)
            actual = call(op, inputs | {name: late})
        stream.synchronize()
    assert torch.equal(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: no second device to launch on")
@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_tensors_device(op):
    expected = forward_and_backward(op, large(op, device="cuda:0"))
    inputs = large(op, device="cuda:1")
    with torch.cuda.device(0):
        actual = forward_and_backward(op, inputs)
        assert torch.cuda.current_device() == 0
    for a, b in zip(expected, actual, strict=True):
        assert b.device == torch.device("cuda:1")
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("op", OPS)
def test_compiles_to_the_same(op):
    inputs = large(op)
    expected = forward_and_backward(op, inputs)
    run, options = MOST[op].problem(1).run, MOST[op].problem(1).options
    out = torch.compile(lambda **tensors: run(**tensors, **options), fullgraph=True)(**inputs)
    assert torch.equal((out[0] if isinstance(out, tuple) else out).detach(), expected[0])


@pytest.mark.parametrize("op", OPS)
def test_autocast_gives_its_dtype(op):
    inputs = large(op, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = call(op, inputs)
    assert out.dtype == (merged("integration")[op].under_autocast[0] or torch.bfloat16)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(out.float().square().sum(), graded(inputs)))


def test_bias_gradient_needs_no_batch_of_score_matrices():
    from vitkern.ops.attention import attention

    batch, heads, tokens = 32, 6, 197
    q, k, v = (torch.randn(batch, heads, tokens, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    inputs = [x.requires_grad_() for x in (q, k, v, torch.randn(1, heads, tokens, tokens).to(q))]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention(*inputs[:3], bias=inputs[3]).float().sum().backward()
    expanded = batch * heads * tokens**2 * 2
    tensors = 12 * q.numel() * 2  # outputs, gradients, their float32 sums
    assert torch.cuda.max_memory_allocated() - before < tensors + expanded // 2


@pytest.mark.parametrize("op", OPS)
def test_offsets_past_two_to_the_31(op):
    """The last rows of a batch of more than 2^31 elements come out as they do alone."""
    inputs, one = detached(large(op)), MOST[op].problem(1).inputs(torch.Generator())
    batched = [name for name, value in inputs.items() if value.shape[0] != one[name].shape[0]]
    rows = 2**31 // inputs[batched[0]][0].numel() + 2
    elements = sum(rows * inputs[name][0].numel() for name in batched)
    if 2 * (elements + 5 * 2**31) > torch.cuda.mem_get_info()[0]:
        pytest.skip("not enough free GPU memory for 2^31 elements")
    many = {name: inputs[name].new_empty(rows, *inputs[name].shape[1:]) for name in batched}
    for name, value in many.items():
        value.normal_() if value.is_floating_point() else value.copy_(inputs[name][:1].expand_as(value))
    with torch.no_grad():
        out = call(op, inputs | many)
        alone = call(op, inputs | {name: value[-2:].clone() for name, value in many.items()})
    torch.testing.assert_close(out[-2:], alone, rtol=1e-2, atol=1e-2)


def test_more_groups_than_a_grid_axis_holds():
    from vitkern.ops.attention import attention

    q, k, v = (
        torch.randn(70_000, 1, 16, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    out = attention(q, k, v)
    out.float().square().sum().backward()
    tail = [t[-8:].detach().clone().requires_grad_() for t in (q, k, v)]
    end = attention(*tail)
    end.float().square().sum().backward()
    assert torch.equal(out[-8:], end)
    assert all(torch.equal(full.grad[-8:], part.grad) for full, part in zip((q, k, v), tail, strict=True))

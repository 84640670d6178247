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
# Shapes that fill the device: races and reused memory show in many programs, not in four.
LARGE = {
    "attention": dict(q=(32, 6, 197, 64), k=(32, 6, 197, 64), v=(32, 6, 197, 64), bias=(1, 6, 197, 197)),
    "window_attention": dict(qkv=(16, 56, 56, 288), table=(169, 3)),
    "local_attention": dict(qkv=(16, 56, 56, 192), table=(2, 13, 13)),
    "sparse_attention": dict(q=(512, 4, 50, 32), k=(512, 4, 50, 32), v=(512, 4, 50, 32)),
    "layernorm": dict(x=(6304, 768), weight=(768,), bias=(768,)),
    "layernorm_mlp": dict(
        x=(16, 196, 384), norm_weight=(384,), norm_bias=(384,),
        fc1_weight=(1536, 384), fc1_bias=(1536,), fc2_weight=(384, 1536), fc2_bias=(384,),
    ),
}  # fmt: skip
OPTIONS = {
    "attention": {},
    "window_attention": dict(num_heads=3, window=(7, 7), shift=(3, 3)),
    "local_attention": dict(num_heads=2, block=(1, 1), halo=(3, 3), border="clamp"),
    "sparse_attention": {},
    "layernorm": dict(eps=1e-6),
    "layernorm_mlp": dict(eps=1e-6),
}


@pytest.fixture(autouse=True)
def _kernels_only():
    """A silent fall-back to PyTorch would pass every test here."""
    with dispatch.use_backend("triton"):
        yield


def function(op):
    return next(case for case in PROBLEMS if case.op == op and not case.function).run


def large(op, dtype=torch.bfloat16, device="cuda", seed=0):
    generator = torch.Generator(device).manual_seed(seed)
    shapes = LARGE[op].items()
    return {n: (torch.randn(s, generator=generator, device=device) * 0.2).to(dtype).requires_grad_() for n, s in shapes}


def forward_and_backward(op, inputs):
    out = function(op)(**inputs, **OPTIONS[op])
    grad = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), grad)]


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
    static = {name: value.detach() for name, value in large(op, seed=1).items()}
    run = function(op)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        run(**static, **OPTIONS[op])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = run(**static, **OPTIONS[op])
    other = large(op, seed=2)
    for name, value in other.items():
        static[name].copy_(value.detach())
    graph.replay()
    with torch.no_grad():
        assert torch.equal(captured, run(**other, **OPTIONS[op]))


@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_current_stream(op):
    """On a side stream that is kept busy the result depends on what that stream writes first."""
    inputs = {name: value.detach() for name, value in large(op).items()}
    name = next(iter(inputs))
    with torch.no_grad():
        expected = function(op)(**inputs, **OPTIONS[op])
        value, late = inputs[name], torch.zeros_like(inputs[name])
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            late.copy_(value)
            actual = function(op)(**(inputs | {name: late}), **OPTIONS[op])
        stream.synchronize()
    assert torch.equal(actual, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU: no second device to launch on")
@pytest.mark.parametrize("op", OPS)
def test_runs_on_the_tensors_device(op):
    expected = forward_and_backward(op, large(op, device="cuda:0"))
    inputs = {name: value.detach().to("cuda:1").requires_grad_() for name, value in large(op, device="cuda:0").items()}
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
    compiled = torch.compile(lambda **tensors: function(op)(**tensors, **OPTIONS[op]), fullgraph=True)
    assert torch.equal(compiled(**inputs).detach(), expected[0])


@pytest.mark.parametrize("op", OPS)
def test_autocast_gives_its_dtype(op):
    inputs = large(op, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = function(op)(**inputs, **OPTIONS[op])
    assert out.dtype == torch.bfloat16 or op.startswith("layernorm")
    assert all(
        torch.isfinite(grad).all() for grad in torch.autograd.grad(out.float().square().sum(), list(inputs.values()))
    )


def test_bias_gradient_needs_no_batch_of_score_matrices():
    from vitkern.ops.attention import attention

    inputs = large("attention")
    batch, heads, tokens, _ = LARGE["attention"]["q"]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention(**inputs).float().sum().backward()
    expanded = batch * heads * tokens**2 * 2
    tensors = 12 * inputs["q"].numel() * 2  # outputs, gradients, their float32 sums
    assert torch.cuda.max_memory_allocated() - before < tensors + expanded // 2


@pytest.mark.parametrize("op", OPS)
def test_offsets_past_two_to_the_31(op):
    """The last image of a batch of more than 2^31 elements comes out as it does alone."""
    name, shape = next(iter(LARGE[op].items()))
    per_row = 1
    for size in shape[1:]:
        per_row *= size
    rows = 2**31 // per_row + 2
    free, _ = torch.cuda.mem_get_info()
    copies = 8 if "k" in LARGE[op] else 6
    if rows * per_row * 2 * copies > free:
        pytest.skip("not enough free GPU memory for 2^31 elements")
    inputs = {n: value.detach() for n, value in large(op).items()}
    batched = [n for n in inputs if LARGE[op][n][0] == shape[0] and n in (name, "k", "v")]
    many = {n: torch.empty(rows, *LARGE[op][n][1:], dtype=torch.bfloat16, device="cuda").normal_() for n in batched}
    with torch.no_grad():
        out = function(op)(**(inputs | many), **OPTIONS[op])
        alone = function(op)(**(inputs | {n: value[-2:].clone() for n, value in many.items()}), **OPTIONS[op])
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

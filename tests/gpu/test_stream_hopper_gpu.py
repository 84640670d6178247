"""Hopper's variant of the streaming forward on a Hopper: against float64, and what only hardware shows."""

import contextvars

import pytest
import torch

from vitkern import dispatch
from vitkern.lab.proving.verify import GPU_POOLED_MARGIN, pool_of, verify
from vitkern.lab.specimens.attention import packed as packed_problem
from vitkern.lab.specimens.attention import problem as attention_problem

HERE = torch.cuda.is_available() and torch.version.hip is None and torch.cuda.get_device_capability() == (9, 0)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no Hopper GPU: the kernel is one for sm_90")]

SIZES = ((1, 1), (50, 300), (127, 128), (129, 127), (197, 197), (257, 64), (577, 577), (1, 1024))
HEAD_DIMS = (40, 64, 72, 80, 96, 128)
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """Names of the kernels that were launched; what the one-pass kernels would take comes here, too."""
    from vitkern.kernels import attention
    from vitkern.kernels.loop import stream_hopper

    names, launch = [], stream_hopper.launch

    def noted(kernel, *args, **options):
        names.append(kernel.fn.__name__)
        return launch(kernel, *args, **options)

    monkeypatch.setattr(stream_hopper, "launch", noted)
    monkeypatch.setattr(attention, "takes_short", lambda *_: False)
    with stream_hopper.descriptors(True), dispatch.use_backend("triton"):
        yield names


def of_size(n, m, head_dim, dtype, **terms):
    problem = attention_problem("", (2, 3, n, head_dim), keys=m, outputs=("out", "lse"), return_lse=True, **terms)
    return verify(problem, dtype, torch.device("cuda"))


def failed(results):
    return [f"{result.name}: {result.comparison}" for result in results if not result.comparison.passed]


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_meets_float64(launched, head_dim, dtype):
    results = [result for n, m in SIZES for result in of_size(n, m, head_dim, dtype)]
    assert launched == ["_stream_hopper_fwd"] * len(SIZES)
    assert failed(results) == []
    assert pool_of(results).failures(GPU_POOLED_MARGIN) == []


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", (64, 80, 128))
def test_bias_meets_float64(launched, head_dim, dtype):
    sizes = [(n, m) for n, m in SIZES if min(n, m) > 1]
    results = [result for n, m in sizes for result in of_size(n, m, head_dim, dtype, bias=(3, n, m))]
    assert launched == ["_stream_hopper_fwd"] * len(sizes)
    assert failed(results) == []
    assert pool_of(results).failures(GPU_POOLED_MARGIN) == []


def test_packed_rows(launched):
    problem = packed_problem("", 4, 577, 6, 64, outputs=("out", "lse"), return_lse=True)
    results = verify(problem, torch.bfloat16, torch.device("cuda"))
    assert launched and failed(results) == []


def _large(seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(16, 1370, 3, 12, 64, device="cuda", dtype=torch.bfloat16, generator=generator)


def _attention(qkv):
    from vitkern.ops.attention import attention_qkvpacked

    with torch.no_grad():
        return attention_qkvpacked(qkv)


def test_many_programs_agree_with_pointers_and_with_themselves():
    from vitkern.kernels.loop.stream_hopper import descriptors

    qkv = _large(0)
    first = _attention(qkv)
    assert all(torch.equal(first, _attention(qkv)) for _ in range(50))
    with descriptors(False):
        torch.testing.assert_close(first, _attention(qkv), rtol=2e-2, atol=2e-3)


def test_cuda_graph_replays_on_new_inputs():
    static, other = _large(1), _large(2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _attention(static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _attention(static)
    static.copy_(other)
    graph.replay()
    assert torch.equal(captured, _attention(other))


def test_the_users_allocator_is_not_asked():
    import triton

    def mine(size, alignment, stream):
        raise AssertionError("asked for memory")

    def run():
        triton.set_allocator(mine)
        return _attention(_large(3))

    assert torch.isfinite(contextvars.copy_context().run(run)).all()

"""Hopper's variant of the streaming forward in the interpreter, against float64: loads through descriptors come under
the memory sanitizer as all loads do; whether warps are specialised is for tests/compiler."""

import contextvars
import dataclasses
import functools

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import _allocation

from vitkern.kernels import attention as launchers
from vitkern.kernels.loop import stream_hopper
from vitkern.kernels.loop.problem import Problem, dense_rows
from vitkern.kernels.machine import architecture
from vitkern.kernels.machine.launch import launch
from vitkern.lab.interpreting.sanitizer import MemoryFault
from vitkern.lab.proving.verify import Trial, pooled_failures
from vitkern.lab.specimens.attention import packed as packed_problem
from vitkern.lab.specimens.attention import problem as attention_problem
from vitkern.ops.attention import attention

pytestmark = pytest.mark.interpreter
CPU = torch.device("cpu")
HALVES = (torch.float16, torch.bfloat16)
OUTPUTS = dict(outputs=("out", "lse"), return_lse=True)
SIZES = ((1, 1), (50, 50), (127, 128), (128, 127), (129, 129), (197, 50), (50, 197), (1, 257), (257, 1))
HEAD_DIMS = (40, 64, 72, 80, 96, 128)  # multiples of 8; those between powers of two end within a tile


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """Names of the kernels that were launched; what the one-pass kernels would take comes here, too."""
    names = []

    def noted(kernel, *args, **options):
        assert options["scratch"]  # on a GPU it cannot start without
        names.append(kernel.fn.__name__)
        return launch(kernel, *args, **options)

    monkeypatch.setattr(stream_hopper, "launch", noted)
    monkeypatch.setattr(launchers, "takes_short", lambda *_: False)
    with stream_hopper.descriptors(True):
        yield names


def forward(problem, dtype, arrange=None):
    """The results of a problem's outputs alone."""
    trial = Trial(dataclasses.replace(problem, gradients=()), dtype, CPU, arrange=arrange)
    return trial.results(trial.actual())


@functools.cache
def of_size(n, m, head_dim, dtype):
    return forward(attention_problem(f"{n} by {m}", (1, 2, n, head_dim), keys=m, **OUTPUTS), dtype)


def failed(results):
    return [f"{result.name}: {result.comparison}" for result in results if not result.comparison.passed]


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", (64, 128))
@pytest.mark.parametrize("n, m", SIZES)
def test_sizes(launched, n, m, head_dim, dtype):
    assert failed(of_size(n, m, head_dim, dtype)) == []
    assert launched == ["_stream_hopper_fwd"]


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(launched, head_dim, dtype):
    assert failed(of_size(33, 50, head_dim, dtype)) == []
    assert launched == ["_stream_hopper_fwd"]


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
def test_mean_errors_are_the_ideals(dtype):
    problems = [attention_problem("", (2, 2, 70, head_dim), keys=90, **OUTPUTS) for head_dim in HEAD_DIMS]
    assert pooled_failures(result for problem in problems for result in forward(problem, dtype)) == []


@pytest.mark.parametrize("n, m", [(129, 257), (128, 128)])
def test_the_tiles_of_a_gpu(launched, n, m):
    with architecture.forced_arch(90):
        found = forward(attention_problem("", (1, 2, n, 72), keys=m, kv_heads=1, scale=0.3, **OUTPUTS), torch.float16)
    assert failed(found) == [] and launched == ["_stream_hopper_fwd"]


def test_logits_far_below_zero():
    """A tail of zeros must not be what the softmax is relative to."""

    def arranged(name, tensor):
        return tensor.abs() * {"q": 4, "k": -4}.get(name, 1)

    problem = attention_problem("", (1, 2, 20, 64), keys=19, **OUTPUTS)
    assert failed(forward(problem, torch.float16, arranged)) == []


def _larger(name, tensor):
    """Rows apart, and more behind each dimension: NaN where nothing may be read."""
    place = tensor.new_full([size + step for size, step in zip(tensor.shape, (1, 2, 3, 8), strict=True)], torch.nan)
    return place[tuple(slice(0, size) for size in tensor.shape)].copy_(tensor)


LAYOUTS = {
    "transposed": lambda name, tensor: tensor.transpose(1, 2).contiguous().transpose(1, 2),
    "apart": _larger,
    "expanded batch": lambda name, tensor: tensor[:1].expand_as(tensor),
    "expanded heads": lambda name, tensor: tensor[:, :1].expand_as(tensor),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(launched, layout):
    problem = attention_problem(layout, (2, 2, 33, 72), keys=35, **OUTPUTS)
    assert failed(forward(problem, torch.bfloat16, LAYOUTS[layout])) == []
    assert launched == ["_stream_hopper_fwd"]


@pytest.mark.parametrize("head_dim", (64, 80))
def test_packed_with_its_gradient(launched, head_dim):
    trial = Trial(packed_problem("packed", 2, 35, 3, head_dim, **OUTPUTS), torch.float16, CPU)
    assert failed(trial.results(trial.actual())) == [] and launched == ["_stream_hopper_fwd"]


def test_grouped_heads(launched):
    trial = Trial(attention_problem("", (2, 4, 20, 64), keys=33, kv_heads=2, **OUTPUTS), torch.bfloat16, CPU)
    assert failed(trial.results(trial.actual())) == [] and launched == ["_stream_hopper_fwd"]


def _additive(generator):
    """A mask whose third row forbids everything."""
    mask = torch.randn(20, 33, generator=generator, dtype=torch.float64)
    mask[2], mask[5, :30] = -torch.inf, -torch.inf
    return dict(mask=mask)


TERMS = {
    "bias of the heads": dict(shape=(2, 3, 35, 64), keys=50, bias=(3, 35, 50)),
    "bias of each": dict(shape=(2, 2, 17, 72), keys=64, bias=(2, 2, 17, 64)),
    "bias of the batch": dict(shape=(2, 2, 33, 128), keys=33, bias=(2, 1, 33, 33)),
    "bias of all, grouped heads": dict(shape=(1, 4, 20, 64), keys=35, bias=(20, 35), kv_heads=2),
    "additive mask": dict(shape=(2, 2, 20, 64), keys=33, extra=_additive),
}


@pytest.mark.parametrize("dtype", HALVES, ids=["fp16", "bf16"])
@pytest.mark.parametrize("name", TERMS)
def test_one_dense_term(launched, name, dtype):
    assert failed(forward(attention_problem(name, **TERMS[name], **OUTPUTS), dtype)) == []
    assert launched == ["_stream_hopper_fwd"]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=["fp32", "fp16"])
def test_a_term_of_another_dtype_with_the_tiles_of_a_gpu(launched, dtype):
    def arranged(name, tensor):
        return tensor.to(dtype) if name == "bias" else tensor

    problem = attention_problem("", (1, 2, 130, 64), keys=150, bias=(2, 130, 150), **OUTPUTS)
    with architecture.forced_arch(90):
        assert failed(forward(problem, torch.bfloat16, arranged)) == []
    assert launched == ["_stream_hopper_fwd"]


def test_gradients_of_a_bias(launched):
    problem = attention_problem("", (2, 2, 20, 64), keys=33, bias=(2, 20, 33), **OUTPUTS)
    trial = Trial(problem, torch.float16, CPU)
    assert failed(trial.results(trial.actual())) == [] and launched == ["_stream_hopper_fwd"]


def _half(*shape):
    return torch.randn(shape, dtype=torch.float16)


@pytest.mark.parametrize(
    "q, options",
    [
        (_half(1, 2, 20, 64).float(), {}),
        (_half(1, 2, 20, 36), {}),
        (_half(1, 2, 20, 32), {}),
        (_half(1, 2, 20, 136), {}),
        (_half(1, 2, 20, 68)[..., :64], {}),
        (_half(2 * 20 * 64 + 4)[4:].view(1, 2, 20, 64), {}),
        (_half(1, 2, 1, 64).expand(1, 2, 20, 64), {}),
        (_half(1, 2, 20, 64), dict(causal=True)),
        (_half(1, 2, 20, 64), dict(bias=_half(2, 20, 20).double())),
        (_half(1, 2, 20, 64), dict(bias=_half(2, 20, 20), mask=_half(20, 20))),
        (_half(1, 2, 20, 64), dict(bias=_half(2, 1, 20))),
        (_half(1, 2, 20, 64), dict(bias=_half(2, 20, 1))),
        (_half(1, 2, 20, 64), dict(mask=torch.ones(20, 20, dtype=torch.bool))),
        (_half(1, 2, 20, 64), dict(key_padding_mask=torch.ones(1, 20, dtype=torch.bool))),
        (_half(1, 2, 20, 64), dict(dropout_p=0.5)),
    ],
    ids=[
        *("float32", "head 36", "head 32", "head 136", "rows of 136 bytes", "8 bytes into a row", "repeated tokens"),
        *(
            "causal",
            "bias in float64",
            "two terms",
            "bias of keys",
            "bias of queries",
            "bool mask",
            "padding",
            "dropout",
        ),
    ],
)
def test_what_descriptors_do_not_reach_stays_with_pointers(launched, q, options):
    attention(q, q, q, **options)
    assert launched == []


def test_no_keys_and_no_queries(launched):
    q, none = _half(1, 2, 20, 64), _half(1, 2, 0, 64)
    assert (attention(q, none, none) == 0).all() and attention(none, q, q).shape == none.shape
    assert launched == ["_stream_hopper_fwd"]  # over an empty grid


def _takes(tokens, arch, **problem):
    rows = dense_rows(_half(1, 2, tokens, 64))
    with architecture.forced_arch(arch):
        return stream_hopper.takes(Problem(1, 2, 2, tokens, tokens, 64, 0.1, **problem), rows, rows, rows)


def test_it_is_chosen_by_name_or_by_measurement_and_on_hopper_alone(monkeypatch):
    assert [arch for arch in (80, 90, 100, 120, 942) if _takes(512, arch)] == [90]
    with stream_hopper.descriptors(False):
        assert not _takes(512, 90)
    with stream_hopper.descriptors(None):
        assert stream_hopper.DESCRIPTORS_FROM == {} and not _takes(1 << 20, 90)  # until a GPU has timed it
        monkeypatch.setitem(stream_hopper.DESCRIPTORS_FROM, (64, False), 512)
        assert _takes(512, 90) and not _takes(511, 90) and not _takes(512, 100)
        assert not _takes(512, 90, causal=True)


@triton.jit
def _copy_described(x, out, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    found = tl.make_tensor_descriptor(x, [rows, COLUMNS], [COLUMNS, 1], [ROWS, COLUMNS]).load([0, 0])
    tl.store(out + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], found)


def test_the_sanitizer_sees_loads_through_descriptors():
    x, out = torch.randn(5, 16), torch.empty(8, 16)
    options = dict(ROWS=8, COLUMNS=16, num_warps=1, num_stages=1, scratch=True)
    launch(_copy_described, (1,), x, out, 5, **options)
    assert torch.equal(out[:5], x) and (out[5:] == 0).all()
    with pytest.raises(MemoryFault, match=r"_copy_described, .*load outside x of shape \(5, 16\).*16 of 96 lanes"):
        launch(_copy_described, (1,), x, out, 6, **options)


class _Kernel:
    """Notes the allocator that Triton would ask."""

    def __getitem__(self, grid):
        return lambda *args, **options: setattr(self, "allocator", _allocation._allocator.get())


def test_the_users_allocator_stays(monkeypatch):
    def mine(size, alignment, stream):
        raise AssertionError("asked for memory")

    def run():
        triton.set_allocator(mine)
        kernel = _Kernel()
        launch(kernel, (1,), num_warps=1, num_stages=1)
        assert kernel.allocator is mine
        launch(kernel, (1,), num_warps=1, num_stages=1, scratch=True)
        assert kernel.allocator is not mine and _allocation._allocator.get() is mine
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", lambda size, **options: (size, options["device"]))
            assert kernel.allocator(384, 128, None) == (384, "cuda")

    contextvars.copy_context().run(run)

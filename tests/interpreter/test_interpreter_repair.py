"""The repaired interpreter computes what hardware computes; the stock one, on each of these points, does not."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as interp

from vitkern import register
from vitkern.lab import bfloat16, interpreter
from vitkern.lab.interpreter import InterpreterChanged, repaired

pytestmark = pytest.mark.interpreter
BLOCK = tl.constexpr(16)


@triton.jit
def _square(x):
    return x * x


@triton.jit
def _elementwise(x, y, out, OP: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a, b = tl.load(x + i), tl.load(y + i)
    if OP == "add":
        a = a + b
    elif OP == "multiply":
        a = _square(a) * b
    elif OP == "divide":
        a = a / b
    elif OP == "negate":
        a = -a
    elif OP == "less":
        a = tl.where(a < b, a, b)
    elif OP == "maximum":
        a = tl.maximum(a, b)
    elif OP == "clamp":
        a = tl.clamp(a, -0.5, 0.5)
    elif OP == "fma":
        a = tl.fma(a, b, a)
    elif OP == "scalar":
        a = a * 1.5 + 2
    elif OP == "cast":
        a = (a.to(tl.float32) * 1.2345).to(tl.bfloat16)
    elif OP == "store":
        a = a.to(tl.float32) * 1.2345
    tl.store(out + i, a)


ELEMENTWISE = {
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: a * a * b,
    "divide": lambda a, b: a / b,
    "negate": lambda a, b: -a,
    "less": torch.minimum,
    "maximum": torch.maximum,
    "clamp": lambda a, b: a.clamp(-0.5, 0.5),
    "fma": lambda a, b: (a.double() * b.double() + a.double()).float().bfloat16(),
    "scalar": lambda a, b: a * 1.5 + 2,
    "cast": lambda a, b: (a.float() * 1.2345).bfloat16(),
    "store": lambda a, b: (a.float() * 1.2345).bfloat16(),
}


@triton.jit
def _sum(a, b):
    return a + b


@triton.jit
def _reduced(x, out, OP: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i)
    if OP == "sum":
        a = tl.reduce(a, 0, tl.standard._sum_combine)
    elif OP == "own sum":
        a = tl.reduce(a, 0, _sum)
    elif OP == "max":
        a = tl.reduce(a, 0, tl.standard._elementwise_max)
    elif OP == "argmax":
        a = tl.argmax(a, 0).to(tl.bfloat16)
    elif OP == "cumsum":
        a = tl.cumsum(a, 0)
    tl.store(out + i, tl.zeros((BLOCK,), tl.bfloat16) + a)


def _own_sum(x):
    total = x[0]
    for value in x[1:]:
        total = total + value
    return total


REDUCED = {
    "sum": lambda x: x.float().sum().bfloat16(),
    "own sum": _own_sum,
    "max": lambda x: x.max(),
    "argmax": lambda x: x.argmax().bfloat16(),
    "cumsum": lambda x: x.float().cumsum(0).bfloat16(),
}


@triton.jit
def _product(x, y, out, K: tl.constexpr, PRECISION: tl.constexpr):
    i, k = tl.arange(0, BLOCK), tl.arange(0, K)
    a = tl.load(x + i[:, None] * K + k[None, :])
    b = tl.load(y + k[:, None] * BLOCK + i[None, :])
    tl.store(out + i[:, None] * BLOCK + i[None, :], tl.dot(a, b, input_precision=PRECISION))


def _bf16(n=16):
    x = torch.randn(n).bfloat16()
    x[3] = float("inf")
    return x


def _elementwise_right(op):
    x, y, out = _bf16(), torch.randn(16).bfloat16(), torch.zeros(16, dtype=torch.bfloat16)
    _elementwise[(1,)](x, y, out, OP=op)
    return torch.equal(out, ELEMENTWISE[op](x, y).bfloat16())


def _reduced_right(op):
    x, out = torch.randn(16).bfloat16(), torch.zeros(16, dtype=torch.bfloat16)
    x[7] = -4.0
    _reduced[(1,)](x, out, OP=op)
    return torch.equal(out, REDUCED[op](x).expand(16))


def _multiplied(dtype, precision, k=32):
    x, y, out = torch.randn(16, k).to(dtype), torch.randn(k, 16).to(dtype), torch.zeros(16, 16)
    _product[(1,)](x, y, out, K=k, PRECISION=precision)
    return (out.double() - x.double() @ y.double()).abs().max().item()


@triton.jit
def _wrap(out, a, SIGNED: tl.constexpr):
    i = tl.arange(0, BLOCK)
    b = i + a
    if SIGNED:
        tl.store(out + i, b * 65536)
    else:
        tl.store(out + i, (b.to(tl.uint32) * 65536).to(tl.int32))


def _overflow_raises():
    try:
        _wrap[(1,)](torch.zeros(16, dtype=torch.int32), 40000, SIGNED=True)
    except Exception as error:
        return "int32 overflow in mul: got 2622423040; widen" in str(error)
    return False


def _small_product_raises():
    try:
        _multiplied(torch.float32, "ieee", k=8)
    except Exception as error:
        return "K >= 16" in str(error)
    return False


@triton.jit
def _hinted(x, out, stride):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + tl.multiple_of(stride, 8) + i))


def _false_hint_raises():
    try:
        _hinted[(1,)](torch.zeros(32), torch.zeros(16), 12)
    except Exception as error:
        return "tl.multiple_of: got 12; expected a multiple of [8]" in str(error)
    return False


REPAIRS = {
    **{f"bfloat16 {op}": lambda op=op: _elementwise_right(op) for op in ELEMENTWISE},
    **{f"bfloat16 {op}": lambda op=op: _reduced_right(op) for op in REDUCED},
    "bfloat16 product": lambda: _multiplied(torch.bfloat16, "ieee") < 1e-4,
    "TF32 product": lambda: 1e-5 < _multiplied(torch.float32, "tf32") < 2e-2,
    "int32 overflow": _overflow_raises,
    "smallest product": _small_product_raises,
    "false alignment hint": _false_hint_raises,
}


@pytest.mark.parametrize("name", REPAIRS)
def test_repaired(name):
    torch.manual_seed(0)
    assert REPAIRS[name]()


@pytest.mark.unsanitized(reason="compares with the stock interpreter", repaired=False)
@pytest.mark.parametrize("name", REPAIRS)
def test_stock_interpreter_needs_the_repair(name):
    torch.manual_seed(0)
    with np.errstate(all="ignore"):
        right = REPAIRS[name]()
    assert not right, f"Triton {triton.__version__} does this right by itself: the repair can go"


def test_what_was_right_stays_right():
    assert _multiplied(torch.float32, "ieee") < 1e-5
    assert _multiplied(torch.float16, "ieee") < 1e-4
    out = torch.zeros(16, dtype=torch.int32)
    _wrap[(1,)](out, 40000, SIGNED=False)  # unsigned numbers wrap by definition
    assert out.tolist() == [((40000 + i) * 65536 + 2**31) % 2**32 - 2**31 for i in range(16)]
    _hinted[(1,)](torch.zeros(32), torch.zeros(16), 16)


def test_rounding_is_to_nearest_even_and_keeps_special_values():
    special = torch.tensor([1.00390625, 1.01171875, 3.4e38, float("inf"), -float("inf"), 1e-40, -0.0])
    values = torch.cat([torch.randn(1000), special])
    bits = torch.from_numpy(bfloat16.narrowed(values.numpy()).view(np.int16))
    assert torch.equal(bits.view(torch.bfloat16), values.bfloat16())
    assert np.isnan(bfloat16.widened(bfloat16.narrowed(np.array([np.nan], np.float32)))).all()
    special = np.array([np.inf, -np.inf, 0.0, 1.0, 1.0 + 2**-11, 1.0 + 3 * 2**-11], np.float32)
    assert bfloat16.to_tf32(special).tolist() == [np.inf, -np.inf, 0.0, 1.0, 1.0, 1.0 + 2**-9]
    assert np.isnan(bfloat16.to_tf32(np.array([np.nan], np.float32))).all()


@triton.jit
def _erf(x, out):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.math.erf(tl.load(x + i)))


def test_erf_is_exact():
    x, out = torch.linspace(-4, 4, 16), torch.zeros(16)
    _erf[(1,)](x, out)
    assert torch.equal(out, torch.erf(x.double()).float())


@pytest.mark.unsanitized(reason="looks at the repairs coming and going", repaired=False)
def test_everything_is_put_back():
    owners = (interp, interp.InterpreterBuilder, interp.ReduceOps, interp.ScanOps, interp.GridExecutor, tl, tl.core)
    before = [dict(vars(owner)) for owner in owners]
    with repaired(), repaired():
        assert register.interpreter_is_repaired
        assert vars(interp.InterpreterBuilder)["create_dot"] is not before[1]["create_dot"]
    assert [dict(vars(owner)) for owner in owners] == before
    assert not register.interpreter_is_repaired


@pytest.mark.unsanitized(reason="looks at how often the language is patched", repaired=False)
def test_the_language_is_patched_once():
    with repaired():
        patched = tl.load
        assert _elementwise_right("multiply")
        assert tl.load is patched


@pytest.mark.unsanitized(reason="operators see what the stock interpreter may get", repaired=False)
def test_operators_widen_bfloat16_for_the_stock_interpreter_only():
    def launch(x):
        seen.append(x.dtype)
        return x * 2

    seen, x = [], torch.ones(3, dtype=torch.bfloat16)
    with repaired():
        assert register._interpret(launch, torch.empty_like, (x,)).dtype == torch.bfloat16
    assert register._interpret(launch, torch.empty_like, (x,)).dtype == torch.bfloat16
    assert seen == [torch.bfloat16, torch.float32]


def _truncated(values):
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.unsanitized(reason="the repairs must refuse", repaired=False)
@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda m: m.delattr(interp.InterpreterBuilder, "create_dot"),
            r"got InterpreterBuilder.create_dot None; expected",
        ),
        (lambda m: m.setattr(interp.ReduceOps, "sum", lambda self: None), r"got ReduceOps.sum \('self',\); expected"),
        (lambda m: m.delattr(interp, "_implicit_cvt"), "got no _implicit_cvt; expected one"),
        (lambda m: m.delattr(tl.semantic.TritonSemantic, "binary_op_sanitize_overflow_impl"), "got no binary_op"),
        (lambda m: m.setattr(interp, "_patch_lang", lambda fn: None), "got no scope from _patch_lang"),
        (lambda m: m.setattr(bfloat16, "narrowed", _truncated), "did not take: got a wrong bfloat16 rounding"),
    ],
)
def test_another_layout_is_refused(monkeypatch, break_it, message):
    break_it(monkeypatch)
    before = dict(vars(interp.InterpreterBuilder))
    with pytest.raises(InterpreterChanged, match=message), repaired():
        pass
    assert dict(vars(interp.InterpreterBuilder)) == before
    assert interpreter._depth == 0 and not register.interpreter_is_repaired

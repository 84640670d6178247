"""The repaired interpreter computes what hardware computes; the stock one, on each of these points, does not."""

import itertools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as interp

from vitkern import dispatch, register
from vitkern.lab.interpreting import bfloat16
from vitkern.lab.interpreting.interpreter import InterpreterChanged, repaired
from vitkern.lab.interpreting.wide import wide

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
    elif OP == "min":
        a = tl.min(a, 0)
    elif OP == "argmax":
        a = tl.argmax(a, 0).to(tl.bfloat16)
    elif OP == "argmin":
        a = tl.argmin(a, 0).to(tl.bfloat16)
    elif OP == "argmax, any of equals":
        a = tl.argmax(a, 0, tie_break_left=False).to(tl.bfloat16)
    elif OP == "cumsum":
        a = tl.cumsum(a, 0)
    elif OP == "cumsum from the end":
        a = tl.cumsum(a, 0, reverse=True)
    elif OP == "cumprod":
        a = tl.cumprod(a, 0)
    elif OP == "own scan":
        a = tl.associative_scan(a, 0, _sum)
    tl.store(out + i, tl.zeros((BLOCK,), tl.bfloat16) + a)


def _own_scan(x):
    sums = [x[0]]
    for value in x[1:]:
        sums.append(sums[-1] + value)
    return torch.stack(sums)


REDUCED = {
    "sum": lambda x: x.float().sum().bfloat16(),
    "own sum": lambda x: _own_scan(x)[-1],
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
    "argmax": lambda x: x.argmax().bfloat16(),
    "argmin": lambda x: x.argmin().bfloat16(),
    "argmax, any of equals": lambda x: x.argmax().bfloat16(),
    "cumsum": lambda x: x.float().cumsum(0).bfloat16(),
    "cumsum from the end": lambda x: x.float().flip(0).cumsum(0).flip(0).bfloat16(),
    "cumprod": lambda x: x.float().cumprod(0).bfloat16(),
    "own scan": _own_scan,
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


def _multiplied(dtype, precision, k=32, rounded=lambda x: x):
    """The largest error against the exact product of the operands, ``rounded``."""
    x, y, out = torch.randn(16, k).to(dtype), torch.randn(k, 16).to(dtype), torch.zeros(16, 16)
    _product[(1,)](x, y, out, K=k, PRECISION=precision)
    return (out.double() - rounded(x).double() @ rounded(y).double()).abs().max().item()


def _to_tf32(x):
    return torch.from_numpy(bfloat16.to_tf32(x.numpy()))


@triton.jit
def _axis_reduced(x, out, AXIS: tl.constexpr, OP: tl.constexpr):
    i = tl.arange(0, BLOCK)
    a = tl.load(x + i[:, None] * BLOCK + i[None, :])
    tl.store(out + i, tl.sum(a, AXIS) if OP == "sum" else tl.max(a, AXIS))


def _axes_right():
    x, out = torch.randn(16, 16).bfloat16(), torch.zeros(16, dtype=torch.bfloat16)
    for axis in (0, 1):
        for op, right in (("sum", x.float().sum(axis).bfloat16()), ("max", x.amax(axis))):
            _axis_reduced[(1,)](x, out, AXIS=axis, OP=op)
            if not torch.equal(out, right):
                return False
    return True


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


@triton.jit
def _integers(out, a, OP: tl.constexpr):
    i = tl.arange(0, BLOCK)
    b = i * 0 + a
    if OP == "add":
        b = b + b
    elif OP == "sub":
        b = -1 - b - b
    elif OP == "sum":
        b = i * 0 + tl.sum(b, 0)
    elif OP == "cumsum":
        b = tl.cumsum(b, 0)
    elif OP == "cumprod":
        b = tl.cumprod(b, 0)
    elif OP == "own sum":
        b = i * 0 + tl.reduce(b, 0, _sum)
    tl.store(out + i, b)


_TOO_LARGE = {"add": 2**30, "sub": 2**30, "sum": 2**28, "cumsum": 2**28, "cumprod": 4, "own sum": 2**28}


def _integers_raise(op):
    out = torch.zeros(16, dtype=torch.int32)
    _integers[(1,)](out, 1, OP=op)  # small numbers pass
    try:
        _integers[(1,)](out, _TOO_LARGE[op], OP=op)
    except Exception as error:
        return "int32 overflow in " in str(error) and "OverflowError" in str(error)
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


@triton.jit
def _add_atomically(x, out, old):
    i = tl.arange(0, BLOCK)
    tl.store(old + i, tl.atomic_add(out + i // 2, tl.load(x + i), mask=i != 5))


def _atomic_right():
    x, out, old = torch.randn(16).bfloat16(), torch.randn(8).bfloat16(), torch.zeros(16, dtype=torch.bfloat16)
    first, kept = out.clone(), x.clone()
    kept[5] = 0.0
    _add_atomically[(1,)](x, out, old)
    half = first + kept[::2]
    return torch.equal(out, half + kept[1::2]) and torch.equal(old[::2], first) and old[5] == 0


@pytest.mark.unsanitized(reason="the sanitizer refuses atomics on floats")
def test_atomic_addition_of_bfloat16():
    torch.manual_seed(0)
    assert _atomic_right()


REPAIRS = {
    **{f"bfloat16 {op}": lambda op=op: _elementwise_right(op) for op in ELEMENTWISE},
    **{f"bfloat16 {op}": lambda op=op: _reduced_right(op) for op in REDUCED},
    "bfloat16 along an axis": _axes_right,
    "bfloat16 product": lambda: _multiplied(torch.bfloat16, "ieee") < 1e-4,
    "TF32 product": lambda: _multiplied(torch.float32, "tf32", rounded=_to_tf32) < 1e-5,
    "int32 overflow": _overflow_raises,
    **{f"int32 overflow in {op}": lambda op=op: _integers_raise(op) for op in _TOO_LARGE},
    "smallest product": _small_product_raises,
    "false alignment hint": _false_hint_raises,
}


# The language itself of some releases of Triton computes these in float32.
NOT_ALWAYS_WRONG = {"bfloat16 maximum", "bfloat16 clamp", "bfloat16 min"}


@pytest.mark.parametrize("name", REPAIRS)
def test_repaired(name):
    torch.manual_seed(0)
    assert REPAIRS[name]()


@pytest.mark.unsanitized(reason="compares with the stock interpreter", repaired=False)
@pytest.mark.parametrize("name", [name for name in REPAIRS if name not in NOT_ALWAYS_WRONG])
def test_stock_interpreter_needs_the_repair(name):
    torch.manual_seed(0)
    with np.errstate(all="ignore"):
        try:
            right = REPAIRS[name]()
        except Exception:
            right = False
    assert not right, f"Triton {triton.__version__} does this right by itself: the repair can go"


def test_what_was_right_stays_right():
    assert _multiplied(torch.float32, "ieee") < 1e-5
    assert _multiplied(torch.float16, "ieee") < 1e-4
    out = torch.zeros(16, dtype=torch.int32)
    _wrap[(1,)](out, 40000, SIGNED=False)  # unsigned numbers wrap by definition
    assert out.tolist() == [((40000 + i) * 65536 + 2**31) % 2**32 - 2**31 for i in range(16)]
    _hinted[(1,)](torch.zeros(32), torch.zeros(16), 16)


@triton.jit
def _hash(x, out, ROUNDS: tl.constexpr):
    i = tl.arange(0, BLOCK)
    h = tl.load(x + i).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        h = (h ^ (h >> 16)) * 0x7FEB352D + 0x9E3779B9 - i.to(tl.uint32)
    tl.store(out + i, h.to(tl.int32, bitcast=True))


def test_hashes_wrap():
    x, out = torch.arange(2**31 - 16, 2**31, dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    _hash[(1,)](x, out, ROUNDS=3)
    for i in range(16):
        h = int(x[i])
        for _ in range(3):
            h = ((h ^ (h >> 16)) * 0x7FEB352D + 0x9E3779B9 - i) % 2**32
        assert out[i].item() % 2**32 == h


@triton.jit
def _atomics(out, value):
    tl.atomic_add(out, value)
    tl.atomic_max(out + 1, value)
    tl.atomic_min(out + 2, value)


def test_atomics_on_integers():
    out = torch.tensor([5, 5, 5], dtype=torch.int32)
    _atomics[(4,)](out, 7)
    _atomics[(1,)](out, -3)
    assert out.tolist() == [30, 7, -3]


@triton.jit
def _sum_to(out, n):
    total = 0
    for i in tl.range(1, n, 2):
        total += i
    tl.store(out, total)


def test_loops_take_bounds_from_run_time():
    """Which NumPy 2.4 breaks in the stock interpreter of Triton before 3.7."""
    out = torch.zeros(1, dtype=torch.int32)
    _sum_to[(1,)](out, 8)
    assert out.item() == 1 + 3 + 5 + 7


@triton.jit
def _choose(out, first, flag):
    tl.store(out, tl.where(first[1], 1, 2))
    tl.store(out + 1, tl.where(flag, 1, 2))


def test_bool_arguments():
    """Which the stock interpreter of Triton before 3.7 takes for 32-bit integers."""
    out = torch.zeros(2, dtype=torch.int32)
    _choose[(1,)](out, (0, True), False)
    assert out.tolist() == [1, 2]


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
    classes = interp.InterpreterBuilder, interp.ReduceOps, interp.ScanOps, interp.GridExecutor, interp.TritonSemantic
    owners = (interp, *classes, tl, tl.core, tl.core.dtype, tl.core.block_type)
    before = [dict(vars(owner)) for owner in owners]
    with repaired(), repaired():
        assert dispatch.interpreter_is_repaired
        assert vars(interp.InterpreterBuilder)["create_dot"] is not before[1]["create_dot"]
    assert [dict(vars(owner)) for owner in owners] == before
    assert not dispatch.interpreter_is_repaired


def _said(kind):
    """All that a type and a tensor of it say."""
    tensor = tl.core.tensor(None, kind)
    numel, shape = tensor.numel.value, [length.value for length in tensor.shape]
    of_block = (kind.numel, [*kind.shape]) if kind.is_block() else None
    return str(kind), str(kind.scalar), of_block, numel, shape, tensor.type is kind, interp._get_np_dtype(kind)


@pytest.mark.unsanitized(reason="compares with the stock interpreter", repaired=False)
def test_what_types_say_is_remembered_as_it_is():
    elements = tl.float32, tl.bfloat16, tl.int1, tl.int64, tl.pointer_type(tl.float32), tl.pointer_type(tl.int8)

    def kinds():
        return [*elements, *(tl.block_type(one, shape) for one in elements for shape in ([16], [4, 1], [1, 4], [4, 4]))]

    expected = [_said(kind) for kind in kinds()]
    same = [[one == other for other in kinds()] for one in kinds()]
    with repaired():
        for _ in range(2):
            assert [_said(kind) for kind in kinds()] == expected
            assert [[one == other for other in kinds()] for one in kinds()] == same
            for lengths in ([4.0, 4], [3], [], [tl.constexpr(4.0)]):
                with pytest.raises((TypeError, ValueError)):
                    tl.block_type(tl.float32, lengths)
            assert tl.block_type(tl.float32, [tl.constexpr(4)]) == tl.block_type(tl.float32, [4])
            assert all(tl.block_type(one, [4]).element_ty is one for one in (tl.float32, tl.pointer_type(tl.float32)))


@pytest.mark.unsanitized(reason="compares with the stock interpreter", repaired=False)
def test_types_are_computed_in_what_they_are_without_the_repairs():
    def promoted():
        semantic, found = interp.TritonSemantic(interp.interpreter_builder), {}
        for case in itertools.product(kinds, (False, True), kinds, (False, True), (False, True)):
            try:
                found[case] = str(semantic.computation_type_impl(*case))
            except TypeError as error:
                found[case] = str(error)
        return found

    kinds = tl.int1, tl.int8, tl.uint8, tl.int32, tl.uint32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64
    expected = promoted()
    with repaired():
        assert promoted() == promoted() == expected
        divided = tl.float16, False, tl.float16, False, True
        with wide():
            assert promoted()[divided] == "fp64"
        assert promoted()[divided] == "fp32"


@pytest.mark.unsanitized(reason="makes double precision of single", repaired=False)
def test_single_precision_is_remembered_outside_of_double_alone():
    single = tl.float32
    with repaired():
        assert interp._get_np_dtype(single) == np.float32
        with wide(), pytest.raises(KeyError):
            interp._get_np_dtype(single)


@pytest.mark.unsanitized(reason="compares with the stock interpreter", repaired=False)
@pytest.mark.parametrize("shapes", [([4, 1], [1, 8]), ([4, 8], [4, 8]), ([4, 8], [4, 1]), ([8], [8]), ([8], None)])
def test_blocks_are_broadcast_as_they_are_without_the_repairs(shapes):
    def spread():
        types = [tl.int32 if shape is None else tl.block_type(tl.int32, shape) for shape in shapes]
        values = [np.arange(np.prod(shape or 1), dtype=np.int32).reshape(shape or 1) for shape in shapes]
        handles = [interp.TensorHandle(value, tl.int32) for value in values]
        tensors = [tl.core.tensor(*one) for one in zip(handles, types, strict=True)]
        found = interp.TritonSemantic(interp.interpreter_builder).broadcast_impl_value(*tensors)
        return [(str(one.type), one.handle.data.tolist()) for one in found]

    expected = spread()
    with repaired():
        assert spread() == expected


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
        assert register._interpret(launch, torch.empty_like, x).dtype == torch.bfloat16
    assert register._interpret(launch, torch.empty_like, x).dtype == torch.bfloat16
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.unsanitized(reason="looks at the choice with and without the repairs", repaired=False)
def test_an_interpreter_too_old_for_numpy_is_a_reason_until_it_is_repaired(monkeypatch):
    releases = {"triton": (3, 6), "numpy": (2, 4)}
    monkeypatch.setattr(dispatch, "_release", releases.get)
    monkeypatch.setattr(dispatch, "_interpreter_reasons", dispatch._interpreter_reasons.__wrapped__)
    assert "before 3.7 needs numpy below 2.4" in dispatch.why_not([torch.ones(1)])[0]
    with repaired():
        assert dispatch.why_not([torch.ones(1)]) == []
    assert dispatch.why_not([torch.ones(1)])
    releases["numpy"] = (2, 3)
    assert dispatch.why_not([torch.ones(1)]) == []


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
        (lambda m: m.setattr(tl.core.tensor, "__init__", lambda self: None), r"got tl.core.tensor.__init__ \('self'"),
        (lambda m: m.delattr(interp, "_implicit_cvt"), "got no _implicit_cvt; expected one"),
        (lambda m: m.delattr(tl.semantic.TritonSemantic, "binary_op_sanitize_overflow_impl"), "got no binary_op"),
        (lambda m: m.setattr(interp, "_patch_lang", lambda fn: None), "the language was not patched"),
        (lambda m: m.setattr(bfloat16, "narrowed", _truncated), "did not take: got a wrong bfloat16 rounding"),
    ],
)
def test_another_layout_is_refused(monkeypatch, break_it, message):
    break_it(monkeypatch)
    before = dict(vars(interp.InterpreterBuilder))
    with pytest.raises(InterpreterChanged, match=message), repaired():
        pass
    assert dict(vars(interp.InterpreterBuilder)) == before and not dispatch.interpreter_is_repaired
    monkeypatch.undo()
    with repaired():
        assert dispatch.interpreter_is_repaired

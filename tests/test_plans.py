"""What a plan depends on, and what is never planned. Kernels are compiled for a GPU that is not there, and start
nothing: what they are handed is compared."""

import contextlib
import enum
import gc
import re
import sys
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
import torch
from threads import run_threads

pytest.importorskip("triton", reason="plans are of its kernels")
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from triton import knobs

import vitkern
from vitkern import faults, plans, tape
from vitkern.kernels.machine import launch
from vitkern.kernels.rows import layernorm
from vitkern.lab.compiling.fake_gpu import FakeDriver, installed

C = 32


@pytest.fixture(autouse=True)
def launches():
    """What each launch was handed: addresses and numbers."""
    found = []

    def start(*args):
        found.append([value.data_ptr() if isinstance(value, torch.Tensor) else value for value in args])

    with installed(FakeDriver(start=start)):
        yield found


def numbers(launch):
    """All but the addresses."""
    return [value for value in launch if not isinstance(value, int) or value < 2**32]


def rows(*shape, dtype=torch.float32, grad=False):
    return torch.ones(*shape, dtype=dtype).requires_grad_(grad)


X, W = rows(6, C), rows(C)


def norm(x=X, weight=W, eps=1e-6, **more):
    return vitkern.layernorm(x, weight, None, eps, **more)


def plan_of(x=X, weight=W, eps=1e-6, residual=None):
    return plans.plan_of("layernorm", (x, weight, None, residual), (eps,))


def is_planned(**changes):
    return plan_of(**changes).known


def test_the_second_call_is_played(launches, monkeypatch):
    norm()
    assert is_planned()
    monkeypatch.setattr(vitkern.ops.layernorm.checks, "check_tensor", lambda *args: pytest.fail("checked again"))
    monkeypatch.setattr(
        vitkern.ops.layernorm.layernorm_forward, "implementation", lambda *args: pytest.fail("chosen again")
    )
    other = rows(6, C)
    y = norm(other)
    first, second = launches
    assert second[:8] == [other.data_ptr(), None, W.data_ptr(), None, None, None, None, y.data_ptr()]
    assert numbers(second) == numbers(first)


def test_what_a_tape_is():
    norm()
    (source,) = plan_of().sources()
    lines = source.splitlines()
    assert lines[0] == "def play(t0, t1, t2, t3, t4, t5):" and lines[-1].startswith("    return (t6, ")
    assert sum("data_ptr" in line for line in lines) == 1


def test_the_page_shows_a_tape(capsys):
    page = (Path(__file__).parents[1] / "docs" / "host.md").read_text()
    program, shown = re.search(r"^```python\n(.*?)^```\n\n```\n(.*?)^```", page, re.DOTALL | re.MULTILINE).groups()
    exec(program.replace('device="cuda", ', ""), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(shown.splitlines()) + 1  # an empty line at its end
    for line, expected in zip(printed, shown.splitlines(), strict=False):
        assert without_numbers(line).startswith(without_numbers(expected.removesuffix("...)")))


def without_numbers(line):
    """Which constants there are, and how many programs, is Triton's and the architecture's."""
    return re.sub(r"\bc\d+\b|(?<=\()\d+(?=, 1, 1, now)", "_", line)


CHANGES = {
    "shape": lambda: dict(x=rows(7, C)),
    "strides": lambda: dict(x=rows(6, 2 * C)[:, :C]),
    "dtype": lambda: dict(x=rows(6, C, dtype=torch.float16)),
    "weight's dtype": lambda: dict(x=rows(6, C, dtype=torch.float16), weight=rows(C, dtype=torch.float16)),
    "alignment": lambda: dict(x=rows(6 * C + 1)[1:].view(6, C)),
    "requires_grad": lambda: dict(x=rows(6, C, grad=True)),
    "requires_grad of the weight": lambda: dict(weight=rows(C, grad=True)),
    "device": lambda: dict(x=torch.empty(6, C, device="meta"), weight=torch.empty(C, device="meta")),
    "an operand less": lambda: dict(weight=None),
    "an operand more": lambda: dict(residual=rows(6, C)),
    "eps": lambda: dict(eps=1e-5),
    "eps of another type": lambda: dict(eps=0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_plan(change):
    norm(eps=0.0)
    norm()
    changes = CHANGES[change]()
    assert is_planned() and not is_planned(**changes)
    norm(**changes)
    assert is_planned() and is_planned(**changes)


def test_a_tensor_that_was_resized_in_place():
    x = rows(6, C)
    norm(x)
    x.resize_(4, C)
    assert not is_planned(x=x)
    assert norm(x).shape == (4, C)


BLOCKS = {
    "backend": lambda: vitkern.use_backend("triton"),
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "TF32": lambda: allowed(),
    "TF32, by the newer switch": lambda: precision("tf32"),
    "another choice of blocks": lambda: replaced(),
}


class allowed:
    def __enter__(self):
        self.before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = not self.before

    def __exit__(self, *error):
        torch.backends.cuda.matmul.allow_tf32 = self.before


@contextlib.contextmanager
def precision(name):
    """``fp32_precision``, of torch 2.9, beside which the older switch cannot be read."""
    switch = torch.backends.cuda.matmul
    if not hasattr(switch, "fp32_precision"):
        pytest.skip("this torch has no fp32_precision")
    before, switch.fp32_precision = switch.fp32_precision, name
    try:
        yield
    finally:
        switch.fp32_precision = before


def replaced():
    from vitkern.kernels.machine.choices import replaced

    return replaced({})


@pytest.mark.parametrize("block", BLOCKS)
def test_another_plan_within(block):
    x = rows(6, C, grad=True)
    norm(x)
    with BLOCKS[block]():
        assert not is_planned(x=x)
        norm(x)
        assert is_planned(x=x)


def test_a_compiled_graph_plays_too(launches):
    x = rows(6, C)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    (plan,) = plans._plans.values()
    (played,) = plan._tapes.values()
    assert played is not None and compiled(x).shape == y.shape
    assert numbers(launches[-1]) == numbers(launches[0])


def test_a_fault_makes_plans_anew():
    norm()
    faults.changes[0] += 1
    assert not is_planned()


BAD = {
    "eps that is a bool": (lambda: dict(eps=True), TypeError),
    "eps below 0": (lambda: dict(eps=-1.0), ValueError),
    "weight of another length": (lambda: dict(weight=rows(C + 1)), ValueError),
    "residual of another shape": (lambda: dict(residual=rows(5, C)), ValueError),
    "integers": (lambda: dict(x=torch.ones(6, C, dtype=torch.int64)), TypeError),
    "a list": (lambda: dict(x=[1.0]), TypeError),
    "a sparse tensor": (lambda: dict(x=X.to_sparse()), TypeError),
    "a compressed tensor": (lambda: dict(weight=rows(4, C).to_sparse_csr()), TypeError),
    "a nested tensor": (lambda: dict(x=torch.nested.nested_tensor([X, X])), TypeError),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_and_after_good(name):
    arguments, error = BAD[name]
    for _ in range(2):
        with pytest.raises(error, match="layernorm: "):
            norm(**arguments())
    norm(eps=1)
    norm()
    for _ in range(2):
        with pytest.raises(error, match="layernorm: "):
            norm(**arguments())


def test_a_mask_that_wants_a_gradient_is_refused():
    q = rows(1, 1, 4, 16)
    mask = rows(4, 4)
    vitkern.attention(q, q, q, mask=mask)
    with pytest.raises(ValueError, match="mask"):
        vitkern.attention(q, q, q, mask=mask.requires_grad_())


class Subclass(torch.Tensor):
    pass


class Counting(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


NEVER = {
    "a subclass": lambda: norm(X.as_subclass(Subclass)),
    "minus what is in memory": lambda: norm(torch._neg_view(X)),
    "zeros that are not in memory": lambda: norm(torch._efficientzerotensor((6, C))),
    "a dispatch mode": lambda: within(FlopCounterMode(display=False)),
    "a function mode": lambda: within(Counting()),
    "a profile": lambda: within(torch.profiler.profile()),
    "options that are no keys": lambda: vitkern.window_attention(rows(1, 4, 4, 48), num_heads=1, window=[4, 4]),
}


def within(context):
    with context:
        return norm()


@pytest.mark.parametrize("name", NEVER)
def test_goes_through_the_dispatcher(name):
    NEVER[name]()
    assert not any(plan.known for plan in plans._plans.values())


def test_a_profile_names_the_operator():
    norm()
    with torch.profiler.profile() as profile:
        norm()
    assert "vitkern::layernorm" in {event.key for event in profile.key_averages()}


def test_hooks_of_launches_hear_of_each():
    norm()
    heard = []
    listener = lambda *args: heard.append(args)  # noqa: E731
    before = knobs.runtime.launch_enter_hook
    if hasattr(before, "add"):
        before.add(listener)
    else:
        knobs.runtime.launch_enter_hook = listener
    try:
        assert plan_of()._key is None
    finally:
        if hasattr(before, "remove"):
            before.remove(listener)
        else:
            knobs.runtime.launch_enter_hook = before
    assert is_planned()


def test_a_receiver_is_handed_each_launch():
    received = []
    with launch.redirected(lambda *args: received.append(args)):
        for _ in range(3):
            norm()
    assert len(received) == 3


def test_what_a_tape_starts_stays_loaded(monkeypatch):
    def forget_kernels():
        for kernel in vars(layernorm).values():
            getattr(kernel, "device_caches", {}).clear()
        gc.collect()

    forget_kernels()  # of other tests
    norm()
    unloaded = []
    monkeypatch.setattr(FakeDriver, "unload_module", lambda self, module: unloaded.append(module))
    forget_kernels()
    assert not unloaded


class Heads(enum.IntEnum):
    TWO = 2


class Act(str, enum.Enum):
    GELU = "gelu"


SUBCLASSES = {
    "a float of numpy": lambda: norm(eps=numpy.float64(1e-6)),
    "a named int": lambda: vitkern.window_attention(rows(1, 4, 4, 96), num_heads=Heads.TWO, window=(4, 4)),
    "a named str": lambda: vitkern.layernorm_mlp(X, W, W, rows(C, C), None, rows(C, C), None, eps=0.0, act=Act.GELU),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_options_of_subclasses_are_played(name):
    for _ in range(2):
        SUBCLASSES[name]()
    (plan,) = plans._plans.values()
    assert None not in plan._tapes.values()


def test_one_tensor_as_two_inputs_and_then_two(launches):
    x, other = rows(6, C), rows(6, C)
    norm(x, residual=x)
    norm(x, residual=other)
    assert launches[0][:2] == [x.data_ptr()] * 2
    assert launches[1][:2] == [x.data_ptr(), other.data_ptr()]


def test_gradients_are_played(launches):
    x = rows(6, C, grad=True)
    for _ in range(2):
        norm(x).backward(rows(6, C))
    assert len(plan_of(x=x)._tapes) == 2 and len(launches) == 4
    assert numbers(launches[1]) == numbers(launches[3])
    norm(x).backward(rows(C, 6).t())  # a gradient of other strides
    assert len(plan_of(x=x)._tapes) == 3


def test_a_backward_is_compiled():
    x = rows(6, C, grad=True)
    y = norm(x)
    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.compile(lambda: y.backward(rows(6, C)), backend="eager")()
    assert x.grad.shape == x.shape


def test_a_backward_within_autocast():
    x = rows(6, C, grad=True)
    norm(x).backward(rows(6, C))
    y = norm(x)
    with torch.autocast("cpu", torch.bfloat16):
        y.backward(rows(6, C))
    assert len(plan_of(x=x)._tapes) == 3


def test_what_autocast_has_cast_before_is_not_kept():
    """Its cache outlives the call, not the block: a tape that held on to it would multiply by old weights."""
    a, weight = rows(4, 4), rows(4, 4, grad=True)
    with torch.autocast("cpu", torch.bfloat16), tape.recording() as recording:
        torch.mm(a, weight)
        with torch.no_grad():
            tape.launched(torch.mm, [a, weight])
    assert recording.tape is None


def test_hooks_may_save_tensors_in_another_layout():
    x = rows(C, 6).t().requires_grad_()
    norm(x).backward(rows(6, C))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        norm(x).backward(rows(6, C))
    assert len(plan_of(x=x)._tapes) == 3


def test_data_may_be_another_tensor_by_the_backward():
    x = rows(6, C, grad=True)
    norm(x).backward(rows(6, C))
    y = norm(x)
    x.data = rows(C, 6).t()
    y.backward(rows(6, C))
    assert len(plan_of(x=rows(6, C, grad=True))._tapes) == 3


def test_a_checkpoint():
    x = rows(6, C, grad=True)
    for _ in range(2):
        checkpoint(norm, x, use_reentrant=False).backward(rows(6, C))
    assert x.grad.shape == x.shape


def test_second_derivatives_take_the_formula():
    x = torch.randn(6, C).requires_grad_()
    for _ in range(2):
        (first,) = torch.autograd.grad(norm(x).sum(), x, create_graph=True)
        assert first.grad_fn is not None


def test_many_gradients_at_once_take_the_formula():
    x = rows(6, C, grad=True)
    norm(x).backward(rows(6, C))
    (found,) = torch.autograd.grad(norm(x), x, rows(3, 6, C), is_grads_batched=True)
    assert found.shape == (3, 6, C)


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(plans, "MOST", 3)
    for n in range(1, 8):
        norm(rows(n, C))
    assert len(plans._plans) == 3 and is_planned(x=rows(7, C)) and not is_planned(x=rows(1, C))


def test_nothing_of_a_call_is_kept():
    x = rows(6, C, grad=True)
    norm(x).backward(rows(6, C))
    held = weakref.ref(x)
    del x
    gc.collect()
    assert held() is None


def test_a_launcher_that_looks_at_values_is_not_recorded():
    def launcher(x):
        return x * 2 if x.sum() > 0 else x * 3

    plan = plans.Plan("test", "key", False, False)
    for factor in (1.0, -1.0):
        x = X * factor
        expected = x * (2 if factor > 0 else 3)
        assert torch.equal(plan.played("part", lambda x: tape.launched(launcher, [x]), [x]), expected)
    assert plan._tapes == {"part": None}


class Pair(NamedTuple):
    one: torch.Tensor
    other: torch.Tensor


class Several(tuple):
    pass


def test_tensors_in_a_tuple_with_names_are_played_as_one():
    with tape.recording() as recording:
        tape.launched(lambda x: Pair(x, x * 2), [X])
    played = recording.tape.play(X + 1)
    assert type(played) is Pair and torch.equal(played.one, X + 1) and torch.equal(played.other, 2 * X + 2)


def test_tensors_in_a_tuple_of_another_kind_are_not_recorded():
    with tape.recording() as recording:
        tape.launched(lambda x: Several((x, x * 2)), [X])
    assert recording.tape is None


def test_what_lies_between_launches_is_played():
    """Views, allocations, operators in place and out of place, trees of results."""

    def launcher(x, y, factor):
        out = x.new_empty(3, 4)
        out.copy_(x.t()[1:] * factor)
        out[0, :2].add_(y[0])
        unused = torch.empty(5)
        return out.t(), (out + 2.0).sum(0), unused.view(5)[:0]

    def agrees(made, expected):
        return all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(made, expected, strict=True))

    with tape.recording() as recording:
        tape.launched(launcher, [torch.randn(4, 4), torch.randn(1), 2.5])
    for _ in range(3):
        x, y = torch.randn(4, 4), torch.randn(1)
        assert agrees(recording.tape.play(x, y, 2.5), launcher(x, y, 2.5))


def test_what_a_launcher_frees_is_freed_while_it_is_recorded():
    def launcher(x):
        first = x + 1
        part, held = first[1:], weakref.ref(first)
        out = part * 2
        del first, part
        assert held() is None
        return out - (x + 3)[1:]  # which may lie where the first one did

    with tape.recording() as recording:
        made = tape.launched(launcher, [X])
    assert torch.equal(recording.tape.play(X), made)


@pytest.mark.parametrize("launcher", [lambda x: x + X, lambda x: (x + 1, X)])
def test_a_launcher_that_keeps_tensors_is_not_recorded(launcher):
    with tape.recording() as recording:
        tape.launched(launcher, [rows(6, C)])
    assert recording.tape is None


def test_a_launcher_within_a_launcher_is_not_taken_for_it():
    def outer(x):
        tape.launched(torch.neg, [x])
        return x * 2 if x.sum() > 0 else x

    with tape.recording() as recording:
        tape.launched(outer, [rows(6, C)])
    assert recording.tape is None


def test_threads_play_one_plan():
    wrong = []

    def work(number):
        for n in range(200):
            y = norm(rows(1 + (n + number) % 5, C))
            if y.shape[0] != 1 + (n + number) % 5:
                wrong.append(number)

    work(0)  # kernels are compiled by one: the parser of some Pythons is not safe in several
    plans.forget()
    run_threads(work)
    assert not wrong and len(plans._plans) == 5


def test_without_a_gpu_no_kernel_is_planned():
    """The PyTorch path is; of tensors without memory it is not."""
    from vitkern import dispatch

    before, dispatch._any_device = dispatch._any_device, False
    try:
        norm()
        assert plan_of().checked and not is_planned()
        assert plan_of(x=X.to("meta"), weight=W.to("meta"))._key is None
    finally:
        dispatch._any_device = before


def python_calls(call):
    """Functions of Python that run within ``call()``."""
    names = []
    sys.setprofile(lambda frame, event, arg: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        call()
    finally:
        sys.setprofile(None)
    return len(names) - 1


def qkv(*shape):
    return rows(*shape, dtype=torch.bfloat16, grad=True)


COUNTED = {  # a call, its inputs, most functions of Python in a forward, and with the backward
    "layernorm": (lambda x: norm(x), (qkv(6, C),), 42, 73),
    "rmsnorm": (lambda x: vitkern.rmsnorm(x, W, 1e-6), (qkv(6, C),), 42, 73),
    "attention": (vitkern.attention, [qkv(1, 1, 16, 16) for _ in range(3)], 37, 67),
    "attention_qkvpacked": (vitkern.attention_qkvpacked, (qkv(1, 16, 3, 1, 16),), 37, 67),
    "window_attention": (
        lambda x: vitkern.window_attention(x, num_heads=1, window=(4, 4)), (qkv(1, 4, 4, 48),), 40, 70,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_python_calls_of_a_planned_call(name):
    """What a call costs the host, counted: `python -m benchmarks host` takes the time."""
    function, inputs, forward, both = COUNTED[name]

    def training():
        out = function(*inputs)
        return torch.autograd.Variable._execution_engine.run_backward(
            (out,), (out.detach(),), False, False, tuple(inputs), allow_unreachable=True, accumulate_grad=False
        )

    def inference():
        with torch.no_grad():
            return function(*inputs)

    found = []
    for call in (inference, training):
        for _ in range(2):
            call()
        found.append(python_calls(call))
    assert found[0] <= forward and found[1] <= both, found

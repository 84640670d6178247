"""The memory sanitizer catches what it says, and lets legal patterns pass."""

import pytest
import torch
import triton
import triton.language as tl

from vitkern.kernels.machine.launch import launch
from vitkern.lab.interpreting.sanitizer import MemoryFault, sanitized

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.unsanitized(reason="each test opens the sanitizer that it is about"),
]
BLOCK = tl.constexpr(16)


@triton.jit
def _copy(x, out, n, MASK_LOAD: tl.constexpr, MASK_STORE: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if MASK_LOAD:
        value = tl.load(x + i, mask=i < n, other=0.0)
    else:
        value = tl.load(x + i)
    if MASK_STORE:
        tl.store(out + i, value, mask=i < n)
    else:
        tl.store(out + i, value)


def _run(kernel, grid, *args, **constants):
    launch(kernel, grid, *args, num_warps=4, num_stages=1, **constants)


def _copied(n, masks=(True, True), order="forward", **options):
    x, out = torch.arange(float(n)), torch.empty(n)
    with sanitized(order=order, **options) as sanitizer:
        out = torch.empty(n)
        _run(_copy, (triton.cdiv(n, 16),), x, out, n, MASK_LOAD=masks[0], MASK_STORE=masks[1])
    assert sanitizer.launches == 1
    return x, out


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize("n", [16, 37])
def test_clean_kernel_passes(n, order):
    x, out = _copied(n, order=order, once=("*.out",))
    assert torch.equal(x, out)


def test_load_without_mask_is_caught():
    with pytest.raises(
        MemoryFault,
        match=r"_copy, program \(2, 0, 0\): load outside x .*11 of 16 lanes.*element 37.*test_sanitizer.py:\d+",
    ):
        _copied(37, masks=(False, True))


def test_store_without_mask_is_caught():
    with pytest.raises(MemoryFault, match=r"store outside out"):
        _copied(37, masks=(True, False))


def test_memory_between_the_rows_of_a_view_is_outside():
    x, out = torch.zeros(4, 12)[:, :8], torch.empty(44)
    with pytest.raises(MemoryFault, match=r"load outside x of shape \(4, 8\) and strides \(12, 1\)"), sanitized():
        _run(_copy, (3,), x, out, 44, MASK_LOAD=True, MASK_STORE=True)


def test_another_view_of_the_same_storage_is_outside():
    first, second = torch.zeros(32).chunk(2)
    with pytest.raises(MemoryFault, match="load outside x"), sanitized():
        _run(_copy, (2,), first, torch.empty(32), 32, MASK_LOAD=True, MASK_STORE=True)
    assert second.data_ptr() == first.data_ptr() + 64


@triton.jit
def _tuple_arguments(tensors, out, n):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(tensors[0] + i, mask=i < n, other=0.0) + tl.load(tensors[1] + i))


def test_tensors_in_tuples_are_registered():
    with sanitized():
        out = torch.empty(16)
        _run(_tuple_arguments, (1,), (torch.ones(9), torch.ones(16)), out, 9)
    assert out.tolist() == [2.0] * 9 + [1.0] * 7
    with pytest.raises(MemoryFault, match=r"load outside tensors\[1\]"), sanitized():
        _run(_tuple_arguments, (1,), (torch.ones(9), torch.ones(15)), torch.empty(16), 9)


@triton.jit
def _missing_other(x, out, n):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masked_lanes_without_other_are_poisoned(dtype):
    with sanitized():
        out = torch.zeros(16, dtype=dtype)
        _run(_missing_other, (1,), torch.ones(10, dtype=dtype), out, 10)
    assert out[:10].eq(1).all() and out[10:].isnan().all()


def test_masked_integer_lanes_without_other_are_poisoned():
    with sanitized():
        out = torch.zeros(16, dtype=torch.int32)
        _run(_missing_other, (1,), torch.ones(10, dtype=torch.int32), out, 10)
    assert out[10:].gt(2**29).all()


@triton.jit
def _overlap(out, value, STEP: tl.constexpr, SAME: tl.constexpr):
    i = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    if SAME:
        i = i * 0
    tl.store(out + i, tl.zeros((BLOCK,), tl.float32) + value)


def test_two_programs_writing_one_element_are_caught_even_with_equal_values():
    with pytest.raises(MemoryFault, match="also writes an element of out that program number 0 writes"), sanitized():
        _run(_overlap, (2,), torch.empty(24), 1.0, STEP=8, SAME=False)


def test_one_store_writing_an_element_twice_is_caught():
    with pytest.raises(MemoryFault, match="one store writes an element of out twice"), sanitized():
        _run(_overlap, (1,), torch.empty(16), 1.0, STEP=0, SAME=True)


def test_unwritten_elements_are_caught_at_the_end():
    with (
        pytest.raises(MemoryFault, match=r"_overlap: 8 of 24 elements of out, shape \(24,\), were never written"),
        sanitized(),
    ):
        _run(_overlap, (1,), torch.empty(24), 1.0, STEP=8, SAME=False)


def test_unwritten_integers_are_caught():
    with pytest.raises(MemoryFault, match="8 of 24 elements of out"), sanitized():
        _run(_overlap, (1,), torch.empty(24, dtype=torch.int32), 1, STEP=8, SAME=False)


def test_scratch_need_not_be_written_but_reading_the_rest_is_caught():
    with sanitized(scratch=("_overlap.out",)):
        scratch = torch.empty(32)
        _run(_overlap, (1,), scratch, 1.0, STEP=16, SAME=False)
        _run(_copy, (1,), scratch, torch.empty(16), 16, MASK_LOAD=True, MASK_STORE=True)
    with pytest.raises(MemoryFault, match="reads an element of x that was never written"), sanitized():
        scratch = torch.empty(32)
        _run(_overlap, (1,), scratch, 1.0, STEP=16, SAME=False)
        _run(_copy, (2,), scratch, torch.empty(20), 20, MASK_LOAD=True, MASK_STORE=True)


def test_two_launches_may_share_an_output():
    with sanitized():
        out = torch.empty(32)
        _run(_overlap, (1,), out[16:], 1.0, STEP=16, SAME=False)
        _run(_overlap, (1,), out, 2.0, STEP=16, SAME=False)
    assert out.tolist() == [2.0] * 16 + [1.0] * 16


def test_an_initialised_output_need_not_be_written():
    with sanitized():
        _run(_overlap, (1,), torch.zeros(24), 1.0, STEP=8, SAME=False)


@triton.jit
def _accumulate(x, partial, n, TIMES: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partial + i, tl.zeros((BLOCK,), tl.float32))
    for _ in range(TIMES):
        tl.store(partial + i, tl.load(partial + i) + tl.load(x + i, mask=i < n, other=0.0))


def test_load_add_store_by_one_program_is_legal():
    with sanitized():
        partial = torch.empty(32)
        _run(_accumulate, (2,), torch.ones(20), partial, 20, TIMES=3)
    assert partial.tolist() == [3.0] * 20 + [0.0] * 12


def test_exactly_once_is_checked_where_asked():
    with (
        pytest.raises(
            MemoryFault, match="partial has 0 elements that are not written and 32 that are written more than once"
        ),
        sanitized(once=("_accumulate.part*",)),
    ):
        _run(_accumulate, (2,), torch.ones(20), torch.empty(32), 20, TIMES=1)
    with pytest.raises(MemoryFault, match="out has 8 elements that are not written and 0"), sanitized(once=("*.out",)):
        _run(_overlap, (1,), torch.zeros(24), 1.0, STEP=8, SAME=False)


@triton.jit
def _shift(x, START: tl.constexpr):
    """Each program reads its neighbour's block and writes its own."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i + START))


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_reading_what_another_program_writes_is_caught_in_any_order(order):
    with pytest.raises(MemoryFault, match=r"program number \d writes|another program reads"), sanitized(order=order):
        _run(_shift, (2,), torch.zeros(48), START=16)


@triton.jit
def _read_by_all(x, out):
    i = tl.arange(0, BLOCK)
    pid = tl.program_id(0)
    total = tl.sum(tl.load(x + i), 0)
    tl.store(out + pid, total)
    if pid == 1:
        tl.store(x + i, tl.zeros((BLOCK,), tl.float32))


def test_a_reader_is_not_forgotten_when_the_writer_reads_too():
    with pytest.raises(MemoryFault, match="writes an element of x that another program reads"), sanitized():
        _run(_read_by_all, (2,), torch.ones(16), torch.empty(2))


def test_programs_run_in_the_order_asked():
    seen = {}
    for order in ("forward", "reverse", "random"):
        trace = torch.zeros(1, dtype=torch.int32)
        out = torch.empty(2, 3, dtype=torch.int32)
        with sanitized(order=order, seed=3):
            _run(_order, (2, 3), trace, out)
        seen[order] = out.flatten().tolist()
    assert seen["forward"] == [0, 1, 2, 3, 4, 5]
    assert seen["reverse"] == [5, 4, 3, 2, 1, 0]
    assert sorted(seen["random"]) == [0, 1, 2, 3, 4, 5] and seen["random"] not in (seen["forward"], seen["reverse"])


@triton.jit
def _order(trace, out):
    tl.store(out + tl.program_id(0) * 3 + tl.program_id(1), tl.atomic_add(trace, 1))


@triton.jit
def _atomic(out):
    tl.atomic_add(out, 1.0)


def test_atomics_on_floats_are_caught():
    with pytest.raises(MemoryFault, match="an atomic on floats"), sanitized():
        _run(_atomic, (2,), torch.zeros(1))


@triton.jit
def _from_number(out, address):
    tl.store(out, tl.load(address.to(tl.pointer_type(tl.float32))))


def test_a_pointer_from_nowhere_is_caught():
    x = torch.ones(1)
    with pytest.raises(MemoryFault, match="a pointer that comes from no argument"), sanitized():
        _run(_from_number, (1,), torch.empty(1), x.data_ptr())


def test_gaps_of_gigabytes_cost_nothing():
    """Two rows 2^31 elements apart: legal."""
    x = torch.empty(0, dtype=torch.float16).set_(torch.UntypedStorage(2**32 + 64), 0, (2, 16), (2**31, 1))
    x.fill_(1.0)
    with sanitized():
        out = torch.empty(2, 16, dtype=torch.float16)
        _run(
            _rows,
            (2,),
            x,
            out,
            x.stride(0),
        )
    assert out.eq(1).all()


@triton.jit
def _rows(x, out, stride):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    tl.store(out + row * BLOCK + i, tl.load(x + row.to(tl.int64) * stride + i))


def test_bounds_of_gigabytes_are_exact():
    """Neither the gap between two rows nor a third row is the tensor's."""
    x = torch.empty(0, dtype=torch.float16).set_(torch.UntypedStorage(2**32 + 64), 0, (2, 16), (2**31, 1))
    for stride in (2**31 - 16, 2**31 + 1):
        with pytest.raises(MemoryFault, match=r"load outside x of shape \(2, 16\)"), sanitized():
            _run(_rows, (2,), x, torch.empty(2, 16, dtype=torch.float16), stride)


def test_the_last_programs_of_a_large_grid():
    with sanitized(order="random") as sanitizer, sanitizer.programs.only((5, 2**26, 2), range(7, 11)):
        out = torch.full((4, 3), -1, dtype=torch.int32)
        _run(_place, (4,), out, torch.zeros(1, dtype=torch.int32))
    assert sorted(out.tolist()) == [[0, 3, 1], [0, 4, 0], [0, 4, 1], [0, 5, 0]]


@triton.jit
def _place(out, turn):
    row = out + tl.atomic_add(turn, 1) * 3
    tl.store(row, tl.program_id(0))
    tl.store(row + 1, tl.program_id(1))
    tl.store(row + 2, tl.program_id(2))
    tl.device_assert(tl.num_programs(1) == 2**26)


def test_order_must_be_known():
    with pytest.raises(ValueError, match="unknown order: got 'sideways'"), sanitized(order="sideways"):
        pass

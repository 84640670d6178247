"""What real models launch compiles, fits, does not spill, uses tensor cores and wide loads; and the checks can tell."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import driver

from tests.compiler.cases import CELLS
from vitkern import dispatch
from vitkern.kernels.loop import problem
from vitkern.kernels.loop.heads import one_tile
from vitkern.kernels.loop.stream_hopper import descriptors
from vitkern.kernels.machine import architecture
from vitkern.kernels.machine.blocks import Config
from vitkern.kernels.machine.choices import replaced
from vitkern.kernels.machine.launch import launch
from vitkern.kernels.machine.numbers import disguised
from vitkern.lab.compiling import budget, exceptions, golden, sass
from vitkern.lab.compiling import compile as lab
from vitkern.ops.attention import attention_qkvpacked

pytestmark = pytest.mark.compiler


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell[0]}-{budget.name_of(cell[1])}")
def test_kernels_of_real_models(compiled, cell):
    found = exceptions.unexcused(*cell, compiled(cell))
    known = golden.load(golden.minor())
    if cell[1] in known.architectures:
        worse, _, unlisted = golden.compare(known, cell, compiled(cell))
        found += worse + unlisted
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "cell", [("attention-hopper-d64", 90), ("attention-hopper-d128", 90)], ids=lambda cell: cell[0]
)
def test_hoppers_variant_has_warps_that_load_and_warps_that_compute(compiled, cell):
    (kernel,) = compiled(cell)
    assert kernel.name == "_stream_hopper_fwd" and kernel.asks_specialised
    assert (kernel.num_warps, kernel.all_warps, kernel.loop_warps) == (4, 12, 8)
    assert kernel.spills == kernel.machine.stack == 0 and kernel.programs == 1
    copies = 4 + 2 * ("bias" in cell[0])  # q in two halves, k and v; bias in two halves
    assert kernel.machine.tensor["HGMMA"] > 0 and kernel.machine.loads == {128: copies}


def _hopper_of_eight_warps():
    with descriptors(True):
        attention_qkvpacked(torch.empty(2, 300, 3, 2, 64, dtype=torch.bfloat16))


def test_warps_that_were_not_specialised_are_flagged():
    with replaced({"stream_hopper_config": lambda *_: Config(128, 128, 8, 2)}):
        (kernel,) = lab.compile_launches(_hopper_of_eight_warps, 90)
    assert kernel.all_warps == kernel.num_warps == kernel.loop_warps == 8
    assert kernel.problems() == ["asks for specialised warps and has none"]


def _heads_of_80():
    with torch.no_grad():
        attention_qkvpacked(torch.empty(2, 1024, 3, 4, 80, dtype=torch.bfloat16))


def test_heads_of_80_dims_multiply_80():
    (two,) = lab.compile_launches(_heads_of_80, 80)
    with one_tile():
        (one,) = lab.compile_launches(_heads_of_80, 80)
    for kernel, width in ((two, 80), (one, 128)):
        assert kernel.work.programs * kernel.work.turns * kernel.work.flop == 4 * 2 * 4 * 1024 * 1024 * width
    assert two.shared < one.shared and two.spills == one.spills == 0


def test_the_sample_is_part_of_the_matrix():
    assert set(CELLS) <= set(lab.cells([], []))


@triton.jit
def _row_sum(x, out, stride, COLUMNS: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, COLUMNS)
    tl.store(out + row, tl.sum(tl.load(x + row * stride + i).to(tl.float32), 0))


def _sum_rows(columns, spare, dtype=torch.bfloat16):
    x = torch.empty(4, columns + spare, dtype=dtype)[:, :columns]
    launch(_row_sum, (4,), x, torch.empty(4), x.stride(0), COLUMNS=columns, num_warps=4, num_stages=1)


@pytest.mark.parametrize("arch", [80, 100])
def test_rows_that_lost_their_alignment_are_flagged(arch):
    (good,) = lab.compile_launches(lambda: _sum_rows(1024, 16), arch)
    (bad,) = lab.compile_launches(lambda: _sum_rows(1024, 3), arch)
    assert good.problems() == [] and good.widest_load == 128
    assert bad.problems() == ["widest global load is 16 bits"]


@triton.jit
def _multiply(a, b, out, K, SIZE: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):
    i, k = tl.arange(0, SIZE), tl.arange(0, STEP)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, K, STEP):
        x = tl.load(a + i[:, None] * K + (start + k)[None, :])
        y = tl.load(b + (start + k)[:, None] * SIZE + i[None, :])
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(out + i[:, None] * SIZE + i[None, :], total)


def _products(size, step, dtype, precision, num_warps, num_stages):
    a, b, out = torch.empty(size, 1024, dtype=dtype), torch.empty(1024, size, dtype=dtype), torch.empty(size, size)
    options = dict(num_warps=num_warps, num_stages=num_stages)
    launch(_multiply, (1,), a, b, out, 1024, SIZE=size, STEP=step, PRECISION=precision, **options)


@pytest.mark.parametrize("arch, name", [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_a_good_product_has_no_problems(arch, name):
    (kernel,) = lab.compile_launches(lambda: _products(64, 64, torch.bfloat16, "ieee", 4, 2), arch)
    assert kernel.problems() == []
    assert kernel.machine.tensor[name] > 0 and kernel.has_dot and not kernel.ieee
    assert kernel.machine.loop > 10 and kernel.programs >= 2
    bounds = budget.loop_bounds(arch, kernel.machine, kernel.num_warps)
    assert bounds["issue"] > 0 and set(bounds) == {"tensor", "special", "fp32", "issue", "memory"}
    if arch == 80:
        assert bounds["tensor"] == 2 * 64 * 64 * 64 / budget.LIMITS[80].tensor_flop


@triton.jit
def _centre(x, COLUMNS: tl.constexpr):
    i = tl.arange(0, COLUMNS)
    row = tl.load(x + i)
    tl.store(x + i, row - tl.sum(row, 0))


def _centre_wide_row():
    """512 values in each of 32 threads, which have 255 registers."""
    launch(_centre, (1,), torch.empty(16384), COLUMNS=16384, num_warps=1, num_stages=1)


def test_spills_are_flagged():
    (kernel,) = lab.compile_launches(_centre_wide_row, 80)
    assert kernel.spills > 0
    assert any(problem.startswith("spills: ") for problem in kernel.problems())


def test_too_much_shared_memory_is_flagged():
    (kernel,) = lab.compile_launches(lambda: _products(32, 512, torch.bfloat16, "ieee", 4, 5), 90)
    assert kernel.problems() == [f"needs {kernel.shared} bytes of shared memory; sm_90 gives 232448"]
    assert kernel.programs == 0


def test_a_product_without_tensor_cores_is_flagged():
    (tf32,) = lab.compile_launches(lambda: _products(64, 32, torch.float32, "tf32", 4, 1), 80)
    (ieee,) = lab.compile_launches(lambda: _products(16, 16, torch.float32, "ieee", 4, 1), 80)
    assert tf32.machine.tensor and not tf32.ieee and tf32.problems() == []
    assert not ieee.machine.tensor and ieee.ieee and ieee.problems() == []
    without = dataclasses.replace(tf32, machine=dataclasses.replace(tf32.machine, tensor={}))
    assert without.problems() == ["has a matrix product and no tensor-core instruction"]


def test_other_architectures_compile():
    (amd,) = lab.compile_launches(lambda: _products(64, 64, torch.bfloat16, "ieee", 4, 2), 942)
    assert any("mfma" in name for name in amd.machine.tensor) and amd.problems() == []
    (nvidia,) = lab.compile_launches(lambda: _products(64, 64, torch.bfloat16, "ieee", 4, 2), 120)
    assert nvidia.machine.tensor and nvidia.problems() == []


@triton.jit
def _stride_method(x, stride):
    tl.store(x + tl.program_id(0) * stride.to(tl.int64), 1.0)


def test_arguments_are_specialised_as_at_run_time():
    """An integer argument of 1 is a Python int in the kernel, and has no methods."""

    def start(stride):
        launch(_stride_method, (2,), torch.empty(8), stride, num_warps=1, num_stages=1)

    assert len(lab.compile_launches(lambda: start(2), 80)) == 1
    with pytest.raises(Exception, match="to"):
        lab.compile_launches(lambda: start(1), 80)


def test_no_stride_of_a_single_head_or_token_is_one():
    """Triton 3.6 loses the second 1 of (1, (8, 1))."""
    assert problem.per_token(torch.empty(2, 8, 1)).strides_over(1) == (1, (8, 0))
    assert problem.per_token(torch.empty(2, 8, 0)).strides_over(1)[1][1] == 0
    q, _, _ = problem.image_rows(torch.empty(2, 4, 4, 24), 8, 3)
    assert q.strides_over(8) == (0, tuple(map(disguised, (48, 12, 3))))
    whole = problem.image_rows(torch.empty(2, 4, 4, 16), 8, 1)[0]
    assert whole.strides_over(8) == (1, tuple(map(disguised, (32, 8, 2))))
    assert whole.over(8)[0] is whole.tensor and whole.over(8)[1:] == whole.strides_over(8)


def test_everything_is_put_back_even_after_a_failure():
    before = dict(vars(driver))
    lab.compile_launches(lambda: _sum_rows(64, 0), 80)

    def fail():
        assert architecture.arch_of(torch.empty(1)) == 80
        assert dispatch.why_not([torch.empty(1)]) == []
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        lab.compile_launches(fail, 80)
    assert dict(vars(driver)) == before
    assert architecture.arch_of(torch.empty(1)) == architecture.INTERPRETER
    assert dispatch.why_not([torch.empty(1)]) != []


def test_nothing_launched_and_interpreted_processes_are_errors(monkeypatch):
    with pytest.raises(RuntimeError, match="compile: nothing was launched"):
        lab.compile_launches(lambda: None, 80)
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    with pytest.raises(RuntimeError, match="compile: TRITON_INTERPRET is set"):
        lab.compile_launches(lambda: None, 80)


LISTING = """
        .global kernel
.L_x_0:
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0010*/              @!P0 LDG.E.U16 R8, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/                   FFMA R1, R2, R3, R4 ;
        /*0040*/                   MUFU.EX2 R1, R2 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
        /*0060*/                   STL [R1], R2 ;
        /*0070*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0080*/                   BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
"""


def test_machine_code_is_read():
    machine = sass.read_listing("Function f:\n  REG:40 STACK:16 SHARED:1024 LOCAL:0", LISTING)
    assert (machine.registers, machine.stack, machine.spill_loads, machine.spill_stores) == (40, 16, 0, 1)
    assert machine.loads == {128: 1, 16: 1} and machine.stores == {64: 1}
    assert machine.loop == 4 and machine.instructions == 10 and machine.tensor == {"HMMA": 1}
    assert budget.loop_bounds(80, machine, 4) == {"tensor": 8, "special": 8, "fp32": 2, "issue": 4, "memory": 0}
    with pytest.raises(ValueError, match="no instruction was understood"):
        sass.read_listing("", "something else")


WAITING = """
.L_x_0:
        /*0000*/              @!P1 BRA `(.L_x_2) ;
.L_x_1:
        /*0010*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR20], R24 ;
        /*0020*/                   FADD R1, R2, R3 ;
        /*0030*/               @P0 BRA `(.L_x_0) ;
        /*0040*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0050*/                   EXIT ;
.L_x_2:
        /*0060*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR6], R4 ;
        /*0070*/               @P1 BRA `(.L_x_1) ;
        /*0080*/                   BRA `(.L_x_2) ;
"""


def test_waiting_outside_a_loop_is_no_part_of_it():
    machine = sass.read_listing("", WAITING)
    assert machine.loop == 4 and machine.mix == {"BRA": 2, "HGMMA": 1, "FADD": 1}


@pytest.mark.parametrize(
    "registers, warps, shared, expected",
    [(255, 4, 1024, 2), (128, 8, 1024, 2), (32, 4, 1024, 16), (32, 4, 80000, 2), (32, 4, 170000, 0), (16, 1, 0, 32)],
)
def test_programs_per_multiprocessor(registers, warps, shared, expected):
    machine = dataclasses.replace(sass.read_listing("", LISTING), registers=registers)
    assert budget.programs_per_sm(80, machine, warps, shared) == expected

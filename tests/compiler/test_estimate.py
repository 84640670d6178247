"""Static bounds: what is counted in machine code of both vendors, and the time that follows from it."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl

from vitkern.kernels.machine.launch import launch
from vitkern.lab.compiling import amdgcn, budget, estimate, sass, work
from vitkern.lab.compiling.compile import compile_launches

pytestmark = pytest.mark.compiler

GCN = """
_kernel:
.LBB0_0:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
\tglobal_load_dwordx4 v[0:3], v4, s[2:3]
\tbuffer_load_ushort v5, v4, s[8:11], 0 offen
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tds_read_b128 v[8:11], v12
\tds_read2_b64 v[8:11], v12 offset1:1
\tv_mfma_f32_32x32x8_bf16 v[16:31], v[0:1], v[8:9], v[16:31]
\tv_exp_f32_e32 v6, v6
\tv_pk_fma_f32 v[6:7], v[6:7], v[8:9], v[6:7]
\ts_cbranch_scc1 .LBB0_1
; %bb.2:
\tscratch_load_dword v1, off, off offset:4
\tscratch_store_dword off, v1, off
\tglobal_store_dwordx2 v4, v[6:7], s[2:3]
\ts_endpgm
    .private_segment_fixed_size: 8
    .vgpr_count:     129
    .vgpr_spill_count: 1
"""


def test_amd_listing_is_read():
    machine = amdgcn.read_listing(GCN)
    assert (machine.registers, machine.stack, machine.spill_loads, machine.spill_stores) == (129, 8, 1, 1)
    assert machine.loads == {128: 1, 16: 1} and machine.stores == {64: 1}
    assert machine.tensor == {"v_mfma_f32_32x32x8_bf16": 1} and machine.instructions == 13
    assert machine.loop == 6 and machine.traffic == 256
    bounds = budget.loop_bounds(942, machine, 4)
    assert bounds == {"tensor": 2 * 32 * 32 * 8 * 4 / 2048, "special": 16, "fp32": 4, "issue": 8, "memory": 64}
    assert budget.programs_per_sm(942, machine, 4, 1024) == 3
    assert budget.programs_per_sm(942, machine, 4, 40000) == 1
    assert budget.programs_per_sm(942, machine, 4, 65537) == 0
    with pytest.raises(ValueError, match="no vgpr_count was found"):
        amdgcn.read_listing("\tv_add_f32 v0, v0, v1")


TTIR = """
    %0 = tt.dot %a, %b, %c : tensor<16x16xf32> * tensor<16x16xf32> -> tensor<16x16xf32> loc(#l)
    scf.for %i = %x to %y step %z : i32 {
      scf.for %j = %x to %y step %z : i32 {
        %1 = tt.dot %a, %b, %c : tensor<64x32xbf16> * tensor<32x128xbf16> -> tensor<64x128xf32> loc(#l)
        %2 = "tt.reduce"(%1) ({
        }) : (tensor<64x128xf32>) -> tensor<64xf32> loc(#l)
        %3 = tt.dot %a, %b, %c : tensor<64x128xbf16> * tensor<128x32xbf16> -> tensor<64x32xf32> loc(#l)
      } loc(#l)
    } loc(#l)
    scf.for %i = %x to %y step %z : i32 {
      %4 = tt.dot %a, %b, %c : tensor<16x16xbf16> * tensor<16x16xbf16> -> tensor<16x16xf32> loc(#l)
    } loc(#l)
"""


def test_products_of_the_innermost_loop_are_counted():
    assert work.dot_flop(TTIR) == 2 * 2 * 64 * 32 * 128
    assert work.dot_flop(TTIR[: TTIR.index("scf.for")]) == 2 * 16**3
    assert work.dot_flop("") == 0


@triton.jit
def _matmul(a, b, out, rows, inner, BLOCK_K: tl.constexpr):
    """Named as a kernel of the package, whose turns are inner / BLOCK_K."""
    i, k = tl.program_id(0) * 64 + tl.arange(0, 64), tl.arange(0, BLOCK_K)
    total = tl.zeros((64, 64), tl.float32)
    for start in range(0, inner, BLOCK_K):
        x = tl.load(a + i[:, None] * inner + (start + k)[None, :])
        total = tl.dot(x, tl.load(b + (start + k)[:, None] * 64 + tl.arange(0, 64)[None, :]), total)
    tl.store(out + i[:, None] * 64 + tl.arange(0, 64)[None, :], total)


def _multiply():
    a, b = torch.empty(256, 1024, dtype=torch.bfloat16), torch.empty(1024, 64, dtype=torch.bfloat16)
    launch(_matmul, (4,), a, b, torch.empty(256, 64), 256, 1024, BLOCK_K=64, num_warps=4, num_stages=2)


@pytest.mark.parametrize("arch", [80, 100])
def test_a_launch_has_its_work_and_its_bound(arch):
    (kernel,) = compile_launches(_multiply, arch)
    moved = 256 * 1024 * 2 + 1024 * 64 * 2 + 256 * 64 * 4
    assert kernel.work == work.Work(programs=4, turns=16, flop=2 * 64**3, moved=moved)
    name = {80: "A100", 100: "B200"}[arch]
    gpu, bound = estimate.GPUS[name], estimate.bounds(kernel)[name]
    cycles = estimate.turn_bounds(kernel, gpu)
    assert cycles["tensor"] == 2 * 64**3 / gpu.tensor_flop
    if arch == 80:
        assert budget.loop_flop(kernel.machine, kernel.num_warps) == kernel.work.flop  # both readers count the same
    assert bound.seconds == pytest.approx(max(16 * max(cycles.values()) / gpu.clock, moved / gpu.memory))
    assert bound.roofline == pytest.approx(max(moved / gpu.memory, 2 * 256 * 1024 * 64 / gpu.half))
    assert bound.seconds >= bound.roofline


def test_more_programs_than_multiprocessors_wait():
    (kernel,) = compile_launches(_multiply, 80)
    gpu = estimate.GPUS["A100"]

    def seconds(programs):
        return estimate.bound(
            dataclasses.replace(kernel, work=dataclasses.replace(kernel.work, programs=programs, moved=0)), gpu
        )

    assert seconds(108).seconds == seconds(1).seconds and seconds(109).seconds == 2 * seconds(108).seconds
    assert seconds(1).by in ("tensor", "issue", "memory")


def test_a_slower_instruction_mix_moves_the_bound():
    (kernel,) = compile_launches(_multiply, 80)
    mix = kernel.machine.mix | {"MUFU": 1000}
    slower = dataclasses.replace(kernel, machine=dataclasses.replace(kernel.machine, mix=mix))
    gpu = estimate.GPUS["A100"]
    assert estimate.bound(slower, gpu).by == "special"
    assert estimate.bound(slower, gpu).seconds > estimate.bound(kernel, gpu).seconds


def test_another_architecture_is_refused():
    (kernel,) = compile_launches(_multiply, 80)
    with pytest.raises(ValueError, match="estimate: another architecture: got sm_80; expected sm_90"):
        estimate.bound(kernel, estimate.GPUS["H100"])


def test_clocks_are_those_of_the_data_sheets():
    clocks = {name: round(gpu.clock / 1e9, 2) for name, gpu in estimate.GPUS.items()}
    assert clocks == {"A100": 1.41, "H100": 1.83, "H200": 1.83, "B200": 1.86, "RTX 5090": 2.41, "MI300X": 2.1}


def test_shared_accesses_of_matrices_are_counted():
    listing = "\n".join(
        f"        /*{i:04x}*/                   {text} ;"
        for i, text in enumerate(("LDSM.16.M88.4 R4, [R2]", "LDSM.16.M88.2 R4, [R2]", "LDS.64 R4, [R2]", "STS R2, R4"))
    )
    assert sass.read_listing("REG:8", listing).traffic == 128 + 64 + 64 + 32

"""Compiles what an op would launch, for any GPU, on a machine without one.

The launches are caught at `vitkern.kernels.launch` and compiled with the very specialisation that their CPU arguments
would get at run time: which pointers and integers are divisible by 16, which integers are 1.
``python -m vitkern lab compile`` prints a table.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vitkern import dispatch
from vitkern.lab import budget, sass
from vitkern.report import BadInput, near_matches

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one architecture."""

    name: str
    arch: int
    num_warps: int
    num_stages: int
    machine: sass.Machine
    shared: int  # bytes per program
    tensor_memory: int  # columns of tensor memory per program, sm_100
    has_dot: bool
    half_input: bool  # some pointer argument is fp16 or bf16
    ieee: bool  # every product is full fp32, which tensor cores do not have
    constants: tuple[str, ...]  # "name=value"

    @property
    def programs(self) -> int:
        """Programs that one multiprocessor holds."""
        return budget.programs_per_sm(self.arch, self.machine, self.num_warps, self.shared, self.tensor_memory)

    @property
    def spills(self) -> int:
        return self.machine.spill_loads + self.machine.spill_stores

    @property
    def widest_load(self) -> int:
        """Bits per thread of the widest global load."""
        return max(self.machine.loads, default=0)

    def problems(self) -> list[str]:
        """What is wrong with it on this architecture; empty where nothing is."""
        found = []
        limit = budget.LIMITS[self.arch].shared_block
        if self.shared > limit:
            found.append(f"needs {self.shared} bytes of shared memory; sm_{self.arch} gives {limit}")
        if self.spills or self.machine.stack:
            m = self.machine
            found.append(f"spills: {m.spill_loads} loads, {m.spill_stores} stores, {m.stack} bytes of stack")
        if self.has_dot and not self.ieee and not self.machine.tensor:
            found.append("has a matrix product and no tensor-core instruction")
        if self.arch < 900 and self.half_input and self.widest_load < 128:
            found.append(f"widest global load is {self.widest_load} bits")
        return found

    def row(self) -> str:
        m = self.machine
        tensor = " ".join(f"{name}*{count}" for name, count in m.tensor.items()) or "-"
        loads = " ".join(f"{bits}b*{count}" for bits, count in sorted(m.loads.items(), reverse=True)) or "-"
        return (
            f"{self.name:<34} {self.arch:>4} w{self.num_warps} s{self.num_stages} {m.registers:>4} {self.spills:>6} "
            f"{m.stack:>6} {self.shared:>7} {self.programs:>4} {m.loop:>6} {m.instructions:>6}  {tensor:<22} {loads}"
        )


HEADER = (
    f"{'kernel':<34} {'arch':>4} {'w/s':>5} {'regs':>4} {'spills':>6} {'stack':>6} {'shared':>7} {'/SM':>4} "
    f"{'loop':>6} {'code':>6}  {'tensor cores':<22} global loads"
)


class _Target:
    """Stands in for the driver of a GPU that is not there; Triton asks it no more than this to compile."""

    def __init__(self, arch: int):
        from triton.backends.compiler import GPUTarget

        self.arch = arch
        self.target = GPUTarget("cuda", arch, 32) if arch < 900 else GPUTarget("hip", f"gfx{arch}", 64)

    def get_current_device(self):
        return f"vitkern-{self.arch}"  # the key of Triton's kernel cache: apart from every real device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target

    def get_active_torch_device(self):
        return torch.device("cpu")


@contextmanager
def _driver(arch: int):
    from triton.runtime import driver

    before = dict(vars(driver))
    driver.set_active(_Target(arch))
    try:
        yield
    finally:
        vars(driver).clear()
        vars(driver).update(before)


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


_machines: dict[str, sass.Machine] = {}  # by the hash of what was compiled


def _machine(built) -> sass.Machine:
    if built.hash not in _machines:
        code = built.asm
        _machines[built.hash] = sass.read_cubin(code["cubin"]) if "cubin" in code else sass.read_amdgcn(code["amdgcn"])
    return _machines[built.hash]


def _describe(kernel, arch: int, grid, args, constants, options) -> Compiled:
    built = kernel.warmup(*args, grid=grid, **constants, **options)
    built = built.result() if hasattr(built, "result") else built
    dots = [line for line in str(built.asm["ttir"]).splitlines() if "tt.dot " in line]
    return Compiled(
        name=kernel.fn.__name__,
        arch=arch,
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        machine=_machine(built),
        shared=built.metadata.shared,
        tensor_memory=getattr(built.metadata, "tmem_size", None) or 0,
        has_dot=bool(dots),
        half_input=any(t.dtype in (torch.float16, torch.bfloat16) for t in _tensors(args)),
        # a product in full fp32 is the one kind that names no input precision
        ieee=bool(dots) and all("xf32>" in line.split("*")[0] and "inputPrecision" not in line for line in dots),
        constants=tuple(f"{name}={value}" for name, value in constants.items()),
    )


def compile_launches(fn: Callable[[], object], arch: int) -> list[Compiled]:
    """Compile every kernel that ``fn()`` launches, in order, for ``arch`` (80, 90, 100, 120, or 942 for gfx942).

    ``fn`` takes no argument and calls a launcher, or public ops and ``backward()``, on CPU tensors. Nothing runs: its
    results are whatever the memory held. Equal launches are listed once.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so kernels are not compiled in this process; or ``fn`` launched nothing.
    """
    if dispatch.INTERPRETED:
        raise RuntimeError("compile: TRITON_INTERPRET is set: got an interpreter. Start Python without it.")
    from vitkern.kernels import configs, launch

    compiled = []

    def receive(kernel, grid, args, constants, options):
        one = _describe(kernel, arch, grid, args, constants, options)
        if one not in compiled:
            compiled.append(one)

    with _driver(arch), configs.forced_arch(arch), launch.redirected(receive), dispatch.any_device():
        fn()
    if not compiled:
        raise RuntimeError("compile: nothing was launched: got a call that starts no kernel.")
    return compiled


def add_arguments(parser) -> None:
    parser.add_argument("case", nargs="*", help="parts of names in vitkern/lab/launches.py; all unless given")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES), choices=sorted(budget.LIMITS))


def run(arguments) -> int:
    from vitkern.lab.launches import CASES

    chosen = [case for case in CASES if any(part in case.name for part in arguments.case or [""])]
    if not chosen:
        known = [case.name for case in CASES]
        raise BadInput(f"no launch is called {arguments.case[0]!r}.{near_matches(arguments.case[0], known)}")
    bad = 0
    print(HEADER)
    for case in chosen:
        print(f"{case.name}")
        for arch in arguments.arch:
            for one in compile_launches(case.run, arch):
                print("  " + one.row(), flush=True)
                for problem in one.problems():
                    bad += 1
                    print(f"    ! {problem}", flush=True)
    print(f"{bad} problem{'s' * (bad != 1)}")
    return 1 if bad else 0

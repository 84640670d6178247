"""Compiles what an op would launch, for any GPU, on a machine without one.

The launches are caught at `vitkern.kernels.machine.launch` and compiled with the very specialisation that their CPU
arguments would get at run time: which pointers and integers are divisible by 16, which integers are 1.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vitkern import dispatch
from vitkern.lab.compiling import amdgcn, budget, limits, sass
from vitkern.lab.compiling.work import Work, named, tensors, work_of

FOLLOWING = ("PREPARE", "NORM_BACKWARD", "LOGIT_BACKWARD")


def hooks_of(constants: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the functions among the constants of a launch, but for those that are there unless asked otherwise, and
    those that come with another."""
    from vitkern.kernels.loop.problem import USUAL

    chosen = {name: hook for name, hook in constants.items() if hasattr(hook, "fn") and hook is not USUAL.get(name)}
    return tuple(dict.fromkeys(hook.fn.__name__ for name, hook in chosen.items() if not name.startswith(FOLLOWING)))


def label_of(name: str, hooks: tuple[str, ...]) -> str:
    """``_stream_fwd(dense, plain)``: a kernel and its hooks."""
    return f"{name}({', '.join(hooks)})" if hooks else name


def is_half(args: Iterable) -> bool:
    """Some tensor among the arguments is fp16 or bf16."""
    return any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors(args))


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one architecture."""

    name: str
    hooks: tuple[str, ...]  # names of the functions that it was given as constants
    arch: int
    num_warps: int  # that it was launched with
    all_warps: int  # with those that the compiler adds to specialise them
    num_stages: int
    machine: sass.Machine
    shared: int  # bytes per program
    tensor_memory: int  # columns of tensor memory per program, sm_100
    has_dot: bool
    half_input: bool  # some pointer argument is fp16 or bf16
    asks_specialised: bool  # a loop asks for warps that load and warps that compute
    ieee: bool  # every product is full fp32, which tensor cores do not have
    constants: tuple[str, ...]  # "name=value"
    key: str  # Triton's hash of the source, the specialisation, the options and the target
    work: Work

    @property
    def label(self) -> str:
        return label_of(self.name, self.hooks)

    @property
    def programs(self) -> int:
        """Programs that one multiprocessor holds."""
        return budget.programs_per_sm(self.arch, self.machine, self.all_warps, self.shared, self.tensor_memory)

    @property
    def loop_warps(self) -> int:
        """Warps that run the loop: specialised ones share its products, each group in a copy of its own."""
        read = budget.loop_flop(self.machine, self.num_warps)
        shared = self.all_warps > self.num_warps and read
        return self.num_warps * max(1, round(self.work.flop / read)) if shared else self.num_warps

    @property
    def spills(self) -> int:
        return self.machine.spill_loads + self.machine.spill_stores

    @property
    def widest_load(self) -> int:
        """Bits per thread of the widest global load."""
        return max(self.machine.loads, default=0)

    def problems(self) -> list[str]:
        """What is wrong with it on this architecture; empty where nothing is."""
        found = limits.exceeded(
            self.arch,
            shared=self.shared,
            spills=self.spills,
            stack=self.machine.stack,
            widest_load=self.widest_load,
            half_input=self.half_input,
        )
        if self.has_dot and not self.ieee and not self.machine.tensor:
            found.append("has a matrix product and no tensor-core instruction")
        if self.asks_specialised and self.all_warps == self.num_warps:
            found.append("asks for specialised warps and has none")
        return found


class Target:
    """Stands in for the driver of a GPU that is not there; Triton asks it no more than this to compile."""

    def __init__(self, arch: int):
        from triton.backends.compiler import GPUTarget

        self.arch = arch
        amd = arch >= budget.AMD
        self.target = GPUTarget("hip", f"gfx{arch}", 64) if amd else GPUTarget("cuda", arch, 32)

    def get_current_device(self):
        return f"vitkern-{self.arch}"  # the key of Triton's kernel cache: apart from every real device

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target

    def get_active_torch_device(self):
        return torch.device("cpu")


@contextmanager
def target(arch: int):
    """Within the block Triton compiles for ``arch``."""
    from triton.runtime import driver

    before = dict(vars(driver))
    driver.set_active(Target(arch))
    try:
        yield
    finally:
        vars(driver).clear()
        vars(driver).update(before)


_machines: dict[str, sass.Machine] = {}  # by the hash of what was compiled


def _machine(built) -> sass.Machine:
    if built.hash not in _machines:
        code = built.asm
        amd = "amdgcn" in code
        _machines[built.hash] = amdgcn.read_listing(code["amdgcn"]) if amd else sass.read_cubin(code["cubin"])
    return _machines[built.hash]


def _describe(kernel, arch: int, grid, args, constants, options) -> Compiled:
    built = kernel.warmup(*args, grid=grid, **constants, **options)
    built = built.result() if hasattr(built, "result") else built
    ttir = str(built.asm["ttir"])
    dots = [line for line in ttir.splitlines() if "tt.dot " in line]
    return Compiled(
        name=kernel.fn.__name__,
        hooks=hooks_of(constants),
        arch=arch,
        num_warps=options["num_warps"],
        all_warps=built.metadata.num_warps,
        num_stages=options["num_stages"],
        machine=_machine(built),
        shared=built.metadata.shared,
        tensor_memory=getattr(built.metadata, "tmem_size", None) or 0,
        has_dot=bool(dots),
        half_input=is_half(args),
        asks_specialised="tt.warp_specialize" in ttir,
        # a product in full fp32 is the one kind that names no input precision
        ieee=bool(dots) and all("xf32>" in line.split("*")[0] and "inputPrecision" not in line for line in dots),
        constants=tuple(f"{name}={value}" for name, value in named(constants).items()),
        key=built.hash,
        work=work_of(kernel, grid, args, constants, ttir),
    )


@contextmanager
def _no_products():
    """Within the block torch.mm, which some ops leave to cuBLAS, computes nothing."""
    before = torch.mm

    def empty(a, b, *, out=None):
        return a.new_empty(a.shape[0], b.shape[1]) if out is None else out

    torch.mm = empty
    try:
        yield
    finally:
        torch.mm = before


@contextmanager
def caught(receive: Callable, arch: int):
    """Within the block ops on CPU tensors hand their launches for ``arch`` to ``receive`` (see `launch.redirected`)."""
    from vitkern.kernels.machine import architecture, launch

    with architecture.forced_arch(arch), launch.redirected(receive), dispatch.any_device(), _no_products():
        yield


def compile_launches(fn: Callable[[], object], arch: int) -> list[Compiled]:
    """Compile every kernel that ``fn()`` launches, in order, for ``arch`` (80, 90, 100, 120, or 942 for gfx942).

    ``fn`` takes no argument and calls a launcher, or public ops and ``backward()``, on CPU tensors. Nothing runs: its
    results are whatever the memory held. Equal launches are listed once.

    Raises:
        RuntimeError: TRITON_INTERPRET is set, so kernels are not compiled in this process; or ``fn`` launched nothing.
    """
    if dispatch.INTERPRETED:
        raise RuntimeError("compile: TRITON_INTERPRET is set: got an interpreter. Start Python without it.")
    compiled = []

    def receive(kernel, grid, args, constants, options):
        one = _describe(kernel, arch, grid, args, constants, options)
        if one not in compiled:
            compiled.append(one)

    with target(arch), caught(receive, arch):
        fn()
    if not compiled:
        raise RuntimeError("compile: nothing was launched: got a call that starts no kernel.")
    return compiled

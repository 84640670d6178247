"""host: what a call costs the host, in microseconds and as a multiple of the start of one small Triton kernel.

Kernels are compiled, for this GPU or, where there is none, for one that is not there, and then the time until a call
returns is taken: nothing waits for a result. "usual" is the way through the dispatcher of torch.library, with all
checks and choices; "planned" what a second call of the same shapes does (`vitkern.plans`). Where there is no GPU, what
PyTorch does between two kernels, as adding up partial sums, is computed on the CPU and counts.

"blocks" in place of an operator are those of timm: one as it is, in PyTorch's own operators on tiny tensors, and then
accelerated.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import nn

from benchmarks.cases import QUICK
from benchmarks.runs import tensors_of
from benchmarks.tiny import Pair, pairs
from vitkern import plans
from vitkern.commands.numbers import whole
from vitkern.lab.compiling import fake_gpu
from vitkern.lab.compiling.layer import Layer
from vitkern.report import BadInput, near_matches, progress, table

ARCH, SHARED = 90, 232448  # of the GPU that is not there
HEADER = ("case", "forward: usual", "planned", "launches", "with backward: usual", "planned", "launches")
BLOCKS = "blocks"
BLOCKS_HEADER = ("block of timm", "forward: original", "accelerated", "with backward: original", "accelerated")


class Cost(NamedTuple):
    """Microseconds of a call, in the forward and with the backward, and kernels that it starts."""

    usual: float
    planned: float
    launches: int


def add_arguments(parser) -> None:
    names = sorted({case.op for case in QUICK})
    parser.add_argument("op", nargs="*", help=f"of {', '.join(names)}, or {BLOCKS}; all unless given")
    parser.add_argument("--calls", type=whole(1), default=200, help="in each of ten samples, the best of which counts")


def run(arguments) -> int:
    names = [case.op for case in QUICK] + [BLOCKS]
    for name in arguments.op:
        if name not in names:
            raise BadInput(f"no operator is called {name!r}.{near_matches(name, names)}")
    asked, installed = arguments.op or names, importlib.util.find_spec("timm") is not None
    if BLOCKS in arguments.op and not installed:
        raise BadInput(f"{BLOCKS}: timm is not installed. Install it with: pip install timm")
    rows, of_blocks = [], []
    with _gpu() as device:
        unit = _best(_bare(device), arguments.calls)
        for case in QUICK:
            if case.op in asked:
                progress(f"{case.op}: {case}")
                rows.append(_row(case, device, arguments.calls, unit))
        for pair in pairs(device) if BLOCKS in asked and installed else ():
            progress(f"{BLOCKS}: {pair}")
            of_blocks.append(_row_of(pair, arguments.calls))
    print(f"start of a kernel with three arguments: {unit:.1f} us; in the table, microseconds (multiples of it)\n")
    if rows:
        print(table(HEADER, rows))
    if of_blocks:
        print("\n" * bool(rows) + "microseconds (multiples of the original's)\n")
        print(table(BLOCKS_HEADER, of_blocks))
    return 0


@contextmanager
def _gpu() -> Iterator[torch.device]:
    """The GPU, or one that is not there: kernels take CPU tensors then."""
    if torch.cuda.is_available():
        yield torch.device("cuda")
        return
    before, fake_gpu.ARCH = fake_gpu.ARCH, ARCH
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with fake_gpu.installed(fake_gpu.FakeDriver(arch=ARCH, shared=SHARED)):
            yield torch.device("cpu")
    finally:
        fake_gpu.ARCH = before
        torch.set_num_threads(threads)


@triton.jit
def _copy(x, y, n):
    i = tl.arange(0, 16)
    tl.store(y + i, tl.load(x + i, mask=i < n), mask=i < n)


def _bare(device: torch.device) -> Callable[[], object]:
    x, y = torch.empty(16, device=device), torch.empty(16, device=device)
    return lambda: _copy[(1,)](x, y, 16)


def _best(call: Callable[[], object], calls: int) -> float:
    """Microseconds of this thread's own time, so that other processes count less."""
    return _in_turn([call], calls)[0]


def _in_turn(functions: Sequence[Callable[[], object]], calls: int) -> list[float]:
    """The best of each, whose samples are taken in turn."""
    for call in functions:
        for _ in range(calls // 2 + 1):
            call()
    samples: list[list[float]] = [[] for _ in functions]
    for _ in range(10):
        for call, found in zip(functions, samples, strict=True):
            begun = time.thread_time()
            for _ in range(calls):
                call()
            found.append((time.thread_time() - begun) / calls * 1e6)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    return list(map(min, samples))


def _row(case: Layer, device: torch.device, calls: int, unit: float) -> tuple[str, ...]:
    problem = case.problem(1)
    tensors = tensors_of(problem, torch.bfloat16, device)
    leaves = [value for value in tensors.values() if value is not None and value.requires_grad]
    run, arguments = problem.run, tensors | problem.options  # `run` looks the function up

    def forward() -> object:
        with torch.no_grad():
            return run(**arguments)

    def training() -> object:
        found = run(**arguments)
        outputs = [out for out in (found if isinstance(found, tuple) else (found,)) if out.requires_grad]
        return engine(outputs, leaves)

    found = [f"{case.op}, {case}"]
    for call in (forward, training):
        cost = _cost(call, calls)
        found += [_times(cost.usual, unit), _times(cost.planned, unit), str(cost.launches)]
    return tuple(found)


def _row_of(pair: Pair, calls: int) -> tuple[str, ...]:
    models = pair.original, pair.accelerated

    def forward(model: nn.Module) -> object:
        with torch.no_grad():
            return model(pair.x)

    def training(model: nn.Module) -> object:
        return engine([model(pair.x)], list(model.parameters()))

    found = [str(pair)]
    for call in (forward, training):
        original, accelerated = _in_turn([partial(call, model) for model in models], calls)
        found += [f"{original:.1f}", _times(accelerated, original)]
    return tuple(found)


def engine(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> object:
    """The backward, as autograd's engine runs it, without the checks of torch.autograd.grad in Python."""
    return torch.autograd.Variable._execution_engine.run_backward(
        tuple(outputs), tuple(out.detach() for out in outputs), False, False, tuple(leaves),
        allow_unreachable=True, accumulate_grad=False,
    )  # fmt: skip


def _cost(call: Callable[[], object], calls: int) -> Cost:
    from vitkern.kernels.machine.launch import witnessed

    launches = []

    def counted(start, *rest):
        launches.append(rest)
        return start()

    with plans.enabled.set(False):
        with witnessed(counted):
            call()
        usual = _best(call, max(1, calls // 10))
    return Cost(usual, _best(call, calls), len(launches))


def _times(value: float, unit: float) -> str:
    return f"{value:.1f} ({value / unit:.2f}x)"

"""Offsets beyond 2^31: every kernel, through each of its pointers, on storage of which few pages exist.

A case runs three times. Small, in full: the values to meet. Large, the last programs only, under the
memory sanitizer: they must write the same bits. Large and with every cast to int64 left out of the kernel: it must
fail, or the case would not notice a missing cast.
"""

import math
import resource
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from operator import itemgetter

import torch
from torch import Tensor

from vitkern.lab import proofs, records
from vitkern.lab.addressing.offset_coverage import LIMIT, Coverage, launched_kernels, leaves, reason
from vitkern.lab.specimens import specimens
from vitkern.report import BadInput, counted, near_matches, table

MEMORY_LIMIT = 2 * 2**30  # bytes resident


class _Done(Exception):
    """The launch that a case is about has run."""


@contextmanager
def _nothing_filled():
    """torch.empty leaves its pages alone, also where it is asked to be deterministic."""
    settings = torch.utils.deterministic
    before, settings.fill_uninitialized_memory = settings.fill_uninitialized_memory, False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before


@contextmanager
def _without_int64_casts():
    """Within the block, kernels keep the 32-bit integers that they cast to 64 bits."""
    import triton.language as tl

    from vitkern.lab.interpreting.patches import Patches

    patches, to, cast = Patches(), tl.core.tensor.to, tl.cast
    is_wide = lambda dtype: getattr(dtype, "value", dtype) == tl.int64  # noqa: E731
    patches.set(tl.core.tensor, "to", lambda x, dtype, *a, **k: x if is_wide(dtype) else to(x, dtype, *a, **k))
    patches.set(tl, "cast", lambda x, dtype, *a, **k: x if is_wide(dtype) else cast(x, dtype, *a, **k))
    try:
        yield
    finally:
        patches.undo()


def _reach(case, size: int, receive) -> None:
    """Run ``case`` up to its launch, which goes to ``receive(kernel, grid, args, constants, options)``."""
    from vitkern.kernels.machine import choices, launch
    from vitkern.lab.addressing.offset_case import Tensors

    def when_reached(kernel, *rest):
        if kernel.fn.__name__ == case.kernel:
            receive(kernel, *rest)
            raise _Done

    try:
        with choices.replaced(case.blocks), launch.redirected(when_reached), _nothing_filled():
            case.run(Tensors(size, case.small), size)
    except _Done:
        return
    raise RuntimeError(f"offsets: {case} launches no {case.kernel}")


def all_cases() -> list:
    """What every specimen has for its kernels."""
    return [case for _, case in _owned()]


def _owned() -> list[tuple[str, object]]:
    """Each case with its operator."""
    return [(name, case) for name, specimen in specimens().items() for case in specimen.offsets()]


def note_extents(case, coverage: Coverage) -> None:
    """What ``case`` gives its kernel, by the extents of the tensors; nothing runs."""

    def receive(kernel, grid, args, constants, options):
        named = zip(kernel.arg_names, args, strict=False)
        tensors = {name: x for one in named for name, x in leaves(*one) if isinstance(x, Tensor)}
        far = {
            name: sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
            for name, x in tensors.items()
        }  # fmt: skip
        coverage.add(case, kernel, args, constants, far)

    _reach(case, case.large, receive)


def _launched(case, size: int, programs: int | None = None, coverage: Coverage | None = None, casts: bool = True):
    """Run the launch of ``case``: all ``programs``, or that many of the last.

    Returns the number of programs and what the launch wrote, by name.
    """
    from vitkern.lab.interpreting.sanitizer import sanitized

    written, count = {}, 0
    with sanitized(scratch=("*",)) as sanitizer:

        def receive(kernel, grid, args, constants, options):
            nonlocal count
            count = math.prod(grid)
            numbers = range(count - programs if programs else 0, count)
            with sanitizer.programs.only(grid, numbers), nullcontext() if casts else _without_int64_casts():
                kernel[(len(numbers),)](*args, **constants, **options)
            if coverage is not None:
                touched = {name: one.farthest for one in sanitizer.arguments for name in one.name.split("|")}
                coverage.add(case, kernel, args, constants, touched)
            written.update({one.name: one.tensor for one in sanitizer.arguments if one.is_written})

        _reach(case, size, receive)
    return count, written


def check(case, coverage: Coverage) -> list[str]:
    """What is wrong with one case; empty where nothing is."""
    from vitkern.lab.addressing.offset_case import end

    programs, right = _launched(case, case.small)
    try:
        _, found = _launched(case, case.large, programs, coverage)
    except Exception as error:
        return [f"{case}: {type(error).__name__}: {error}"]
    lines = []
    for name, small in right.items():
        large = end(found[name], small.shape) if name in found else None
        if large is None or not torch.equal(_bits(large), _bits(small)):
            lines.append(f"{case}: {name} holds other values than in the small problem")
    del found, right
    try:
        _launched(case, case.large, programs, casts=False)
    except Exception as error:
        if "OverflowError" not in str(error) and not isinstance(error, OverflowError):
            lines.append(f"{case}: without casts to int64: {type(error).__name__}: {error}; expected an OverflowError")
    else:
        lines.append(f"{case}: passes without casts to int64 as well, so it would not notice a missing one")
    return lines


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def add_arguments(parser) -> None:
    parser.add_argument("kernel", nargs="*", help="names of kernels, such as _stream_fwd; all unless given")
    parser.add_argument("--seed", type=int, help="of the choice among what is recorded (default: another each time)")
    proofs.add_arguments(parser)


def run(arguments) -> int:
    begun, kernels = time.monotonic(), launched_kernels()
    for name in arguments.kernel:
        if name not in kernels:
            raise BadInput(
                f"no kernel is called {name!r}.{near_matches(name, kernels)} There are {', '.join(kernels)}."
            )
    pairs = every = [(operator, case) for operator, case in _owned() if case.kernel in (arguments.kernel or kernels)]
    if not arguments.kernel:
        seed = proofs.new_seed() if arguments.seed is None else arguments.seed
        pairs = proofs.chosen("offsets", every, itemgetter(0), arguments.all, seed)
        print(proofs.explain("offsets", Counter(operator for operator, _ in pairs), seed), flush=True)
    chosen = {name: one for name, one in kernels.items() if name in (arguments.kernel or kernels)}
    cases = [case for _, case in pairs]
    ran = set(map(id, cases))
    missed = {case.kernel for _, case in every if id(case) not in ran}  # of these some pointer may lack a case here
    coverage, failures, failed = Coverage(), [], set()
    for case in counted(cases, "offsets"):
        if found := check(case, coverage):
            failed.add(str(case))
            missed.add(case.kernel)
            failures += found
    failures += coverage.gaps({name: one for name, one in chosen.items() if name not in missed})
    rows = []
    for key, far in sorted(coverage.farthest.items()):
        why = reason(key)
        rows.append((key, "-" if far < 0 else f"{far / LIMIT:.2f}", coverage.case[key] if why is None else why))
    print(table(("pointer", "2^31 elements", "case, or why it cannot pass them"), rows))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if resident > MEMORY_LIMIT:
        failures.append(f"{resident / 2**30:.1f} GiB were resident; expected at most {MEMORY_LIMIT / 2**30:.0f}")
    for failure in failures:
        print(f"FAILED  {failure}")
    beyond, seconds = sum(far >= LIMIT for far in coverage.farthest.values()), time.monotonic() - begun
    summary = (
        f"{len(chosen)} kernels, {len(cases)} cases, {beyond} pointers beyond 2^31 elements, "
        f"{sum(reason(key) is not None for key in coverage.farthest)} bounded, {resident / 2**30:.1f} GiB resident"
    )
    print(f"verdict: {len(failures)} failures; {summary}" if failures else f"verdict: passed; {summary}")
    if arguments.update and not arguments.kernel:
        proofs.write("offsets", proofs.counted(pairs, itemgetter(0), lambda pair: str(pair[1]) not in failed))
    if not arguments.kernel:
        records.write("offsets", passed=not failures, summary=summary, seconds=seconds, failures=failures)
    return 1 if failures else 0

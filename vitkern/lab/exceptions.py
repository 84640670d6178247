"""What is known to be imperfect in compiled kernels, and why it stays. One that is no longer needed is a failure."""

from collections.abc import Iterable

from vitkern.lab.compiled import Compiled
from vitkern.lab.matrix import ARCHITECTURES

# (launch, kernel, arch) -> (how the problem begins, why it stays)
EXCEPTIONS: dict[tuple[str, str, int], tuple[str, str]] = {}

for _head_dim in (20, 36):
    for _kernel in ("_stream_fwd", "_stream_bwd_dq", "_stream_bwd_dkdv"):
        for _arch in ARCHITECTURES:
            EXCEPTIONS[f"attention-d{_head_dim}-odd", _kernel, _arch] = (
                "widest global load is 64 bits",
                "rows of 20 and 36 half-precision elements start at multiples of 8 bytes only",
            )

for _kernel in ("_layernorm_fwd", "_layernorm_bwd"):
    EXCEPTIONS["layernorm-32", _kernel, 942] = (
        "widest global load is 64 bits",
        "32 rows of 32 channels are four elements for each of the 256 lanes of four warps",
    )


def unexcused(launch: str, arch: int, kernels: Iterable[Compiled]) -> list[str]:
    """The problems of a cell that nobody has listed, and the exceptions that it does not need any more."""
    found, used = [], set()
    listed = {key: value for key, value in EXCEPTIONS.items() if key[0] == launch and key[2] == arch}
    for kernel in kernels:
        key = launch, kernel.name, arch
        for problem in kernel.problems():
            if key in listed and problem.startswith(listed[key][0]):
                used.add(key)
            else:
                found.append(f"{kernel.label} w{kernel.num_warps} s{kernel.num_stages}: {problem}")
    found += [
        f"{key[1]}: the exception {begins!r} is no longer needed"
        for key, (begins, _) in listed.items()
        if key not in used
    ]
    return found

"""What is known to be imperfect in compiled kernels, and why it stays. One that is no longer needed is a failure.

`EXCEPTIONS` holds for Triton 3.9, `ELSEWHERE` says what differs with another minor.
"""

from collections.abc import Iterable

from vitkern.lab.compiling import golden
from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.lab.compiling.recorded import Recorded

Cell = tuple[str, str, int]  # launch, kernel, architecture
Excuse = tuple[str | tuple[str, ...], str]  # how the problem begins, or several do; why they stay

EXCEPTIONS: dict[Cell, Excuse] = {}

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

for _name, _kernels, _arch in (
    ("short-d20-odd", ("_short_fwd", "_short_bwd"), 80),
    ("short-d36-odd", ("_short_fwd", "_short_bwd"), 80),
):
    for _kernel in _kernels:
        EXCEPTIONS[_name, _kernel, _arch] = (
            "widest global load is 64 bits",
            "rows of 20 and 36 half-precision elements start at multiples of 8 bytes only",
        )

for _kernel in ("_stream_bwd_dq", "_stream_bwd_dkdv"):
    for _arch in ARCHITECTURES:
        EXCEPTIONS["attention-fp32-d256-bias", _kernel, _arch] = (
            "spills: ",
            "full float32 has no tensor cores: products over 256 dimensions are unrolled, at the smallest tile",
        )

for _arch in (80, 120):
    EXCEPTIONS["attention-d256-bias", "_stream_bwd_bias", _arch] = (
        "spills: ",
        "at most 8 bytes, outside the products: four operands of 256 dimensions and a tile of the sum",
    )

EXCEPTIONS |= {
    ("window-swin-t-1-unshifted", "_short_fwd", 80): (
        "spills: ",
        "8 bytes, although 80 registers are in use: the compiler keeps to six programs on a multiprocessor",
    ),
    ("sparse-fp32-50-by-7", "_sparse_bwd", 100): (
        "spills: ",
        "8 bytes, although 168 registers are in use: the compiler keeps to three programs on a multiprocessor",
    ),
    ("sparse-50-by-7", "_sparse_bwd", 100): (
        "spills: ",
        "8 bytes, although 72 registers are in use: the compiler's choice around its tensor memory",
    ),
    ("attention-odd-strides", "_stream_fwd", 942): (
        "widest global load is 16 bits",
        "rows at odd strides start at any element, so that is the widest load",
    ),
    ("short-odd-strides", "_stream_fwd", 120): (
        "widest global load is 16 bits",
        "rows at odd strides start at any element, so that is the widest load",
    ),
    ("short-odd-strides", "_stream_bwd_dq", 120): (
        "spills: ",
        "rows at odd strides are loaded by the element, and each address takes registers",
    ),
    ("window-odd-strides", "_short_bwd", 120): (
        "spills: ",
        "rows at odd strides are loaded by the element, and each address takes registers",
    ),
    ("mlp-100", "_layernorm_fwd", 90): (
        "widest global load is 16 bits",
        "100 channels are no multiple of eight elements, and 28 lanes of a row are masked one by one",
    ),
    ("mlp-100", "_pointwise", 90): (
        "widest global load is 16 bits",
        "100 channels are no multiple of eight elements, and 28 lanes of a row are masked one by one",
    ),
    ("mlp-96-tf32", "_matmul", 120): (
        "spills: ",
        "8 bytes in the product without an epilogue, outside its loop",
    ),
    ("short-fp32-49", "_short_bwd", 100): (
        "spills: ",
        "8 bytes: full float32 has no tensor cores, and the compiler keeps to 128 registers",
    ),
    ("window-swinv2-w16-unshifted", "_stream_bwd_dq", 120): (
        "spills: ",
        "8 bytes, outside the products, at the limit of 255 registers",
    ),
    ("local-odd-strides", "_stream_fwd", 90): (
        "widest global load is 32 bits",
        "rows at odd strides start at any element; the widest load is that of the table",
    ),
    ("local-odd-strides", "_stream_bwd_dq", 90): (
        "spills: ",
        "rows at odd strides are loaded by the element, and each address takes registers",
    ),
}

_FEW_BYTES = "few bytes, outside the products: coordinates of a query and of a key at each score"
for _name, _kernel, _arch in (
    ("local-fp32", "_stream_bwd_dkdv", 942),
    ("local-halonet-d32", "_stream_bwd_axes", 942),
    ("local-halonet-d32", "_stream_bwd_dq", 120),
    ("local-vitdet-window", "_stream_bwd_axes", 942),
):
    EXCEPTIONS[_name, _kernel, _arch] = ("spills: ", _FEW_BYTES)


# Of another Triton minor: what it needs beside `EXCEPTIONS`, and None for what it does not need. With 3.6 every launch
# is compiled for sm_90, with 3.9 those that have their place there.
ELSEWHERE: dict[str, dict[Cell, Excuse | None]] = {
    "3.6": {
        ("local-odd-strides", "_stream_bwd_dq", 90): None,
        ("attention-odd-strides", "_stream_fwd", 90): (
            "widest global load is 16 bits",
            "rows at odd strides start at any element, so that is the widest load",
        ),
        ("short-odd-strides", "_short_fwd", 90): (
            ("spills: ", "widest global load is 16 bits"),
            "rows at odd strides are loaded by the element, and each address takes registers beside 256 columns",
        ),
        ("window-fp32", "_short_bwd", 90): (
            "spills: ",
            "16 bytes: full float32 has no tensor cores, and the compiler keeps to three programs on a multiprocessor",
        ),
        ("local-halonet-fp32", "_stream_bwd_dkdv", 90): (
            "spills: ",
            "24 bytes: full float32 has no tensor cores, and the compiler keeps to two programs on a multiprocessor",
        ),
    }
}
for _head_dim in (20, 36):
    for _kernel in ("_short_fwd", "_short_bwd"):
        ELSEWHERE["3.6"][f"short-d{_head_dim}-odd", _kernel, 90] = (
            "widest global load is 64 bits",
            "rows of 20 and 36 half-precision elements start at multiples of 8 bytes only",
        )


def listed_for(version: str) -> dict[Cell, Excuse]:
    """The exceptions of a Triton minor."""
    found = EXCEPTIONS | ELSEWHERE.get(version, {})
    return {cell: excuse for cell, excuse in found.items() if excuse is not None}


def unexcused(launch: str, arch: int, kernels: Iterable[Compiled | Recorded]) -> list[str]:
    """The problems of a cell that nobody has listed, and the exceptions that it does not need any more."""
    found, used = [], set()
    of_version = listed_for(golden.minor())
    listed = {key: value for key, value in of_version.items() if key[0] == launch and key[2] == arch}
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

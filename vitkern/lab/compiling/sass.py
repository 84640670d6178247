"""Reads NVIDIA's machine code: resources and instructions of a kernel, by the disassembler that Triton ships."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# "        /*0a30*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;"
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?);?\s*$")
_LABEL = re.compile(r"^\s*(\.L\w*):")
_TARGET = re.compile(r"(\.L\w+)")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "UTMALDG", "UBLKCP")
_GLOBAL_STORES = ("STG", "UTMASTG")
_MEMORY = (*_GLOBAL_LOADS, *_GLOBAL_STORES, "LDS", "STS", "LDSM", "STSM")


@dataclass(frozen=True)
class Machine:
    """What the compiled code of one kernel needs and holds; counts are of instructions in the text, not executed."""

    registers: int  # per thread; on AMD vector and accumulation registers together
    stack: int  # bytes per thread; not zero: values live in local memory
    spill_loads: int
    spill_stores: int
    instructions: int
    tensor: dict[str, int]  # tensor-core instructions by name: HMMA, HGMMA, UTCHMMA, v_mfma_f32_32x32x8_bf16, ...
    loads: dict[int, int]  # bits per thread -> global loads of that width
    stores: dict[int, int]
    loop: int  # instructions of the innermost loop with most tensor-core instructions; 0: none
    mix: dict[str, int] = field(default_factory=dict)  # that loop's by name; the whole kernel's where there is no loop
    products: tuple[tuple[str, str], ...] = ()  # tensor-core instructions of that loop, with modifiers and operands
    traffic: int = 0  # bits per thread that one turn of that loop moves to and from shared and global memory


def _width(name: str) -> int:
    """Bits that an access moves per thread; bulk copies count as 128."""
    if name.startswith(("UTMA", "UBLKCP")):
        return 128
    parts = name.split(".")
    if name.startswith(("LDSM", "STSM")):  # 8x8 matrices of 16 bits over a warp
        return 32 * next((int(part) for part in parts if part in ("2", "4")), 1)
    for bits in (256, 128, 64):
        if str(bits) in parts:
            return bits
    if {"U8", "S8"} & set(parts):
        return 8
    if {"U16", "S16"} & set(parts):
        return 16
    return 32


def _is_tensor(name: str) -> bool:
    return "MMA" in name.split(".")[0]


def is_tensor(name: str) -> bool:
    return "MMA" in name.split(".")[0]


def innermost(
    instructions: list[tuple[str, str]],
    labels: dict[str, int],
    target_of: Callable[[str, str], str | None],
    weighs: Callable[[str], bool],
) -> tuple[int, int] | None:
    """First and last instruction of the innermost loop with most instructions that ``weighs``, else of the longest one.

    ``target_of(name, operands)``: the label that a branch jumps to, else None. ``labels``: label -> instruction.
    """
    loops = []
    for i, instruction in enumerate(instructions):
        start = labels.get(target_of(*instruction), i)
        if i - start > 2:  # shorter ones wait on a barrier
            loops.append((start, i))
    loops = [loop for loop in loops if not any(o[0] < loop[0] <= o[1] < loop[1] for o in loops)]  # a way back in
    loops = [loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]

    def weight(loop):
        return sum(weighs(name) for name, _ in instructions[loop[0] : loop[1] + 1]), loop[1] - loop[0]

    return max(loops, key=weight, default=None)


def _target(name: str, operands: str) -> str | None:
    found = _TARGET.search(operands) if name.startswith("BRA") else None
    return found and found.group(1)


def read_listing(resources: str, listing: str) -> Machine:
    """`Machine` from the text of ``cuobjdump --dump-resource-usage`` and ``nvdisasm -c``."""
    instructions, labels = [], {}
    for line in listing.splitlines():
        if found := _LABEL.match(line):
            labels[found.group(1)] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((found.group(1), found.group(2)))
    if not instructions:
        raise ValueError("sass: no instruction was understood: the disassembler's format has changed.")

    def resource(name):
        found = re.search(rf"\b{name}:(\d+)", resources)
        return int(found.group(1)) if found else 0

    loop = innermost(instructions, labels, _target, is_tensor)
    body = instructions[loop[0] : loop[1] + 1] if loop else instructions
    roots = Counter(name.split(".")[0] for name, _ in instructions)
    return Machine(
        registers=resource("REG"),
        stack=resource("STACK") + resource("LOCAL"),
        spill_loads=roots["LDL"],
        spill_stores=roots["STL"],
        instructions=len(instructions),
        tensor={name: count for name, count in roots.items() if is_tensor(name)},
        loads=dict(Counter(_width(name) for name, _ in instructions if name.split(".")[0] in _GLOBAL_LOADS)),
        stores=dict(Counter(_width(name) for name, _ in instructions if name.split(".")[0] in _GLOBAL_STORES)),
        loop=len(body) if loop else 0,
        mix=dict(Counter(name.split(".")[0] for name, _ in body)),
        products=tuple(pair for pair in body if is_tensor(pair[0])),
        traffic=sum(_width(name) for name, _ in body if name.split(".")[0] in _MEMORY),
    )


def read_cubin(cubin: bytes) -> Machine:
    """`Machine` of an NVIDIA binary, with the cuobjdump and nvdisasm that Triton ships."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)

        def tool(*command):
            return subprocess.run(
                [str(tools / command[0]), *command[1:], str(path)], capture_output=True, text=True, check=True
            ).stdout

        return read_listing(tool("cuobjdump", "--dump-resource-usage"), tool("nvdisasm", "-c"))

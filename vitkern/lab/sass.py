"""Reads machine code: resources and instructions of a compiled kernel, by the disassembler that Triton ships."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# "        /*0a30*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;"
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?);?\s*$")
_LABEL = re.compile(r"^\s*(\.L\w*):")
_TARGET = re.compile(r"(\.L\w+)")
_GLOBAL_LOADS = ("LDG", "LDGSTS", "UTMALDG", "UBLKCP")
_GLOBAL_STORES = ("STG", "UTMASTG")


@dataclass(frozen=True)
class Machine:
    """What the compiled code of one kernel needs and holds; counts are of instructions in the text, not executed."""

    registers: int
    stack: int  # bytes per thread; not zero: values live in local memory
    spill_loads: int
    spill_stores: int
    instructions: int
    tensor: dict[str, int]  # tensor-core instructions by name: HMMA, HGMMA, UTCHMMA, ...
    loads: dict[int, int]  # bits per thread -> global loads of that width
    stores: dict[int, int]
    loop: int  # instructions of the innermost loop with most tensor-core instructions; 0: none
    mix: dict[str, int] = field(
        default_factory=dict
    )  # that loop's instructions by name; the whole kernel's where there is no loop
    products: tuple[tuple[str, str], ...] = ()  # tensor-core instructions of that loop, with modifiers and operands


def _width(name: str) -> int:
    """Bits that a global access moves per thread; bulk copies count as 128."""
    if name.startswith(("UTMA", "UBLKCP")):
        return 128
    parts = name.split(".")
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


def _innermost(instructions: list[tuple[str, str]], labels: dict[str, int]) -> tuple[int, int] | None:
    """First and last instruction of the innermost loop with most tensor-core instructions, else of the longest one."""
    loops = []
    for i, (name, operands) in enumerate(instructions):
        target = _TARGET.search(operands) if name.startswith("BRA") else None
        if target and target.group(1) in labels:
            start = labels[target.group(1)]
            if i - start > 2:  # shorter ones wait on a barrier
                loops.append((start, i))
    loops = [loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]

    def weight(loop):
        return sum(_is_tensor(name) for name, _ in instructions[loop[0] : loop[1] + 1]), loop[1] - loop[0]

    return max(loops, key=weight, default=None)


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

    loop = _innermost(instructions, labels)
    body = instructions[loop[0] : loop[1] + 1] if loop else instructions
    roots = Counter(name.split(".")[0] for name, _ in instructions)
    return Machine(
        registers=resource("REG"),
        stack=resource("STACK") + resource("LOCAL"),
        spill_loads=roots["LDL"],
        spill_stores=roots["STL"],
        instructions=len(instructions),
        tensor={name: count for name, count in roots.items() if _is_tensor(name)},
        loads=dict(Counter(_width(name) for name, _ in instructions if name.split(".")[0] in _GLOBAL_LOADS)),
        stores=dict(Counter(_width(name) for name, _ in instructions if name.split(".")[0] in _GLOBAL_STORES)),
        loop=len(body) if loop else 0,
        mix=dict(Counter(name.split(".")[0] for name, _ in body)),
        products=tuple(pair for pair in body if _is_tensor(pair[0])),
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


def read_amdgcn(listing: str) -> Machine:
    """`Machine` of an AMD assembly listing; widths and loops are not read."""

    def resource(name):
        found = re.search(rf"\.{name}:\s+(\d+)", listing)
        return int(found.group(1)) if found else 0

    roots = Counter(re.findall(r"^\s+([a-z]\w+)", listing, re.MULTILINE))
    return Machine(
        registers=resource("vgpr_count"),
        stack=resource("private_segment_fixed_size"),
        spill_loads=resource("vgpr_spill_count"),
        spill_stores=0,
        instructions=sum(roots.values()),
        tensor={name: count for name, count in roots.items() if "mfma" in name or "wmma" in name},
        loads={},
        stores={},
        loop=0,
    )

"""Reads AMD's assembly: resources and instructions of a compiled kernel, from the listing that Triton keeps."""

import re
from collections import Counter

from vitkern.lab.compiling.sass import Machine, innermost

# "\tv_mfma_f32_32x32x8_bf16 v[16:31], v[76:77], v[160:161], 0" and ".LBB0_2:    ; =>This Inner Loop Header: Depth=1"
_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)\s*([^;]*)")
_LABEL = re.compile(r"^(\.L\w+):")
_ACCESS = re.compile(r"(?:global|buffer|flat)_(load|store)_(\w+)")
_SHARED = re.compile(r"ds_(?:read|write|load|store)(2?)(?:st64)?_[biu](\d+)")
_WORDS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}


def is_tensor(name: str) -> bool:
    return "mfma" in name or "wmma" in name


def _width(name: str) -> int:
    """Bits that an access moves per thread; 0 where the instruction is none."""
    if found := _SHARED.match(name):
        return int(found.group(2)) * (2 if found.group(1) else 1)
    if not (found := _ACCESS.match(name)):
        return 0
    words = found.group(2)
    return next((bits for word, bits in _WORDS.items() if word in words), 8 if "byte" in words else 16)


def _target(name: str, operands: str) -> str | None:
    return operands.strip() if name.startswith(("s_cbranch", "s_branch")) else None


def read_listing(listing: str) -> Machine:
    """`Machine` from assembly text. Spills are accesses to scratch memory, not moves to accumulation registers.

    Raises:
        ValueError: no instruction, or no resources, are found in it.
    """
    instructions, labels = [], {}
    for line in listing.splitlines():
        if found := _LABEL.match(line):
            labels[found.group(1)] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((found.group(1), found.group(2)))

    def resource(name):
        found = re.search(rf"\.{name}:\s+(\d+)", listing)
        if not (found and instructions):
            raise ValueError(f"amdgcn: no {name} was found: the listing's format has changed.")
        return int(found.group(1))

    loop = innermost(instructions, labels, _target, is_tensor)
    body = instructions[loop[0] : loop[1] + 1] if loop else instructions
    names = Counter(name for name, _ in instructions)

    def accesses(kind):
        widths = Counter()
        for name, count in names.items():
            if (found := _ACCESS.match(name)) and found.group(1) == kind:
                widths[_width(name)] += count
        return dict(widths)

    return Machine(
        registers=resource("vgpr_count"),
        stack=resource("private_segment_fixed_size"),
        spill_loads=sum(count for name, count in names.items() if name.startswith("scratch_load")),
        spill_stores=sum(count for name, count in names.items() if name.startswith("scratch_store")),
        instructions=len(instructions),
        tensor={name: count for name, count in names.items() if is_tensor(name)},
        loads=accesses("load"),
        stores=accesses("store"),
        loop=len(body) if loop else 0,
        mix=dict(Counter(name for name, _ in body)),
        products=tuple(pair for pair in body if is_tensor(pair[0])),
        traffic=sum(_width(name) for name, _ in body),
    )

"""What a launch has to do: programs, turns of their loop, operations of the matrix products, bytes of its tensors."""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from vitkern.lab.specimens import merged

_DOT = re.compile(r"tt\.dot .*: tensor<(\d+)x(\d+)x\w+> \* tensor<\d+x(\d+)x\w+>")


@dataclass(frozen=True)
class Work:
    programs: int
    turns: float  # of the innermost loop with most matrix products, mean over programs; 1 where there is no loop
    flop: int  # of the matrix products of one turn, padding of the tile included
    moved: int  # bytes of all tensors of the launch, each once


def tensors(values) -> Iterator[torch.Tensor]:
    """The tensors among arguments, inside tuples too."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors(value)


def named(constants: Mapping) -> dict[str, object]:
    """Constants of a launch by name, those of a tuple that travels as one by their own names: of two, the first."""
    found = {}
    for name, value in constants.items():
        fields = named(value._asdict()) if hasattr(value, "_asdict") else {name: getattr(value, "value", value)}
        found = fields | found
    return found


def _bytes(tensor: torch.Tensor) -> int:
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()


def dot_flop(ttir: str) -> int:
    """Operations of the matrix products in the innermost loop that has most of them, else of those outside loops."""
    loops, open_loops, outside = [], [], 0
    for line in ttir.splitlines():
        indent = len(line) - len(line.lstrip())
        if "scf.for " in line:
            for loop in open_loops:
                loop["inner"] = True
            open_loops.append(dict(indent=indent, flop=0, inner=False))
        elif open_loops and indent == open_loops[-1]["indent"] and line.lstrip().startswith("}"):
            loops.append(open_loops.pop())
        elif found := _DOT.search(line):
            flop = 2 * math.prod(map(int, found.groups()))
            if open_loops:
                open_loops[-1]["flop"] += flop
            else:
                outside += flop
    return max((loop["flop"] for loop in loops if not loop["inner"]), default=0) or outside


def work_of(kernel, grid, args, constants, ttir: str) -> Work:
    """`Work` of one launch of a @triton.jit function; a kernel whose turns no specimen gives is said to make one."""
    names = [name for name in inspect.signature(kernel.fn).parameters if name not in constants]
    arguments = dict(zip(names, args, strict=False)) | named(constants)
    programs = math.prod(grid)
    turns = merged("turns").get(kernel.fn.__name__, lambda a, programs: 1)(arguments, programs)
    return Work(programs, turns, dot_flop(ttir), sum(map(_bytes, tensors(args))))

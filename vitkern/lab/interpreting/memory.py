"""What a kernel may touch, and what it has touched: the bookkeeping of the memory sanitizer, in numpy."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class MemoryFault(AssertionError):
    """A kernel touched memory that it must not touch, or left out memory that it had to write."""


@dataclass
class Storage:
    """History of one storage, per tracked element; arrays of zeros take no memory where nothing is touched."""

    address: int
    unit: int  # bytes per tracked element
    written: np.ndarray  # by any launch
    writer: np.ndarray  # in this launch: number of the program + 1, 0 none
    reader: np.ndarray  # likewise, -1 several
    stores: np.ndarray  # in this launch
    is_output: bool = False  # some launch wrote to it

    @classmethod
    def of(cls, tensor: Tensor) -> "Storage":
        storage, unit = tensor.untyped_storage(), tensor.element_size()
        count = storage.nbytes() // unit
        history = cls(storage.data_ptr(), unit, np.zeros(count, bool), *[np.zeros(0, np.int32)] * 3)
        history.start_launch()
        return history

    def start_launch(self) -> None:
        self.writer, self.reader, self.stores = (np.zeros(self.written.size, np.int32) for _ in range(3))


def _is_empty(values: Tensor) -> Tensor:
    """Where values are what torch.empty leaves in deterministic mode."""
    if values.is_floating_point():
        return values.isnan()
    return values == (True if values.dtype == torch.bool else torch.iinfo(values.dtype).max)


_MAPPED = 1 << 24  # elements up to which a map says which of them are a tensor's; beyond, its strides do


def _nested(tensor: Tensor) -> list[tuple[int, int]] | None:
    """(stride, size) by falling stride where each stride spans all that the smaller ones reach, else None."""
    dims = sorted(((st, n) for n, st in zip(tensor.shape, tensor.stride(), strict=True) if n > 1), reverse=True)
    inner = 0
    for stride, size in reversed(dims):
        if stride <= inner:
            return None
        inner += (size - 1) * stride
    return dims


class Argument:
    """A tensor argument of a launch: which elements, counted from its address, are the tensor's.

    ``farthest`` is the largest element that the launch touched, -1 for none.
    """

    def __init__(self, name: str, tensor: Tensor, storage: Storage):
        self.name, self.tensor, self.storage = name, tensor, storage
        self.itemsize, self.address = tensor.element_size(), tensor.data_ptr()
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        self.span = 1 + reach if tensor.numel() else 0
        self.dims = _nested(tensor) if self.span > _MAPPED else None
        self.valid = np.zeros(0 if self.dims else self.span, bool)
        if tensor.numel() and not self.dims:
            np.lib.stride_tricks.as_strided(self.valid, tensor.shape, tensor.stride())[...] = True
        self.is_written, self.farthest = False, -1

    def values(self, elements: np.ndarray) -> Tensor:
        """What the elements hold, counted from the argument's address."""
        return self.tensor.as_strided((self.span,), (1,))[torch.from_numpy(elements)]

    def own(self, element: np.ndarray) -> np.ndarray:
        """Whether each element is the tensor's."""
        inside = (element >= 0) & (element < self.span)
        if not self.dims:
            inside[inside] = self.valid[element[inside]]
            return inside
        rest = element
        for stride, size in self.dims:
            inside &= rest // stride < size
            rest = rest % stride
        return inside & (rest == 0)

    def all_elements(self) -> np.ndarray:
        """The tensor's elements, by rising address."""
        if not self.dims:
            return np.flatnonzero(self.valid)
        elements = np.zeros(1, np.int64)
        for stride, size in self.dims:
            elements = (elements[:, None] + stride * np.arange(size)).ravel()
        return elements

    def places(self, offsets: np.ndarray) -> np.ndarray:
        """Byte offsets from the argument's address -> tracked elements of its storage."""
        return (offsets + self.address - self.storage.address) // self.storage.unit

    def elements(self) -> np.ndarray:
        """The tracked element of each of the tensor's elements, by rising address."""
        return self.places(self.all_elements() * self.itemsize)

    def check_inside(self, offsets: np.ndarray, kind: str) -> None:
        element = offsets // self.itemsize
        if (element * self.itemsize != offsets).any():
            raise MemoryFault(f"misaligned {kind} of {self.name}")
        inside = self.own(element)
        if not inside.all():
            raise MemoryFault(
                f"{kind} outside {self.name} of shape {tuple(self.tensor.shape)} and strides {self.tensor.stride()}: "
                f"{int((~inside).sum())} of {inside.size} lanes, the first at element {int(element[~inside][0])}"
            )
        if element.size:
            self.farthest = max(self.farthest, int(element.max()))

    def record(self, offsets: np.ndarray, kind: str, program: int) -> None:
        """Note an access ("load", "store", "atomic") by ``program``, counted from 1."""
        where, storage = self.places(offsets), self.storage
        if kind != "load":
            self.is_written = storage.is_output = True
            storage.written[where] = True
        if kind == "atomic":
            return
        writer = storage.writer[where]
        foreign = (writer != 0) & (writer != program)
        if foreign.any():
            verb = "reads" if kind == "load" else "also writes"
            other = int(writer[foreign][0]) - 1
            raise MemoryFault(f"{verb} an element of {self.name} that program number {other} writes")
        reader = storage.reader[where]
        if kind == "load":
            if storage.is_output:
                fresh = offsets[~storage.written[where]] // self.itemsize
                if fresh.size and _is_empty(self.values(fresh)).any():
                    raise MemoryFault(f"reads an element of {self.name} that was never written")
            storage.reader[where] = np.where((reader == 0) | (reader == program), program, -1)
            return
        if ((reader != 0) & (reader != program)).any():
            raise MemoryFault(f"writes an element of {self.name} that another program reads")
        if np.unique(where).size != where.size:
            raise MemoryFault(f"one store writes an element of {self.name} twice")
        storage.writer[where] = program
        storage.stores[where] += 1

    def check_once(self) -> None:
        stores = self.storage.stores[self.elements()]
        if (stores != 1).any():
            raise MemoryFault(
                f"{self.name} has {int((stores == 0).sum())} elements that are not written and "
                f"{int((stores > 1).sum())} that are written more than once"
            )

    def check_complete(self) -> None:
        """Each element was written by some launch, or holds something else than torch.empty leaves there."""
        missing = self.all_elements()[~self.storage.written[self.elements()]]
        kept = int(_is_empty(self.values(missing)).sum()) if missing.size else 0
        if kept:
            raise MemoryFault(
                f"{kept} of {self.tensor.numel()} elements of {self.name}, "
                f"shape {tuple(self.tensor.shape)}, were never written"
            )

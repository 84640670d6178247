"""A call taken apart by images, and its results put together."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from vitkern.interop.census import ORDINARY
from vitkern.interop.workers import WORKERS

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format)


class Whole(Exception):
    """Why a call is not shared out."""


class Refused(Whole):
    """And why none of its kind is."""


class Call(NamedTuple):
    """Arguments of a call as `torch.utils._pytree` takes them apart. ``images``: how many, the first size of each
    tensor."""

    leaves: list[Any]
    structure: TreeSpec
    tensors: list[Tensor]
    images: int

    def kind(self) -> Hashable:
        """All but sizes."""
        described = [_described(leaf) for leaf in self.leaves]
        return str(self.structure), tuple(described)

    def sizes(self) -> tuple[torch.Size, ...]:
        """Those of one image."""
        return tuple(tensor.shape[1:] for tensor in self.tensors)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Call":
        """The same with other tensors."""
        new = iter(tensors)
        leaves = [next(new) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return Call(leaves, self.structure, list(tensors), tensors[0].shape[0])

    def of(self, forward: Callable) -> Any:
        """``forward`` called with these arguments."""
        arguments, keywords = tree_unflatten(self.leaves, self.structure)
        return forward(*arguments, **keywords)


def taken_apart(arguments: tuple, keywords: dict[str, Any]) -> Call:
    """The call with these arguments.

    Raises:
        Whole: some are neither tensors of as many images as the first, nor plain values.
    """
    leaves, structure = tree_flatten((arguments, keywords))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise Whole("there is no tensor among the arguments")
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            _check(leaf)
        elif type(leaf) not in PLAIN:
            raise Whole(f"an argument is a {type(leaf).__name__}, neither a tensor nor a plain value")
    images = {tensor.shape[0] for tensor in tensors}
    if len(images) > 1:
        raise Whole("tensors among the arguments differ in their first size")
    return Call(leaves, structure, tensors, images.pop())


def _check(tensor: Tensor) -> None:
    if type(tensor) not in ORDINARY or not _is_dense(tensor):
        raise Whole("an argument is a tensor that has no images along its first dimension, or is no dense one")
    if tensor.device.type != "cpu":
        raise Whole(f"an argument is on {tensor.device.type}: threads are what a CPU has")


def _is_dense(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_quantized
    return strided and tensor.dim() > 0


def _described(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return Tensor, leaf.dim(), leaf.dtype
    return type(leaf), leaf.hex() if type(leaf) is float else leaf  # -0.0 is another than 0.0, nan the same as nan


def shared_out(call: Call, count: int) -> list[Call]:
    """``count`` calls, each with its share of the images: views, as even as can be."""
    parts = zip(*(tensor.tensor_split(count) for tensor in call.tensors), strict=True)
    return [call.with_tensors(tensors) for tensors in parts]


def beside(forward: Callable, call: Call, count: int) -> Any:
    """The result of the call, done in ``count`` shares by as many workers.

    Raises:
        Whole: the workers are not free.
        Refused: a share fails, or results cannot be put together.
    """
    shares = shared_out(call, count)
    try:
        results = WORKERS.run([functools.partial(share.of, forward) for share in shares])
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise Refused(f"a share of the images fails alone: {type(error).__name__}: {said}") from error
    if results is None:
        raise Whole("the workers are busy with another call, or cannot be started")
    return joined(results, shares)


def joined(results: Sequence[Any], calls: Sequence[Call]) -> Any:
    """The result of the whole call from those of its shares: tensors one after the other, plain values as they are in
    all.

    Raises:
        Refused: it cannot be put together like this.
    """
    flat, structures = zip(*map(tree_flatten, results), strict=True)
    if any(structure != structures[0] for structure in structures):
        raise Refused("the results of shares differ in structure")
    known: dict[tuple[int, ...], Any] = {}  # what is in a result twice is so in the whole
    images = [call.images for call in calls]
    leaves = [known.setdefault(tuple(map(id, parts)), _joined(parts, images)) for parts in zip(*flat, strict=True)]
    return tree_unflatten(leaves, structures[0])


def _joined(parts: Sequence[Any], images: Sequence[int]) -> Any:
    first = parts[0]
    if all(type(part) is Tensor for part in parts):
        dense = all(_is_dense(part) and part.dtype == first.dtype for part in parts)
        if dense and [part.shape[0] for part in parts] == list(images):
            return torch.cat(list(parts))
        raise Refused("the result has a tensor whose first dimension is not that of the images, or no dense one")
    if type(first) in PLAIN and all(_described(part) == _described(first) for part in parts):
        return first
    raise Refused(f"the result has a {type(first).__name__} that is not the same for all images")


def agree(result: Any, whole: Any, coarse: float) -> bool:
    """Whether a result has the structure, shapes, dtypes and values of ``whole``: of floating-point numbers half the
    digits that a computation with machine epsilon ``coarse`` has, relative to the largest."""
    (mine, structure), (others, other) = tree_flatten(result), tree_flatten(whole)
    if structure != other:
        return False
    return all(_agree(a, b, coarse) for a, b in zip(mine, others, strict=True))


def _agree(mine: Any, other: Any, coarse: float) -> bool:
    if not isinstance(mine, Tensor) or not isinstance(other, Tensor):
        return type(mine) is type(other) and _described(mine) == _described(other)
    if mine.shape != other.shape or mine.dtype != other.dtype:
        return False
    if not mine.is_floating_point():
        return torch.equal(mine, other)
    finite = other[other.isfinite()].abs()
    size = finite.max().item() if finite.numel() else 0.0
    return torch.allclose(mine, other, rtol=0.0, atol=size * coarse**0.5, equal_nan=True)

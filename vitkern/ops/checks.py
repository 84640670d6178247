"""The error contract: ``"<op>: <what is wrong>: got <values>; expected <rule>. <remedy>"``, raised before anything
reaches a launch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def check_dense(op: str, name: str, value: object) -> None:
    """
    Raises:
        TypeError: not a tensor, or a subclass without strided storage (nested, sparse, quantized).
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is no tensor: got {type(value).__name__}; expected torch.Tensor.")
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)
        raise TypeError(f"{op}: {name} is not a dense tensor: got {kind}; expected a strided one. Convert it first.")


def check_tensor(op: str, name: str, value: Tensor, *, ndim: int | None = None) -> None:
    """A plain tensor of floating-point dtype, with ``ndim`` dimensions if given.

    Raises:
        TypeError: not a tensor, a subclass without strided storage (nested, sparse, quantized), or not fp16, bf16, fp32
        or fp64.
        ValueError: another number of dimensions.
    """
    check_dense(op, name, value)
    if value.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(
            f"{op}: {name} has an unsupported dtype: got {value.dtype}; expected float16, bfloat16 or float32 "
            "(float64 runs in PyTorch). Cast it first."
        )
    if ndim is not None and value.dim() != ndim:
        got = tuple(value.shape)
        raise ValueError(f"{op}: {name} has the wrong number of dimensions: got shape {got}; expected {ndim} of them.")


def check_same(op: str, **tensors: Tensor | None) -> None:
    """One dtype and one device.

    Raises:
        TypeError: dtypes differ.
        ValueError: devices differ.
    """
    present = {name: t for name, t in tensors.items() if t is not None}
    names = " and ".join([", ".join(list(present)[:-1]), list(present)[-1]] if len(present) > 1 else list(present))
    if len({t.dtype for t in present.values()}) > 1:
        got = ", ".join(f"{name} {t.dtype}" for name, t in present.items())
        raise TypeError(
            f"{op}: dtypes differ: got {got}; expected one dtype for {names}. Cast explicitly or use autocast."
        )
    if len({t.device for t in present.values()}) > 1:
        got = ", ".join(f"{name} on {t.device}" for name, t in present.items())
        raise ValueError(f"{op}: devices differ: got {got}; expected one device for {names}. Move them together.")


def check_shape(op: str, name: str, value: Tensor, expected: tuple, meaning: str | Callable[[], str]) -> None:
    """``expected`` holds an int or a tuple of allowed ints per dimension, None for any. ``meaning`` says so; a function
    where it holds a size that graphs leave open, since to write it down makes it a constant.

    Raises:
        ValueError: another shape.
    """
    fits = value.dim() == len(expected) and all(
        want is None or (size in want if isinstance(want, tuple) else size == want)
        for size, want in zip(value.shape, expected, strict=False)
    )
    if not fits:
        rule = meaning if isinstance(meaning, str) else meaning()
        raise ValueError(f"{op}: {name} has the wrong shape: got {tuple(value.shape)}; expected {rule}.")


def check_number(op: str, name: str, value: object, meaning: str) -> None:
    """
    Raises:
        TypeError: neither int nor float.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{op}: {name} is no number: got {type(value).__name__} {value!r}; expected {meaning}.")


def check_flag(op: str, name: str, value: object) -> None:
    """
    Raises:
        TypeError: not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is no flag: got {type(value).__name__} {value!r}; expected True or False.")


def check_positive(op: str, name: str, value: float) -> None:
    meaning = "a finite number above 0"
    check_number(op, name, value, meaning)
    if isinstance(value, torch.SymFloat):  # of sizes: to compare it would be a guard on them
        return
    if not 0.0 < value < math.inf:  # not isfinite, which a number that torch.compile leaves open does not take
        raise ValueError(f"{op}: {name} is not usable: got {value}; expected {meaning}.")


def check_scale(op: str, scale: float | None) -> None:
    if scale is not None:
        check_positive(op, "scale", scale)


def check_probability(op: str, name: str, value: float) -> None:
    meaning = f"0 <= {name} < 1"
    check_number(op, name, value, meaning)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{op}: {name} is no probability: got {value}; expected {meaning}.")


def check_no_gradient(op: str, name: str, value: Tensor | None) -> None:
    if value is not None and value.requires_grad:
        raise ValueError(
            f"{op}: {name} requires a gradient: got requires_grad=True; expected a constant. Detach it, or pass a bias."
        )

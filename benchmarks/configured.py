"""Other block sizes than those of kernels/, for a block; which ones a case asks for; which ones are near.

A choice is a `Config`, or the number that `local_tile` gives.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from benchmarks.runs import tensors_of, training
from vitkern.kernels.machine.blocks import Config
from vitkern.kernels.machine.choices import answered
from vitkern.lab.compiling.compiled import caught
from vitkern.lab.compiling.layer import Layer

# What a function may choose; the other fields follow from the shape, or from another kernel's rows.
ALL = ("block_m", "block_n", "num_warps", "num_stages")
FREE = {
    "additive_forward_config": ALL,
    "additive_backward_config": ALL,
    "short_forward_config": ("block_m", "num_warps", "num_stages"),
    "short_backward_config": ("block_m", "num_warps", "num_stages"),
    "sparse_forward_config": ("block_m", "num_warps", "num_stages"),
    "sparse_backward_config": ("block_m", "num_warps", "num_stages"),
    "channel_forward_config": ("block_m", "num_warps", "num_stages"),
    "channel_backward_config": ("block_m", "num_warps", "num_stages"),
    "deformable_config": ("block_m", "num_warps"),
    "deformable_value_config": ("block_m", "block_n", "num_warps"),
    "gated_mix_config": ("block_n", "num_warps"),
    "separable_config": ("block_m", "block_n", "num_warps"),
    "layernorm_config": ("block_m", "num_warps"),
    "layernorm_backward_config": ("block_m", "num_warps"),
    "stream_forward_config": ALL,
    "stream_dq_config": ALL,
    "stream_dkdv_config": ALL,
    "stream_bias_config": ALL,
    "ragged_config": ALL,
    "norm_linear_config": ALL,
    "mlp_config": ALL,
    "mixing_config": ALL,
    "matmul_config": ("block_n", "num_warps", "num_stages"),
}
TILE = "local_tile"  # the one function that gives a number
OTHERWISE = ("num_warps", "num_stages")
BOUNDS = dict(block_m=(16, 256), block_n=(16, 256), num_warps=(1, 16), num_stages=(1, 5))
MOST_RANKS = 16  # of an axis of a tile of neighbours
MOST_ROWS = {"short_forward_config": 64, "short_backward_config": 64}  # `short_tile` rounds rows up to these


@dataclass(frozen=True)
class Call:
    """A choice and its arguments, (name, value) each."""

    function: str
    arguments: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={value!r}' for name, value in self.arguments)})"


def config_of(result) -> Config | int:
    """The choice in what a function returned: itself, or a part of a tuple."""
    if isinstance(result, Config | int):
        return result
    return next(part for part in result if isinstance(part, Config))


def _with_config(result, config: Config | int):
    if isinstance(result, Config | int):
        return config
    return tuple(config if isinstance(part, Config) else part for part in result)


def gives_blocks(name: str) -> bool:
    """Whether what the choice of that name gives is a choice of this file."""
    return name.endswith("_config") or name == TILE


def _call(function: Callable, args, kwargs) -> Call:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return Call(function.__name__, tuple(bound.arguments.items()))


def overridden(chosen: Mapping[Call, Config | int]) -> AbstractContextManager[None]:
    """Within the block the calls in ``chosen`` give those, and all others what they always give."""

    def answer(function, *args, **kwargs):
        result, call = function(*args, **kwargs), _call(function, args, kwargs)
        return _with_config(result, chosen[call]) if call in chosen else result

    return answered(answer)


def asked(case: Layer, dtype: torch.dtype, batch: int, mode: str, arch: int) -> dict[Call, object]:
    """The calls that ``case`` makes on ``arch`` in ``mode``, and their results; "backward": those of it alone."""
    problem, found = case.problem(batch), {}
    tensors = tensors_of(problem, dtype, torch.device("cpu"))
    function = functools.partial(problem.run, **tensors, **problem.options)
    leaves = [tensors[name] for name in problem.gradients]

    def noted(choice, *args, **kwargs):
        result = choice(*args, **kwargs)
        return found.setdefault(_call(choice, args, kwargs), result) if gives_blocks(choice.__name__) else result

    with answered(noted), caught(lambda *launch: None, arch):
        if mode == "forward":
            with torch.no_grad():
                function()
            return found
        function()
        before = set(found)
        training(function, leaves)
    return found if mode == "training" else {call: result for call, result in found.items() if call not in before}


def neighbours(call: Call, config: Config | int) -> list[Config | int]:
    """The choices one step from ``config``: a block or the warps halved or doubled, a stage more or less."""
    if call.function == TILE:
        return _tiles(config, **dict(call.arguments))
    found = []
    for name in FREE.get(call.function, OTHERWISE):
        value, (low, high) = getattr(config, name), BOUNDS[name]
        if name == "block_m":
            high = min(high, MOST_ROWS.get(call.function, high))
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        found += [config._replace(**{name: step}) for step in steps if low <= step <= high]
    return found


def _tiles(tile: int, block: int, halo: int, ranks: int, wraps: bool, keys: bool, arch: int) -> list[int]:
    """Of neighbours half as many or twice; a tile of keys is a block or half of one, a tile of queries is a block."""
    if block == 1:
        steps = [step for step in (tile // 2, tile * 2) if 1 <= step <= min(ranks, MOST_RANKS)]
        return [step for step in steps if not wraps or ranks % step == 0]
    halves = keys and not wraps and 0 < halo <= block // 2 and block % 2 == 0
    return [size for size in (block, block // 2) if size != tile] if halves else []

"""Other block sizes than kernels/configs.py gives, for a block; which ones a case asks for; which ones are near.

A choice is a `Config`, or the number that `local_tile` gives.
"""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import vitkern.kernels
from benchmarks.runs import tensors_of, training
from vitkern.kernels.machine import configs
from vitkern.kernels.machine.configs import Config
from vitkern.lab.compiling.compiled import caught
from vitkern.lab.compiling.layer import Layer

# What a function may choose; the other fields follow from the shape, or from another kernel's rows.
ALL = ("block_m", "block_n", "num_warps", "num_stages")
FREE = {
    "short_forward_config": ("block_m", "num_warps", "num_stages"),
    "short_backward_config": ("block_m", "num_warps", "num_stages"),
    "sparse_forward_config": ("block_m", "num_warps", "num_stages"),
    "sparse_backward_config": ("block_m", "num_warps", "num_stages"),
    "layernorm_config": ("block_m", "num_warps"),
    "layernorm_backward_config": ("block_m", "num_warps"),
    "stream_forward_config": ALL,
    "stream_dq_config": ALL,
    "stream_dkdv_config": ALL,
    "stream_bias_config": ALL,
    "ragged_config": ALL,
    "norm_linear_config": ALL,
    "mlp_config": ALL,
    "matmul_config": ("block_n", "num_warps", "num_stages"),
}
TILE = "local_tile"  # the one function that gives a number
OTHERWISE = ("num_warps", "num_stages")
BOUNDS = dict(block_m=(16, 256), block_n=(16, 256), num_warps=(1, 16), num_stages=(1, 5))
MOST_RANKS = 16  # of an axis of a tile of neighbours
MOST_ROWS = {"short_forward_config": 64, "short_backward_config": 64}  # `configs.short_tile` rounds rows up to these


@dataclass(frozen=True)
class Call:
    """A function of kernels/configs.py and its arguments, (name, value) each."""

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


def _functions() -> dict[str, Callable]:
    """The functions of kernels/configs.py that give a choice. Every module of kernels/ is imported: one imported later
    would keep what it found patched."""
    for module in pkgutil.walk_packages(vitkern.kernels.__path__, "vitkern.kernels."):
        importlib.import_module(module.name)
    return {name: found for name, found in vars(configs).items() if name.endswith("_config") or name == TILE}


@contextmanager
def _replaced(wrap: Callable[[Callable, inspect.Signature], Callable]) -> Iterator[None]:
    """Within the block each config function is ``wrap(function, signature)``, wherever a kernel module holds it."""
    originals = {function: wrap(function, inspect.signature(function)) for function in _functions().values()}
    holders = [module for name, module in sys.modules.items() if name.startswith("vitkern.kernels.")]
    before = [
        (module, name, value)
        for module in holders
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value in originals
    ]
    for module, name, value in before:
        setattr(module, name, originals[value])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _call(function: Callable, signature: inspect.Signature, args, kwargs) -> Call:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return Call(function.__name__, tuple(bound.arguments.items()))


@contextmanager
def overridden(choices: Mapping[Call, Config | int]) -> Iterator[None]:
    """Within the block the calls in ``choices`` give those, and all others what they always give."""

    def wrap(function, signature):
        @functools.wraps(function)
        def chosen(*args, **kwargs):
            result, call = function(*args, **kwargs), _call(function, signature, args, kwargs)
            return _with_config(result, choices[call]) if call in choices else result

        return chosen

    with _replaced(wrap):
        yield


def asked(case: Layer, dtype: torch.dtype, batch: int, mode: str, arch: int) -> dict[Call, object]:
    """The calls that ``case`` makes on ``arch`` in ``mode``, and their results; "backward": those of it alone."""
    problem, found = case.problem(batch), {}
    tensors = tensors_of(problem, dtype, torch.device("cpu"))
    function = functools.partial(problem.run, **tensors, **problem.options)
    leaves = [tensors[name] for name in problem.gradients]

    def wrap(original, signature):
        @functools.wraps(original)
        def noted(*args, **kwargs):
            result = original(*args, **kwargs)
            return found.setdefault(_call(original, signature, args, kwargs), result)

        return noted

    with _replaced(wrap), caught(lambda *launch: None, arch):
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

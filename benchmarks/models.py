"""Whole models, and single blocks of them: original and accelerated, compiled too, timed in turn in one run.

``swin_tiny_patch4_window7_224`` is a model of timm, ``swin_tiny_patch4_window7_224:layers.0.blocks.1`` one block of it
on what the model feeds it.
"""

import copy
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

import vitkern
from benchmarks import memory
from benchmarks.rows import OURS, WRONG, Row
from vitkern.commands import equality, peers, steps, timing
from vitkern.report import BadInput, near_matches

ORIGINAL = "original"
IN_PYTORCH = "vitkern in PyTorch"  # in place of an original, for models that timm does not have
COMPILED = "torch.compile"
BOTH = "vitkern, compiled"
GPU_MODELS = (
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_small_patch16_224",
    "deit_tiny_patch16_224",
    "swin_base_patch4_window7_224",
    "vit_base_patch16_224",
    "swinv2_base_window8_256",
    "vit_large_patch16_224",
)
BLOCKS = (
    "swin_tiny_patch4_window7_224:layers.0.blocks.1",
    "swinv2_tiny_window8_256:layers.0.blocks.1",
    "vit_small_patch16_224:blocks.0",
    "vit_base_patch16_224:blocks.0",
)
CPU_MODELS = GPU_MODELS[:4] + BLOCKS[:3]
QUICK_MODELS = ("deit_tiny_patch16_224",)


class OnBackend(nn.Module):
    """A model whose operators run on one backend."""

    def __init__(self, model: nn.Module, backend: str):
        super().__init__()
        self.model, self.backend = model, backend

    def forward(self, x: Tensor) -> Tensor:
        with vitkern.use_backend(self.backend):
            return self.model(x)


class Pooled(nn.Module):
    """A block that looks like a classifier: its output (B, ..., C) averaged to scores (B, C)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).flatten(1, -2).mean(1)


def chosen(patterns: list[str]) -> list[str]:
    """The names of `vitkern.list_models` that match a pattern; exact names of timm, and blocks, as they are.

    Raises:
        BadInput: a pattern that matches nothing.
    """
    found = []
    for pattern in patterns:
        name = pattern.partition(":")[0]
        matching = [model for model in vitkern.list_models() if fnmatchcase(model, pattern)]
        if not matching and not is_timms(name):
            near = near_matches(name, vitkern.list_models())
            raise BadInput(f"no model is called {pattern!r} in vitkern or timm.{near} Patterns are of vitkern's names.")
        found += matching or [pattern]
    return list(dict.fromkeys(found))


def is_timms(name: str) -> bool:
    """Whether timm builds ``name``; a tag of pretrained weights after a dot may follow it."""
    import timm

    return name.partition(".")[0] in timm.list_models()


def _built(name: str, images: int) -> tuple[dict[str, nn.Module], Tensor]:
    """The base and the fast model or block in float32 on the CPU by contender, and an input of ``images`` images.

    Raises:
        BadInput: neither timm nor vitkern has the model, or the model lacks the block.
    """
    model_name, _, path = name.partition(":")
    generator = torch.Generator().manual_seed(0)
    if model_name in vitkern.list_models() and not is_timms(model_name):
        model = vitkern.create_model(model_name).eval()
        x = torch.randn(images, *vitkern.describe(model_name).input_size, generator=generator)
        return {IN_PYTORCH: OnBackend(model, "torch"), OURS: OnBackend(copy.deepcopy(model), "auto")}, x
    peer = peers.build(model_name, "timm")
    x, model = torch.randn(images, 3, *peer.input_size, generator=generator), peer.model
    if path:
        model, x = _block(model, path, x)
    fast = copy.deepcopy(model)
    vitkern.accelerate(fast)
    return {ORIGINAL: model, OURS: fast}, x


def _block(model: nn.Module, path: str, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The module at ``path`` and what the model feeds it."""
    modules = dict(model.named_modules())
    if path not in modules:
        raise BadInput(f"the model has no block {path!r}.{near_matches(path, modules)}")
    seen = []
    with modules[path].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        model(images)
    return Pooled(modules[path]), seen[0]


def measure_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch: int,
    modes=("forward",),
    compiled=False,
    budget=20.0,
    progress=print,
) -> list[Row]:
    """`equality.compare_models` first, with the gradients where a training step is timed; wrong results get no figure.

    ``modes``: "forward" is inference, every other a training step: forward, loss, backward. ``budget``: seconds.
    """
    modes = tuple(dict.fromkeys("forward" if mode == "forward" else "training" for mode in modes))
    fields = dict(op="models", case=name, dtype=str(dtype).removeprefix("torch."), batch=batch)
    try:
        contenders, images = _built(name, batch)
        images = images.to(device, dtype)
        base, fast = (model.to(device, dtype) for model in contenders.values())
        same = equality.compare_models(base, fast, images[:2], train="training" in modes)
        if not same.passed:
            note = f"{WRONG}: its results differ"
            return [Row(**fields, mode=mode, contender=OURS, seconds=None, note=note) for mode in modes]
        if compiled:
            torch.compiler.reset()  # it gives up on code that was compiled for many models
            contenders[COMPILED] = torch.compile(copy.deepcopy(base))
            contenders[BOTH] = torch.compile(copy.deepcopy(fast))
        return [row for mode in modes for row in _timed(contenders, images, mode, fields, budget, progress)]
    except Exception as error:
        if not memory.is_shortage(error):
            raise
        return [Row(**fields, mode=mode, contender=OURS, seconds=None, note="out of memory") for mode in modes]


def _timed(contenders, images, mode, fields, budget, progress) -> list[Row]:
    step = steps.forward_step if mode == "forward" else steps.training_step
    runs = {label: step(model, images) for label, model in contenders.items()}
    timed = timing.side_by_side(runs, images.device, budget=budget, progress=progress)
    rows, base = [], next(iter(timed.values()))
    for label, result in timed.items():
        note = "" if result is base else "{:.2f}x ({:.2f} .. {:.2f})".format(*timing.ratio(base, result))
        figures = dict(spread=result.spread, samples=len(result.samples), peak=result.peak, note=note)
        rows.append(Row(**fields, mode=mode, contender=label, seconds=result.median, **figures))
    return rows

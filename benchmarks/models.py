"""Whole models, and single blocks of them: original and accelerated, compiled too, timed in turn in one run.

``swin_tiny_patch4_window7_224`` is a model of timm, ``swin_tiny_patch4_window7_224:layers.0.blocks.1`` one block of it
on what the model feeds it.
"""

import copy
from contextlib import suppress
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

import vitkern
from benchmarks.measure import reason_of
from benchmarks.rows import OURS, WRONG, Row
from vitkern.commands import equality, peers, steps, timing
from vitkern.report import BadInput, is_shortage, near_matches

ORIGINAL = "original"
IN_PYTORCH = "vitkern in PyTorch"  # in place of an original, for models that timm does not have
COMPILED = "torch.compile"
BOTH = "vitkern, compiled"
GPU_MODELS = (
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "swinv2_tiny_window8_256",
    "deit_tiny_patch16_224",
    "vit_base_patch16_224",
    "twins_svt_small",
    "maxvit_tiny_tf_224",
    "davit_tiny",
    "samvit_base_patch16",
    "swin_base_patch4_window7_224",
    "swinv2_base_window8_256",
    "vit_large_patch16_224",
    "vil_tiny_window7_224",
    "nat_tiny",
    "dinat_tiny",
    "halonet50ts",
)
BLOCKS = (
    "swin_tiny_patch4_window7_224:layers.0.blocks.1",
    "vit_small_patch16_224:blocks.0",
    "swin_tiny_patch4_window7_224:layers.2.blocks.1",
    "swinv2_tiny_window8_256:layers.0.blocks.1",
    "vit_base_patch16_224:blocks.0",
    "swin_tiny_patch4_window7_224:layers.1.blocks.1",
    "swin_tiny_patch4_window7_224:layers.3.blocks.1",
    "swinv2_tiny_window8_256:layers.2.blocks.1",
    "samvit_base_patch16:blocks.0",
    "samvit_base_patch16:blocks.2",
    "twins_svt_small:blocks.0.0",
    "maxvit_tiny_tf_224:stages.0.blocks.0.attn_grid",
    "davit_tiny:stages.0.blocks.0.0",
)
CPU_MODELS = (
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vit_small_patch16_224", "deit_tiny_patch16_224"
)  # fmt: skip
QUICK_MODELS = ("deit_tiny_patch16_224",)
QUICK_BLOCKS = ("deit_tiny_patch16_224:blocks.0",)
LARGE = {"samvit_base_patch16": 4}  # images of a call on a GPU, where they are of 1024 x 1024 pixels


class OnBackend(nn.Module):
    """A model whose operators run on one backend."""

    def __init__(self, model: nn.Module, backend: str):
        super().__init__()
        self.model, self.backend = model, backend

    def forward(self, x: Tensor) -> Tensor:
        with vitkern.use_backend(self.backend):
            return self.model(x)


class Pooled(nn.Module):
    """A block that looks like a classifier: its output (B, ..., C) averaged to scores (B, C). ``others``: what it takes
    beside x."""

    def __init__(self, block: nn.Module, others: tuple):
        super().__init__()
        self.block, self.others = block, others

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, *self.others).flatten(1, -2).mean(1)


def batch_of(name: str, *, gpu: bool, quick: bool) -> int:
    """Images in a call of a model or a block."""
    if quick:
        return 2
    largest = LARGE.get(name.partition(":")[0], 64)
    return largest if gpu else max(1, largest // 8)


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


def _compared(batch: int, device: torch.device) -> int:
    """Images that are compared in float64: on a GPU as many as take the very kernels that are timed, of large ones
    one."""
    return min(batch, 2) if device.type != "cuda" else 16 if batch >= 16 else 1


def _built(name: str, images: int, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, nn.Module], Tensor]:
    """The base and the fast model or block by contender, and an input of ``images`` images.

    Raises:
        BadInput: neither timm nor vitkern has the model, it takes no image, or it lacks the block.
    """
    model_name, _, path = name.partition(":")

    def drawn(*shape):
        return torch.randn(images, *shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    if model_name in vitkern.list_models() and not is_timms(model_name):
        found = vitkern.describe(model_name)
        if found.input_size is None:
            raise BadInput(f"images are timed: {model_name} takes {found.input_rule}.")
        model = vitkern.create_model(model_name).eval().to(device, dtype)
        x = drawn(*found.input_size)
        return {IN_PYTORCH: OnBackend(model, "torch"), OURS: OnBackend(copy.deepcopy(model), "auto")}, x
    peer = peers.build(model_name, "timm")
    x, model = drawn(3, *peer.input_size), peer.model.to(device, dtype)
    if path:
        model, x = _block(model, path, x)
    fast = copy.deepcopy(model)
    vitkern.accelerate(fast)
    return {ORIGINAL: model, OURS: fast}, x


class _Reached(Exception):
    """A model has come to the block that was looked for."""


def _block(model: nn.Module, path: str, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The module at ``path`` and what the model feeds it."""
    modules = dict(model.named_modules())
    if path not in modules:
        raise BadInput(f"the model has no block {path!r}.{near_matches(path, modules)}")
    seen = []

    def stop(_, inputs):
        seen.extend(inputs)
        raise _Reached

    with modules[path].register_forward_pre_hook(stop), torch.no_grad(), suppress(_Reached):
        model(images)
    x, *others = seen
    return Pooled(modules[path], tuple(others)), x


def measure_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    batch: int,
    modes=("forward",),
    compiled=False,
    budget=20.0,
    timed=True,
    progress=print,
) -> list[Row]:
    """`equality.compare_models` first, with the gradients where a training step is timed; wrong results get no figure.

    ``modes``: "forward" is inference, every other a training step: forward, loss, backward. ``budget``: seconds. Not
    ``timed``: everything runs once.
    """
    modes = tuple(dict.fromkeys("forward" if mode == "forward" else "training" for mode in modes))
    fields = dict(op="models", case=name, dtype=str(dtype).removeprefix("torch."), batch=batch)
    try:
        contenders, images = _built(name, batch, device, dtype)
        base, fast = contenders.values()
        few = images[: _compared(batch, device)]
        same = equality.compare_models(base, fast, few, train="training" in modes)
        if not same.passed:
            name, worst, own, _ = max(same.rows, key=lambda row: row[1].use)
            failed = sum(not comparison.passed for _, comparison, _, _ in same.rows)
            note = f"{WRONG}: {failed} of {len(same.rows)} tensors differ, most {name}: off by {worst.error:.1e}, "
            note += f"allowed {worst.allowance:.1e}, the original is off by {own:.1e}"
            return [Row(**fields, mode=mode, contender=OURS, seconds=None, note=note) for mode in modes]
        if compiled:
            torch.compiler.reset()  # it gives up on code that was compiled for many models
            contenders[COMPILED] = torch.compile(copy.deepcopy(base))
            contenders[BOTH] = torch.compile(copy.deepcopy(fast))
        return [
            row
            for mode in modes
            for row in _timed(contenders, images, mode, fields, budget if timed else None, progress)
        ]
    except Exception as error:
        if not is_shortage(error):
            raise
        return [Row(**fields, mode=mode, contender=OURS, seconds=None, note="out of memory") for mode in modes]


def _timed(contenders, images, mode, fields, budget: float | None, progress) -> list[Row]:
    """``budget`` None: everything runs once. What torch.compile cannot do has no figure, and a reason."""
    step = steps.forward_step if mode == "forward" else steps.training_step
    runs, rows = {}, []
    for label, model in contenders.items():
        runs[label] = step(model, images)
        if budget is None or label in (COMPILED, BOTH):
            try:
                runs[label]()
            except Exception as error:
                if label not in (COMPILED, BOTH):
                    raise
                rows.append(Row(**fields, mode=mode, contender=label, seconds=None, note=reason_of(error)))
                del runs[label]
    if budget is None:
        return rows
    timed = timing.side_by_side(runs, images.device, budget=budget, progress=progress)
    base, found = next(iter(timed.values())), []
    for label, result in timed.items():
        note = "" if result is base else "{:.2f}x ({:.2f} .. {:.2f})".format(*timing.ratio(base, result))
        figures = dict(spread=result.spread, samples=len(result.samples), peak=result.peak, note=note)
        found.append(Row(**fields, mode=mode, contender=label, seconds=result.median, **figures))
    return found + rows

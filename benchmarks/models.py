"""Whole models and single blocks of timm, original and accelerated, timed in turn in one run."""

import copy

import torch

import vitkern
from benchmarks.measure import OURS, Row
from vitkern.commands import equality, peers, steps, timing

ORIGINAL = "original"
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
CPU_MODELS = GPU_MODELS[:4]
QUICK_MODELS = ("deit_tiny_patch16_224",)


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
    """`equality.compare_models` first, with the gradients where the backward is timed; wrong results get no figure.

    A backward row is a training step: forward, loss, backward.
    """
    peer = peers.build(name, "timm")
    original = peer.model.to(device, dtype)
    fast = copy.deepcopy(original)
    vitkern.accelerate(fast)
    images = torch.randn(batch, 3, *peer.input_size, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    fields = dict(op="models", case=name, dtype=str(dtype).removeprefix("torch."), batch=batch)
    same = equality.compare_models(original, fast, images[:2], train="backward" in modes)
    if not same.passed:
        return [
            Row(**fields, mode=mode, contender=OURS, seconds=None, note="WRONG: its results differ") for mode in modes
        ]
    contenders = {ORIGINAL: original, OURS: fast}
    if compiled:
        contenders["torch.compile"] = torch.compile(copy.deepcopy(original))
        contenders["vitkern, compiled"] = torch.compile(copy.deepcopy(fast))
    rows = []
    for mode in modes:
        step = steps.forward_step if mode == "forward" else steps.training_step
        runs = {label: step(model, images) for label, model in contenders.items()}
        timed = timing.side_by_side(runs, device, budget=budget, progress=progress)
        for label, result in timed.items():
            note = (
                "" if label == ORIGINAL else "{:.2f}x ({:.2f} .. {:.2f})".format(*timing.ratio(timed[ORIGINAL], result))
            )
            figures = dict(spread=result.spread, samples=len(result.samples), peak=result.peak, note=note)
            rows.append(Row(**fields, mode=mode, contender=label, seconds=result.median, **figures))
    return rows

"""What a device could do at best: bytes and operations of a case over the peaks of the data sheet."""

from dataclasses import dataclass

import torch

from benchmarks.cases import Attention, LayerNorm, Mlp, Window


@dataclass(frozen=True)
class Peaks:
    """Bytes/s of the device memory and dense FLOP/s, from the vendor's data sheet."""

    memory: float
    half: float
    fp32: float


# NVIDIA's data sheets, SXM modules; the first name that the device's name holds.
PEAKS = {
    "H200": Peaks(4.8e12, 989e12, 67e12),
    "H100": Peaks(3.35e12, 989e12, 67e12),
    "A100-SXM4-80GB": Peaks(2.039e12, 312e12, 19.5e12),
    "A100": Peaks(1.555e12, 312e12, 19.5e12),
}


def peaks_of(device: torch.device) -> Peaks | None:
    """None on a CPU and on GPUs that are not in the table."""
    return peaks_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peaks_named(name: str) -> Peaks | None:
    """Peaks of the device that is called ``name``; None where the table has none."""
    return next((peaks for key, peaks in PEAKS.items() if key in name), None)


def work(case, batch: int, itemsize: int, mode: str) -> tuple[float, float]:
    """(bytes, FLOPs) that ``case`` cannot do without: inputs read once, results written once, no padding counted.

    The backward counts the recomputed scores: 10 B H N^2 D, as is the custom for attention.
    """
    backward = mode == "backward"
    match case:
        case Attention():
            unit = batch * case.heads * case.tokens * case.head_dim
            flops = (10 if backward else 4) * unit * case.tokens
            bias = case.bias * case.heads * case.tokens**2 * (2 if backward else 1)
            return itemsize * (unit * (7 if backward else 4) + bias), flops
        case Window():
            unit = batch * case.side**2 * case.channels
            return itemsize * unit * (7 if backward else 4), (10 if backward else 4) * unit * case.window**2
        case LayerNorm():
            unit = batch * case.tokens * case.channels
            tensors = (4 if case.residual else 3) if backward else (4 if case.residual else 2)
            return itemsize * unit * tensors, 8.0 * unit
        case Mlp():
            unit = batch * case.tokens * case.channels
            weights = 8 * case.channels**2
            flops = (32 if backward else 16) * unit * case.channels
            return itemsize * (unit * (3 if backward else 2) + weights * (2 if backward else 1)), flops
    raise TypeError(f"work: no count for {type(case).__name__}")


def bound(case, batch: int, dtype: torch.dtype, mode: str, peaks: Peaks) -> float:
    """Seconds below which the device cannot go."""
    moved, flops = work(case, batch, dtype.itemsize, mode)
    return max(moved / peaks.memory, flops / (peaks.fp32 if dtype == torch.float32 else peaks.half))

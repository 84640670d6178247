"""What else computes the same. Each peer is a function of the tensors of a case, by name, and returns the output;
differentiable, so that the backward is timed alike.

PyTorch's attention backends, FlexAttention, the formula as models write it, torch.compile of it, and what is installed.
"""

import functools
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.layers import Attention, Layer, LayerNorm, Mlp, Sampled, Window
from benchmarks.local_layers import Local, Neighborhood
from benchmarks.peers import dense, flex, installed, local, windows

EAGER = "eager"
BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA math": SDPBackend.MATH,
}


def peers_of(case: Layer, options: dict, device: torch.device, *, compiled: bool) -> dict[str, Callable]:
    """Name -> peer. ``compiled`` adds torch.compile of the eager formula, and FlexAttention on a GPU."""
    fused = None
    match case:
        case Attention():
            eager, fused = dense.attention, dense.attention_fused
        case Window():
            eager = windows.window(options, device)
            fused = None if case.cosine else functools.partial(eager, fused=True)
        case Neighborhood():
            eager, fused = windows.neighborhood(case, device), windows.neighborhood_fused(case, device)
        case Local():
            eager, fused = local.grouped(case), local.grouped_fused(case)
        case Sampled():
            eager, fused = (functools.partial(f, **options) for f in (dense.sampled, dense.sampled_fused))
        case LayerNorm():
            eager = functools.partial(dense.layernorm, **options)
        case Mlp():
            eager = functools.partial(dense.mlp, **options)
        case _:
            raise TypeError(f"peers_of: no peer for {type(case).__name__}")
    peers = {EAGER: eager}
    if fused is not None:
        peers |= {name: functools.partial(_forced, backend, fused) for name, backend in BACKENDS.items()}
    if compiled:
        peers["torch.compile"] = torch.compile(eager, dynamic=False)
        if device.type == "cuda":
            peers |= flex.peers_of(case, options, device)
    return peers | installed.peers_of(case, options)


def _forced(backend: SDPBackend, function: Callable, **tensors):
    """``function``, which calls SDPA, under one of its backends."""
    with sdpa_kernel(backend):
        return function(**tensors)


def known_fault(peer: str, case: Layer, mode: str) -> str:
    """What is known to be wrong with ``peer`` on such a case, whatever it shows today; empty where nothing is."""
    if peer == "SDPA cuDNN" and mode != "forward" and _masked_keys(case) % 128 == 64:
        return "known: cuDNN's backward gives NaN at N % 128 == 64 with a mask (pytorch issue 196678)"
    return ""


def _masked_keys(case: Layer) -> int:
    """Keys of a case whose peers give SDPA a mask; 0 where they give none."""
    match case:
        case Attention(bias=True) | Attention(masked=True):
            return case.keys or case.tokens
        case Window() if case.table or case.shift:
            return case.window**2
        case Neighborhood():
            return case.side**2
        case Local():
            return case.keys
        case Sampled(sampled=0):
            return case.tokens
    return 0

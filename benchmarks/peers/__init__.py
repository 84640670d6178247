"""What else computes the same. Each peer is a function of the tensors of a case, by name, and returns the output;
differentiable, so that the backward is timed alike.

PyTorch's attention backends, FlexAttention, the formula as models write it, torch.compile of it, and what is installed.
"""

import functools
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import dense, flex, installed, local, windows
from vitkern.lab.compiling.layer import Layer

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
    match case.op:
        case "attention":
            eager, fused = dense.attention, dense.attention_fused
        case "window_attention":
            eager = windows.window(options, device)
            fused = None if case.cosine else functools.partial(eager, fused=True)
        case "neighborhood_attention":
            eager, fused = windows.neighborhood(case, device), windows.neighborhood_fused(case, device)
        case _ if case.operator == "local_attention":
            eager, fused = local.grouped(case), local.grouped_fused(case)
        case "sparse_attention":
            eager, fused = (functools.partial(f, **options) for f in (dense.sampled, dense.sampled_fused))
        case "layernorm":
            eager = functools.partial(dense.layernorm, **options)
        case "layernorm_mlp":
            eager = functools.partial(dense.mlp, **options)
        case _:
            eager = case.eager(options)
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
    match case.op:
        case "attention" if case.bias or case.masked:
            return case.keys or case.tokens
        case "window_attention" if case.table or case.shift:
            return case.window**2
        case "neighborhood_attention":
            return case.side**2
        case _ if case.operator == "local_attention":
            return case.keys
        case "sparse_attention" if not case.sampled:
            return case.tokens
    return 0

"""Peers of other packages, where they are installed: flash-attn, xFormers, NATTEN, Liger-Kernel. None is required.

They are called as their documentation has it, and run in no continuous integration: a package whose interface has
changed shows as a peer without a figure, with its error.
"""

import importlib.util
from collections.abc import Callable

from vitkern.lab.compiling.layer import Layer

PACKAGES = {
    "flash-attn": "flash_attn",
    "xFormers": "xformers",
    "NATTEN": "natten",
    "Liger": "liger_kernel",
}


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


def peers_of(case: Layer, options: dict) -> dict[str, Callable]:
    """Name -> peer, of the installed packages that have this layer."""
    match case.op:
        case "attention" if not case.masked:
            found = ({} if case.bias else {"flash-attn": _flash_attn}) | {"xFormers": _xformers}
        case "neighborhood_attention":
            found = {"NATTEN": _natten(options["kernel"], dilation=options["dilation"], heads=options["num_heads"])}
        case "window_attention" if not (case.table or case.shift or case.side % case.window):
            found = {"NATTEN": _natten(options["window"], stride=options["window"], heads=options["num_heads"])}
        case "layernorm" if not case.residual:
            found = {"Liger": _liger(options)}
        case _:
            found = {}
    return {name: peer for name, peer in found.items() if is_installed(name)}


def _flash_attn(q, k, v):
    from flash_attn import flash_attn_func

    return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def _xformers(q, k, v, bias=None):
    from xformers.ops import memory_efficient_attention

    if bias is not None:
        bias = bias.expand(q.shape[0], -1, -1, -1)
    return memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias=bias).transpose(1, 2)


def _natten(kernel: tuple[int, int], *, heads: int, **options) -> Callable:
    """Without the table of biases, which NATTEN has dropped: its results differ, and it is marked for that. With a
    stride of the kernel's size it cuts windows."""

    def run(qkv, table=None):
        from natten import na2d

        q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(3)  # (B, img_h, img_w, H, D)
        out = na2d(q, k, v, kernel_size=kernel, **options).flatten(-2)
        return out if table is None else out + 0 * table.sum()

    return run


def _liger(options: dict) -> Callable:
    def run(x, weight, bias):
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction

        return LigerLayerNormFunction.apply(x, weight, bias, options["eps"])

    return run

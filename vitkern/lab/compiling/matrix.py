"""Which launch of launches.py is compiled for which architecture.

`EVERYWHERE` names the main paths of each family, and what it takes for every block size of kernels/, every hook
and every combination of hooks in a model to be compiled on every architecture. The other launches are variants of their
kernels (dtypes, odd head dimensions, batch 1, odd strides) and are compiled on one architecture each, of which their
name decides: a new launch moves no other.
"""

import zlib

ARCHITECTURES = (80, 90, 100, 120, 942)
EVERYWHERE = frozenset(
    (
        "attention-bias",
        "attention-causal",
        "attention-d104-odd",
        "attention-d128",
        "attention-d128-bias",
        "attention-d20-odd",
        "attention-d256-bias",
        "attention-d40",
        "attention-d64-vit-s-384",
        "attention-d80-bias",
        "attention-d80-vit-h-14",
        "attention-dropout",
        "attention-dropout-d128",
        "attention-fp32-d128-bias",
        "attention-fp32-d256-bias",
        "attention-fp32-d64-bias",
        "layernorm-1280",
        "layernorm-3072",
        "layernorm-32",
        "layernorm-512-fp16",
        "layernorm-768",
        "layernorm-96",
        "local-fp32",
        "local-fp32-d80",
        "local-halonet-d32",
        "local-nat-1",
        "local-sam-global",
        "local-sasa",
        "local-vil",
        "local-vil-cyclic",
        "local-vitdet-h",
        "local-vitdet-window",
        "mlp-1024-post-norm",
        "mlp-128-post-norm-inference",
        "mlp-192-inference",
        "mlp-192-scaled",
        "mlp-256-fp16-tanh",
        "mlp-384-inference",
        "mlp-384-post-norm-inference",
        "mlp-96",
        "mlp-96-inference",
        "mlp-96-tf32",
        "mlp-96-tf32-inference",
        "mlp-fp32",
        "mlp-nat-b-inference",
        "short-50-by-7",
        "short-7-by-100",
        "short-7-by-200",
        "short-7-by-50",
        "short-7-by-7",
        "short-d32-50-by-7",
        "short-d32-7-by-50",
        "short-d64-tokens-128",
        "short-d64-tokens-50",
        "short-fp32-49",
        "short-fp32-50-by-7",
        "short-fp32-7-by-50",
        "short-fp32-7-by-7",
        "short-vit-s-224",
        "sparse-128-d64",
        "sparse-200",
        "sparse-50",
        "sparse-50-gated",
        "sparse-50-by-7",
        "sparse-7-by-100",
        "sparse-7-by-200",
        "sparse-7-by-50",
        "sparse-7-by-7",
        "sparse-fp32",
        "sparse-fp32-50-by-7",
        "sparse-fp32-7-by-50",
        "sparse-fp32-7-by-7",
        "window-swin-384",
        "window-swin-384-padded",
        "window-swin-384-unshifted",
        "window-swin-padded",
        "window-swin-t-1",
        "window-swin-t-1-unshifted",
        "window-swinv2-w16",
        "window-swinv2-w16-unshifted",
        "window-swinv2-w8",
        "window-swinv2-w8-unshifted",
    )
)


# Launches that have no kernel on some architectures, because their tiles do not fit: PyTorch runs.
IN_PYTORCH = {
    "sparse-128-d64": (942,),
    "sparse-7-by-100": (942,),
    **dict.fromkeys(("sparse-200", "sparse-20-of-200", "sparse-7-by-200"), (120, 942)),
}
# Launches of kernels that one architecture alone has, beside those that serve all.
ALONE = {f"attention-hopper-{name}": 90 for name in ("d64", "d64-even", "d128", "bias", "d128-bias")}


def archs_of(name: str) -> tuple[int, ...]:
    """Architectures that a launch is compiled for."""
    if name in ALONE:
        return (ALONE[name],)
    fitting = tuple(arch for arch in ARCHITECTURES if arch not in IN_PYTORCH.get(name, ()))
    return fitting if name in EVERYWHERE else (fitting[zlib.crc32(name.encode()) % len(fitting)],)

"""Which case of vitkern/lab/cases.py is compiled for which architecture, and what is known to be imperfect.

The main path of each real model is compiled for all three; variants that share its kernels take turns, to save time.
"""

import os

EVERYWHERE = (
    "attention-d64-vit-s-384",
    "attention-d80-vit-h-14",
    "attention-d128",
    "attention-bias",
    "short-vit-s-224",
    "short-bias",
    "window-swin-t-1",
    "window-swin-padded",
    "window-swin-384",
    "window-swinv2-w8",
    "window-swinv2-w16",
    "layernorm-768",
    "mlp-96",
    "mlp-768",
)
IN_TURN = {
    80: ("attention-d32", "attention-causal", "window-swin-t-4", "layernorm-192", "mlp-192-scaled", "mlp-fp32"),
    90: ("attention-d256", "attention-dropout", "attention-grouped-heads", "short-d24", "window-fp32", "mlp-swinv2-96"),
    100: ("attention-cross-masks", "attention-fp16", "short-d32-window-49", "layernorm-1280", "mlp-1024-quick"),
}
CELLS = [(name, arch) for name in EVERYWHERE for arch in (80, 90, 100)]
CELLS += [(name, arch) for arch, names in IN_TURN.items() for name in names]

# (case, kernel, arch) -> (how the problem begins, why it stays)
EXCEPTIONS: dict[tuple[str, str, int], tuple[str, str]] = {}


def start_worker(cache):
    os.environ["TRITON_CACHE_DIR"] = cache
    import torch

    torch.set_num_threads(1)


def compile_cell(name, arch):
    from vitkern.lab.cases import CASES
    from vitkern.lab.compile import compile_launches

    return compile_launches(next(case for case in CASES if case.name == name).run, arch)

"""Which case of vitkern/lab/launches.py is compiled for which architecture, and what is known to be imperfect.

The main path of each family is compiled for all three; variants that share its kernels take turns, to save time.
With VITKERN_ALL_CELLS=1 in the environment every case is compiled for every architecture.
"""

import os

from vitkern.lab.launches import CASES

EVERYWHERE = (
    "attention-d64-vit-s-384",
    "short-vit-s-224",
    "window-swin-t-1",
    "window-swinv2-w8",
    "mlp-96",
)
IN_TURN = {
    80: ("attention-d80-vit-h-14", "attention-causal", "window-swin-384", "mlp-fp32"),
    90: ("attention-d128", "attention-bias", "window-swinv2-w16", "window-swin-padded", "mlp-768"),
    100: ("attention-d256", "attention-cross-masks", "layernorm-768", "mlp-192-inference"),
}
CELLS = [(name, arch) for name in EVERYWHERE for arch in (80, 90, 100)]
CELLS += [(name, arch) for arch, names in IN_TURN.items() for name in names]
if os.environ.get("VITKERN_ALL_CELLS"):
    CELLS = [(case.name, arch) for case in CASES for arch in (80, 90, 100)]

# (case, kernel, arch) -> (how the problem begins, why it stays)
EXCEPTIONS: dict[tuple[str, str, int], tuple[str, str]] = {}


def start_worker(cache):
    os.environ["TRITON_CACHE_DIR"] = cache
    import torch

    torch.set_num_threads(1)


def compile_cell(name, arch):
    from vitkern.lab.compile import compile_launches

    return compile_launches(next(case for case in CASES if case.name == name).run, arch)

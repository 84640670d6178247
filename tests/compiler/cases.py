"""The cells of `vitkern.lab.compiling.matrix` that the tests compile: the main paths, each on three architectures, and
variants.

``python -m vitkern lab compile`` compiles all of them.
"""

SAMPLE = {
    80: ("attention-d64-vit-s-384", "short-vit-s-224", "window-swin-t-1", "attention-causal", "mlp-fp32"),
    90: (
        "attention-d64-vit-s-384",
        "short-vit-s-224",
        "window-swin-t-1",
        "window-swinv2-w8",
        "mlp-96",
        "attention-d128",
        "attention-hopper-d64",
        "attention-hopper-d128",
        "attention-hopper-bias",
        "attention-hopper-d128-bias",
        "window-swin-padded",
    ),
    100: ("attention-d64-vit-s-384", "short-vit-s-224", "window-swinv2-w8", "layernorm-768", "mlp-192-inference"),
    120: ("attention-d80-vit-h-14", "window-swin-t-1", "mlp-96", "layernorm-768"),
    942: ("attention-d20-odd", "short-d64-tokens-50", "window-swinv2-w8", "mlp-96"),
}
CELLS = [(name, arch) for arch, names in SAMPLE.items() for name in names]

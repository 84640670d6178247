"""The cells of `vitkern.lab.compiling.matrix` that the tests compile: each main path, each architecture, and variants.

``python -m vitkern lab compile`` compiles all of them.
"""

SAMPLE = {
    80: ("attention-causal", "window-swin-t-1", "mlp-fp32"),
    90: (
        "attention-d128",
        "short-vit-s-224",
        "window-swinv2-w8",
        "mlp-96",
        "attention-hopper-d64",
        "attention-hopper-d128",
        "attention-hopper-d128-bias",
        "window-swin-padded",
    ),
    100: ("attention-d64-vit-s-384", "short-vit-s-224", "layernorm-768", "mlp-192-inference"),
    120: ("attention-d80-vit-h-14", "layernorm-768"),
    942: ("attention-d20-odd", "short-d64-tokens-50", "mlp-96"),
}
CELLS = [(name, arch) for arch, names in SAMPLE.items() for name in names]

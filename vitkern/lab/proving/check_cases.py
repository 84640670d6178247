"""The problems of ``python -m vitkern check``. The tests on a GPU run the same ones.

Small, so that Triton's interpreter gets through them, and awkward: token counts around and across tile boundaries,
odd head dimensions, rows without a key, images that the window does not divide.
"""

from vitkern.lab.proving.problems import (
    attention_problem,
    key_padding,
    layernorm_problem,
    local_problem,
    mlp_problem,
    normal,
    packed_problem,
    random_mask,
    sparse_problem,
    window_problem,
)

PROBLEMS = (
    attention_problem("N=1", (2, 2, 1, 16)),
    attention_problem("N=49 D=32", (1, 2, 49, 32)),
    packed_problem("N=50 D=24 packed", 1, 50, 2, 24),
    attention_problem("N=197 D=64", (1, 1, 197, 64)),
    attention_problem("N=67 D=32 learned bias over the batch", (2, 1, 67, 32), bias=(1, 1, 67, 67)),
    attention_problem(
        "N=49 bias per sample, mask, an empty row",
        (2, 1, 49, 16),
        bias=(2, 1, 49, 49),
        extra=random_mask(1, 1, 49, 49, empty_row=True),
    ),
    attention_problem("N=33 M=65 causal", (1, 2, 33, 32), keys=65, causal=True),
    attention_problem("N=40 M=56 key padding", (2, 1, 40, 32), keys=56, extra=key_padding(2, 56)),
    attention_problem("N=50 D=20 additive mask", (1, 2, 50, 20), extra=lambda g: dict(mask=normal(g, 50, 50))),
    attention_problem("N=33 four heads on two", (1, 4, 33, 32), kv_heads=2),
    attention_problem(
        "N=20 M=270 streaming, log-sum-exp", (1, 1, 20, 32), keys=270, outputs=("out", "lse"), return_lse=True
    ),
    attention_problem("N=70 D=128 scale 0.2", (1, 1, 70, 128), scale=0.2),
    window_problem("7x14 window 7", (7, 14), (7, 7)),
    window_problem("14x14 window 7 shift 3", (14, 14), (7, 7), shift=(3, 3)),
    window_problem("10x9 window 7 shift 3, rolled then padded", (10, 9), (7, 7), shift=(3, 3), wrap="image"),
    window_problem("10x9 window 7 shift 3, padded then rolled", (10, 9), (7, 7), shift=(3, 3), wrap="padded"),
    window_problem("12x8 window 6x4 shift 3x0, regions forbidden", (12, 8), (6, 4), shift=(3, 0), mask_value=None),
    window_problem("8x16 window 8 shift 4, cosine", (8, 16), (8, 8), shift=(0, 4), cosine=True),
    local_problem("7x9, 3x5 around each", (7, 9), (1, 1), (1, 2), "clamp", table=True, of="neighborhood"),
    local_problem(
        "11x8, 3x3, dilation 3x2", (11, 8), (1, 1), (1, 1), "clamp", dilation=(3, 2), table=True, of="neighborhood"
    ),
    local_problem("5x6, 3x3 around each, zeros outside", (5, 6), (1, 1), (1, 1), rel=True, of="standalone"),
    local_problem("8x8, blocks of 4, halo 1, rows and columns", (8, 8), (4, 4), (1, 1), rel=True, of="halo"),
    local_problem("7x8, chunks of 3, log-sum-exp", (7, 8), (3, 3), (3, 3), "exclude", table=True, lse=True, of="vil"),
    local_problem("7x8, cyclic chunks of 3", (7, 8), (3, 3), (3, 3), "wrap", table=True, of="vil"),
    local_problem("7x9, windows of 4 that stick out", (7, 9), (4, 4), rel=True, padding=True, of="decomposed"),
    local_problem("8x12, grid of 4", (8, 12), (4, 4), dilation=(2, 3), table=True, of="partition"),
    sparse_problem("20 of 50 queries", 2, 2, 50, 50, 32, sampled=20),
    sparse_problem("gates, padding, an empty sequence", 2, 2, 50, 50, 32, gated=True, padded=True),
    sparse_problem("33 queries, 60 keys, steep gates", 1, 2, 33, 60, 20, gated=True, strength=1e3),
    layernorm_problem("33 rows of 96", 33, 96),
    layernorm_problem("5 rows of 100, mean 3", 5, 100, offset=3.0),
    layernorm_problem("17 rows of 768, residual", 17, 768, residual=True),
    layernorm_problem("3 rows of 1280", 3, 1280),
    mlp_problem("C=96 exact GELU", 2, 25, 96, 384),
    mlp_problem("C=96 post-norm", 2, 25, 96, 384, post_norm=True),
    mlp_problem("C=128 tanh GELU, LayerScale, DropPath", 2, 20, 128, 256, scales=True, act="gelu_tanh"),
    mlp_problem("C=40 quick GELU", 1, 17, 40, 88, act="quick_gelu"),
    mlp_problem("C=320 exact GELU", 1, 19, 320, 640),
    mlp_problem("C=320 post-norm, LayerScale, DropPath", 2, 9, 320, 640, scales=True, post_norm=True),
)

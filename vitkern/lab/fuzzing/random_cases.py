"""Random cases over every kernel: `draw` makes one out of an operator's name and a seed, always the same one.

Costs are bounded: a case is drawn again until its tiles fit a budget that is small as a rule and rarely large, so that
long sequences come with few heads, or with the large blocks of a GPU.
"""

import math
import random

from vitkern.lab.fuzzing.cases import AttentionCase, Case, LayerNormCase, LocalCase, MLPCase, SparseCase, WindowCase

LENGTHS = (1, 2, 16, 49, 50, 63, 64, 65, 127, 144, 196, 197, 256, 257)
HEAD_DIMS = (8, 16, 20, 24, 32, 36, 40, 48, 64, 72, 80, 96, 112, 128)
CHANNELS = (1, 3, 7, 8, 16, 31, 32, 33, 48, 96, 100, 127, 128, 129, 192, 255, 256, 257, 384, 640, 768, 1000, 1280, 3072)
WIDTHS = (1, 3, 8, 15, 16, 17, 24, 33, 40, 64, 65, 96, 100, 128, 130, 192, 256, 260, 384, 520)
ARCHS = (80, 90, 100, 120, 942)
TILES = 24  # of forward and backward together, in most cases
RARE_TILES = 100
OPERAND_LAYOUTS = ("permuted", "heads inside", "transposed", "packed", "expanded", "sliced", "misaligned", "stepped")
# operator -> how often it is drawn: attention has most hooks
WEIGHTS = {
    "attention": 9,
    "window_attention": 5,
    "local_attention": 5,
    "sparse_attention": 3,
    "layernorm": 3,
    "layernorm_mlp": 3,
}
_SPECIAL = 0.1  # share of the cases with NaN or infinities


def draw(op: str, seed: int) -> Case:
    rng = random.Random(f"{op}:{seed}")
    budget = RARE_TILES if rng.random() < 0.03 else TILES
    while True:
        case = _DRAW[op](rng)
        if _tiles(case) <= budget:
            return case


def _chance(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def _common(rng: random.Random, operands: tuple[str, ...], *, arch_share: float) -> dict:
    """Fields that all operators have. ``operands``: those that may be laid out in some way."""
    backward = _chance(rng, 0.85)
    common = dict(
        dtype=rng.choice(("fp32", "fp16", "bf16")),
        arch=rng.choice(ARCHS) if _chance(rng, arch_share) else 0,
        backward=backward,
        twice=_chance(rng, 0.1),
        frozen=tuple(name for name in operands if _chance(rng, 0.5)) if backward and _chance(rng, 0.15) else (),
    )
    layouts = {}
    if _chance(rng, 0.8):
        layouts = {name: rng.choice(OPERAND_LAYOUTS) for name in operands if _chance(rng, 0.6)}
        if backward and _chance(rng, 0.6):
            layouts["grad out"] = rng.choice((*OPERAND_LAYOUTS, "constant"))
    return common | dict(layouts=layouts)


def _length(rng: random.Random) -> int:
    """Small ones are rare before the budget, which favours them."""
    return rng.choice(LENGTHS[:2] if _chance(rng, 0.03) else LENGTHS[2:])


def _attention(rng: random.Random) -> AttentionCase:
    packed = _chance(rng, 0.25)
    heads = rng.choice((1, 1, 1, 2, 2, 3, 4, 4))
    n, dim = _length(rng), rng.choice(HEAD_DIMS)
    m = n if packed or _chance(rng, 0.3) else _length(rng)
    bias = rng.choice(("1hnm", "bhnm", "11nm", "b1nm", "hnm", "nm", "bh1m", "1hn1")) if _chance(rng, 0.35) else ""
    mask = rng.choice(("11nm", "b1nm", "bhnm", "nm", "1h1m")) if _chance(rng, 0.3) else ""
    names = (("qkv",) if packed else ("q", "k", "v")) + ("bias",) * bool(bias) + ("mask",) * bool(mask)
    common = _common(rng, names, arch_share=0.7)
    if bias and common["dtype"] != "fp32" and _chance(rng, 0.3):
        common["wide"] = ("bias",)
    if not set(common["frozen"]) - {"mask"} < set(names) - {"mask"}:
        common["frozen"] = ()
    case = dict(
        batch=rng.choice((1, 1, 1, 2, 3)),
        heads=heads,
        share=1 if packed else rng.choice([count for count in (1, 2, 2, 3, 4) if heads % count == 0]),
        n=n,
        m=m,
        dim=dim,
        packed=packed,
        bias=bias,
        mask=mask,
        additive=bool(mask) and _chance(rng, 0.4),
        empty=tuple(sorted({rng.randrange(n) for _ in range(3)})) if mask[-2:-1] == "n" and _chance(rng, 0.5) else (),
        key_padding=rng.choice(("some", "all")) if _chance(rng, 0.2) else "",
        causal=_chance(rng, 0.2),
        scale=round(rng.choice((0.3, 1.5)) * dim**-0.5, 3) if _chance(rng, 0.2) else None,
        lse=_chance(rng, 0.3),
    )
    # Where the formula multiplies NaN by the 0 of a forbidden key, a kernel may skip the key, or the whole row.
    forbids = case["causal"] or mask or case["key_padding"]
    if _chance(rng, _SPECIAL) and not forbids:
        common |= _special_rows(rng, names[0] if packed else rng.choice(("q", "k", "v")), case)
    return AttentionCase(**common, **case)


def _special_rows(rng: random.Random, name: str, case: dict) -> dict:
    batch, token = rng.randrange(case["batch"]), rng.randrange(case["m"] if name in ("k", "v") else case["n"])
    kv_heads = case["heads"] // case["share"]
    head = rng.randrange(kv_heads if name in ("k", "v") else case["heads"])
    index = (batch, token, rng.randrange(3), head) if name == "qkv" else (batch, head, token)
    return dict(values={name: ((index, "nan"),)})


def _window_attention(rng: random.Random) -> WindowCase:
    if _chance(rng, 0.7):
        window = rng.choice(((7, 7), (8, 8), (4, 4), (2, 2), (5, 10), (7, 9), (5, 13), (4, 7), (1, 16), (6, 4), (3, 1)))
    else:
        window = rng.choice(((1, 1), (1, 2), (12, 12), (14, 14), (16, 16), (7, 28), (1, 127), (2, 71), (1, 197)))
    cells = rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2))
    image = tuple(
        max(1, cell * extent - (rng.randrange(extent) if _chance(rng, 0.3) else 0))
        for cell, extent in zip(cells, window, strict=True)
    )
    wrap = rng.choice(("image", "padded"))
    shift = tuple(
        rng.randrange(extent if wrap == "padded" else min(extent, size)) if _chance(rng, 0.6) else 0
        for extent, size in zip(window, image, strict=True)
    )
    padded = any(size % extent for size, extent in zip(image, window, strict=True))
    cosine = _chance(rng, 0.3)
    without = ("table",) if _chance(rng, 0.2) else ()
    names = ("qkv",) + ("table",) * (not without) + ("padding",) * padded + ("logit_scale",) * cosine
    common = _common(rng, names, arch_share=0.3)
    if not set(common["frozen"]) < set(names):
        common["frozen"] = ()
    kept = tuple(name for name in ("table", "logit_scale") if name in names and _chance(rng, 0.5))
    case = dict(
        batch=rng.choice((1, 1, 2, 3)),
        heads=rng.choice((1, 1, 2, 3)),
        dim=rng.choice(HEAD_DIMS),
        image=image,
        window=window,
        shift=shift,
        wrap=wrap,
        mask_value=rng.choice((-100.0, -100.0, None, 0.0, -3.0)),
        temperature=rng.choice((0.0, 2.0, 2.0, 5.0)) if cosine else None,
        scale=0.3 if not cosine and _chance(rng, 0.2) else None,
    )
    common |= dict(wide=kept if common["dtype"] != "fp32" else (), without=without)
    if _chance(rng, _SPECIAL) and not padded:  # the formula multiplies NaN by the 0 that a padded query's gradient is
        index = (rng.randrange(case["batch"]), rng.randrange(image[0]), rng.randrange(image[1]))
        common["values"] = {"qkv": ((index, "nan"),)}
    return WindowCase(**common, **case)


def _local_attention(rng: random.Random) -> LocalCase:
    border = rng.choice(("clamp", "clamp", "exclude", "keep", "keep", "wrap"))
    size = (rng.choice((2, 3, 3, 4, 5, 7, 8)), rng.choice((1, 2, 3, 4, 5, 7)))
    if border == "clamp" or (border != "wrap" and _chance(rng, 0.4)):
        block, halo = (1, 1), tuple(rng.choice((0, 1, 1, 2, 3, 4)) for _ in range(2))
    else:
        block = size
        halo = rng.choice(((0, 0), block, tuple(rng.randrange(b + 1) for b in block)))
    dilation = (1, 1) if border == "wrap" or _chance(rng, 0.6) else (rng.choice((1, 2, 3)), rng.choice((1, 2)))
    least = [(2 * h + 1) * d if border == "clamp" else 1 for h, d in zip(halo, dilation, strict=True)]
    image = tuple(n + rng.choice((2, 3, 4, 5, 6, 8) if n == 1 and _chance(rng, 0.9) else (0, 1, 3, 5)) for n in least)
    table, rel = _chance(rng, 0.5), _chance(rng, 0.3)
    padding = border == "keep" and halo == (0, 0) and _chance(rng, 0.5)
    names = ("qkv",) + ("table",) * table + ("rel_h", "rel_w") * rel + ("padding",) * padding
    common = _common(rng, names, arch_share=0.3)
    if not set(common["frozen"]) < set(names):
        common["frozen"] = ()
    if table and common["dtype"] != "fp32" and _chance(rng, 0.5):
        common["wide"] = ("table",)
    case = dict(
        batch=rng.choice((1, 1, 2)),
        heads=rng.choice((1, 1, 2, 3)),
        dim=rng.choice(HEAD_DIMS),
        neighbor=(rng.randrange(-1, 2), rng.randrange(-1, 2)) if block == halo and _chance(rng, 0.4) else None,
        lse=_chance(rng, 0.3),
        scale=0.3 if _chance(rng, 0.2) else None,
    )
    if common["backward"] and case["lse"] and _chance(rng, 0.5) and "grad out" in common["layouts"]:
        common["layouts"]["grad lse"] = rng.choice(OPERAND_LAYOUTS)
    locality = dict(image=image, block=block, halo=halo, border=border, dilation=dilation)
    return LocalCase(**common, **case, **locality, table=table, rel=rel, padding=padding)


def _sparse_attention(rng: random.Random) -> SparseCase:
    from vitkern.kernels.sparse_attention import sparse_takes

    gated = _chance(rng, 0.6)
    names = ("q", "k", "v") + ("query_gate", "key_gate") * gated
    common = _common(rng, names, arch_share=0.5)
    if not set(common["frozen"]) < set(names):
        common["frozen"] = ()
    if gated and common["dtype"] != "fp32" and _chance(rng, 0.7):
        common["wide"] = ("query_gate", "key_gate")
    itemsize = 4 if common["dtype"] == "fp32" else 2
    fitting = [(m, dim) for m in LENGTHS for dim in HEAD_DIMS if sparse_takes(m, dim, itemsize, common["arch"])]
    n, m = _length(rng), rng.choice(sorted({m for m, _ in fitting}))
    dim = rng.choice([dim for length, dim in fitting if length == m])
    batch, heads, padded = rng.choice((1, 2, 3)), rng.choice((1, 1, 2, 3)), _chance(rng, 0.4)
    if _chance(rng, _SPECIAL) and not padded:
        name = rng.choice("qkv")
        row = rng.randrange(batch), rng.randrange(heads), rng.randrange(n if name == "q" else m)
        common["values"] = {name: ((row, "nan"),)}
    return SparseCase(
        **common,
        batch=batch,
        heads=heads,
        n=n,
        m=m,
        dim=dim,
        sampled=rng.randrange(n + 1) if _chance(rng, 0.5) else 0,
        gated=gated,
        padded=padded,
        strength=rng.choice((0.0, 1.0, 10.0, 1e3)) if gated else 10.0,
        scale=0.3 if _chance(rng, 0.2) else None,
    )


def _layernorm(rng: random.Random) -> LayerNormCase:
    shape = rng.choice(((1,), (2,), (17,), (64,), (65,), (3, 5), (2, 33), (2, 4, 9), (1, 1, 1), (3, 1, 7)))
    residual = _chance(rng, 0.4)
    without = tuple(name for name in ("weight", "bias") if _chance(rng, 0.1))
    names = tuple(name for name in ("x", "weight", "bias") if name not in without) + ("residual",) * residual
    common = _common(rng, names, arch_share=0.3)
    if not set(common["frozen"]) < set(names):
        common["frozen"] = ()
    kept = ("weight", "bias") if common["dtype"] != "fp32" and _chance(rng, 0.3) else ()
    common |= dict(wide=tuple(name for name in kept if name in names), without=without)
    if residual and _chance(rng, 0.5) and "grad out" in common["layouts"]:
        common["layouts"]["grad sum"] = rng.choice(OPERAND_LAYOUTS)
    if _chance(rng, _SPECIAL):
        index = tuple(rng.randrange(size) for size in shape)
        common["values"] = {rng.choice(("x",) + ("residual",) * residual): ((index, rng.choice(("nan", "inf"))),)}
    eps, offset = rng.choice((1e-6, 1e-5, 1e-12, 1e-3)), rng.choice((0.0, 0.0, 1.0))
    return LayerNormCase(
        **common, shape=shape, channels=rng.choice(CHANNELS), residual=residual, offset=offset, eps=eps
    )


def _layernorm_mlp(rng: random.Random) -> MLPCase:
    optional = ("norm_weight", "norm_bias", "fc1_bias", "fc2_bias", "layer_scale", "row_scale")
    without = tuple(name for name in optional if _chance(rng, 0.4 if "scale" in name else 0.08))
    every = ("x", "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "layer_scale")
    names = tuple(name for name in (*every, "row_scale") if name not in without)
    common = _common(rng, names, arch_share=0.3)
    if _chance(rng, 0.3):
        common |= dict(backward=False, frozen=())
    if not set(common["frozen"]) < set(names):
        common["frozen"] = ()
    kept = ("norm_weight", "norm_bias", "layer_scale") if common["dtype"] != "fp32" and _chance(rng, 0.3) else ()
    common |= dict(wide=tuple(name for name in kept if name in names), without=without)
    case = dict(
        batch=rng.choice((1, 2, 3)),
        tokens=rng.choice((1, 2, 9, 16, 25, 33, 49)),
        channels=rng.choice(WIDTHS),
        hidden=rng.choice(WIDTHS),
        act=rng.choice(("gelu", "gelu_tanh", "quick_gelu")),
        post_norm=_chance(rng, 0.4),
        eps=rng.choice((1e-6, 1e-5, 1e-3)),
    )
    if case["post_norm"] and common["layouts"].get("fc2_weight") == "expanded":
        del common["layouts"]["fc2_weight"]  # equal channels: a norm of rounding errors
    if _chance(rng, _SPECIAL):
        common["values"] = {"x": (((rng.randrange(case["batch"]), rng.randrange(case["tokens"])), "nan"),)}
    return MLPCase(**common, **case)


_DRAW = {
    "attention": _attention,
    "window_attention": _window_attention,
    "local_attention": _local_attention,
    "sparse_attention": _sparse_attention,
    "layernorm": _layernorm,
    "layernorm_mlp": _layernorm_mlp,
}


def _tiles(case: Case) -> int:
    """Turns of the inner loops of forward and backward, about: the price of a case in the interpreter."""
    if isinstance(case, AttentionCase):
        return _attention_tiles(case, case.batch, case.n, case.m, case.causal, bool(case.mask or case.key_padding))
    if isinstance(case, WindowCase):
        size = math.prod(case.window)
        groups = case.batch * math.prod(-(-a // b) for a, b in zip(case.image, case.window, strict=True))
        return _attention_tiles(case, groups, size, size, False, True)
    if isinstance(case, LocalCase):
        return _local_tiles(case)
    if isinstance(case, SparseCase):
        rows = -(-(case.sampled or case.n) // 32) * max(1, case.m // 64)
        return case.batch * case.heads * rows * (4 if case.backward else 1)
    if isinstance(case, MLPCase):
        rows, blocks = -(-case.batch * case.tokens // 32), -(-case.hidden // 64) + -(-case.channels // 64)
        inner = -(-max(case.channels, case.hidden) // 64)
        return rows * blocks * max(1, inner // 2) * (3 if case.backward else 1) // 2
    return -(-math.prod(case.shape) * case.channels // 8192)


def _local_tiles(case: LocalCase) -> int:
    from vitkern.kernels.loop.blocks import local_tile

    groups, queries, keys = case.batch, 1, 1
    for size, block, halo, dilation in zip(case.image, case.block, case.halo, case.dilation, strict=True):
        ranks = -(-size // dilation)
        tile = local_tile(block, halo, ranks, case.border == "wrap", False, case.arch)
        groups, queries, keys = groups * dilation * -(-ranks // tile), queries * tile, keys * (tile + 2 * halo)
    return 2 * _attention_tiles(case, groups, queries, keys, True, True)


def _attention_tiles(case, groups: int, n: int, m: int, causal: bool, terms: bool) -> int:
    from vitkern.kernels.loop.blocks import stream_forward_config
    from vitkern.kernels.tile.blocks import short_forward_config, short_tile
    from vitkern.kernels.tile.short_attention import short_takes

    itemsize = 4 if case.dtype == "fp32" else 2
    walks = terms or bool(getattr(case, "bias", ""))
    if not causal and short_takes(n, m, case.dim, itemsize, walks):
        rows, columns = short_tile(n, m)
        config = short_forward_config(rows, columns, itemsize, case.arch)
        turns = -(-n // config.block_m)
    else:
        config = stream_forward_config(case.dim, itemsize, case.arch, n, walks, causal, False)
        turns = -(-n // config.block_m) * -(-m // config.block_n)
    passes = 3.5 if case.backward else 1
    return round(turns * groups * case.heads * passes)

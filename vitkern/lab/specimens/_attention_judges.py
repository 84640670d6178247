"""The dense problems that judge the kernels of the loop and of the tile, and the mutants of these that they let live.

Small, and of several features at once; ordered from the telling to the special.
"""

import torch

from vitkern.lab.breaking.checks import BRAIN, HALF, SINGLE, Checks, Trials, quick
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.proving.problem import forward_alone
from vitkern.lab.specimens._attention import key_padding, random_mask
from vitkern.lab.specimens._attention_case import packed, problem

_LSE = dict(outputs=("out", "lse"), return_lse=True)


def _both_masks(generator):
    return random_mask(1, 1, 19, 21, empty_row=True)(generator) | key_padding(2, 21)(generator)


def _far_below(generator):
    return dict(mask=torch.full((18, 20), -300.0, dtype=torch.float64))


_MASKED = dict(keys=21, kv_heads=1, bias=(1, 2, 19, 21), extra=_both_masks)
_GROUPED = problem("grouped heads, bias, masks", (2, 2, 19, 40), **_MASKED, **_LSE)
_CAUSAL = problem("causal, more keys", (2, 2, 18, 20), keys=37, causal=True, **_LSE)
_FEW = problem("few, grouped heads", (2, 4, 5, 20), keys=19, kv_heads=2, **_LSE)
_BIASES = tuple(
    problem(f"streamed, bias {shape}", (2, 2, 18, 40), keys=20, bias=shape)
    for shape in ((2, 1, 18, 20), (2, 2, 18, 20), (1, 1, 18, 20), (1, 2, 1, 20), (2, 2, 18, 1))
)
_ALONG = problem("causal, bias of the batch", (3, 2, 17, 16), keys=20, bias=(1, 1, 17, 20), causal=True)
_HALF_CAUSAL = problem("causal, grouped", (1, 2, 20, 64), keys=33, kv_heads=1, causal=True, bias=(1, 2, 20, 33))
_HALF_MORE = problem("grouped, bias", (1, 2, 33, 72), keys=50, kv_heads=1, bias=(1, 2, 33, 50))
STREAMED: Trials = (
    *quick(SINGLE, _FEW, _GROUPED, _CAUSAL, apart=1),
    *quick(SINGLE, problem("whole blocks", (1, 2, 32, 64), kv_heads=1, scale=0.3)),
    *quick(SINGLE, problem("causal, more queries", (1, 2, 37, 16), keys=18, causal=True)),
    *quick(SINGLE, problem("causal, whole key blocks", (1, 2, 18, 16), keys=32, causal=True), pool=None),
    *quick(SINGLE, problem("logits far below zero", (1, 1, 18, 40), keys=20, extra=_far_below), pool=None),
    *quick(SINGLE, *_BIASES[:2], pool=None),
    *quick(BRAIN, _HALF_CAUSAL, pool=None),
    *quick(BRAIN, _HALF_MORE),
    *quick(HALF, _HALF_CAUSAL, pool=None),
    *quick(HALF, problem("long rows", (1, 1, 20, 80), keys=150), _HALF_MORE),
    *quick(HALF, problem("blocks of a GPU", (1, 1, 70, 40), keys=96), arch=90),
    *quick(SINGLE, *_BIASES[2:], _ALONG, pool=None),
)

_ROWS, _ROWS_BIASED, _ROWS_PACKED, _ROWS_EVEN, _ROW, _ROWS_LONG = map(
    forward_alone,
    (
        problem("rows", (2, 4, 35, 72), keys=50, kv_heads=2, scale=0.3, **_LSE),
        problem("rows, bias", (2, 2, 35, 72), keys=50, bias=(2, 2, 35, 50), scale=0.3, **_LSE),
        packed("packed rows", 2, 37, 3, 80, **_LSE),
        problem("whole blocks", (1, 2, 32, 128), **_LSE),
        problem("one token", (3, 2, 1, 72), **_LSE),
        problem("rows, blocks of a GPU", (1, 1, 130, 40), keys=140),
    ),
)
HOPPER: Trials = (
    *quick(HALF, _ROWS, _ROWS_BIASED, apart=8, descriptors=True),
    *quick(BRAIN, _ROWS_PACKED, descriptors=True),
    *quick(HALF, _ROWS_EVEN, descriptors=True),
    *quick(HALF, _ROW, descriptors=True, pool=None),
    *quick(HALF, _ROWS_LONG, descriptors=True, arch=90),
)

_MASK = random_mask(3, 1, 19, 30, empty_row=True)
_HELD = problem("bias of the batch", (3, 2, 19, 24), keys=30, bias=(1, 2, 19, 30), extra=_MASK, **_LSE)
_STRIDED = problem("bias of each", (3, 2, 49, 16), keys=33, bias=(3, 2, 49, 33), **_LSE)
_CHUNK = problem("bias of the batch, two blocks of rows", (3, 2, 49, 16), keys=33, bias=(2, 49, 33))
_HEADS = problem("bias of the sample", (3, 2, 20, 16), keys=18, bias=(3, 1, 20, 18))
_PACKED = packed("packed", 3, 19, 2, 24)
SHORT: Trials = (
    *quick(SINGLE, _HELD, _STRIDED, apart=1),
    *quick(SINGLE, _PACKED, _CHUNK, _HEADS),
    *quick(BRAIN, _HELD, _PACKED),
    *quick(HALF, packed("packed, several blocks of rows", 1, 70, 2, 64), _STRIDED),
)

_CAPPED, _APART = dict(softcap=1.5, sinks=True), ("soft cap, sinks, another width", (2, 2, 18, 40))
HOOKED: Trials = (
    *quick(SINGLE, problem(*_APART, keys=20, width=24, bias=(1, 2, 18, 20), **_CAPPED, **_LSE), apart=1),
    *quick(HALF, problem(*_APART, keys=50, width=64, causal=True, **_CAPPED)),
    *quick(SINGLE, problem("many keys", (1, 1, 5, 16), keys=70, sinks=True, **_LSE)),
    *quick(SINGLE, problem("many queries", (1, 1, 70, 16), keys=5), packed("packed", 1, 40, 1, 16, **_CAPPED)),
)

_OBLONG = quick(HALF, problem("oblong tiles of a bias", (1, 1, 70, 72), keys=40, bias=(1, 1, 70, 40)), arch=90)
_LOOP = Checks(STREAMED + HOOKED, ("dropout",), ("test_attention.py", "test_hooks.py"))
_TILE = Checks(SHORT, (), ("test_short_attention.py",))
JUDGES = {
    "attention": Checks(SHORT + STREAMED[:7] + HOOKED, ("dropout",), ("test_attention.py",)),
    **dict.fromkeys(("loop/blocks", "loop/constants", "loop/heads"), _LOOP),
    **dict.fromkeys(("loop/logits", "loop/splits", "loop/starts"), Checks(HOOKED, (), ("test_hooks.py",))),
    "loop/norms": Checks((), (), ("test_hooks.py",)),
    "loop/reductions": Checks(STREAMED[1:2], (), ("test_hooks.py",)),
    "loop/weighing": Checks(STREAMED[:1], ("dropout",), ("test_hooks.py",)),
    "loop/scores": Checks(STREAMED + SHORT[:1], (), ("test_attention.py",)),
    "loop/stream": _LOOP,
    "loop/stream_backward": _LOOP,
    "loop/stream_bias": Checks((STREAMED[1], *STREAMED[5:], *_OBLONG), ("dropout",), ("test_attention.py",)),
    "loop/stream_hopper": Checks(HOPPER, (), ("test_stream_hopper.py",)),
    "loop/tokens": Checks(SHORT[:1] + STREAMED[:2]),
    "machine/launch": Checks(HOPPER[:1], (), ("test_stream_hopper.py",)),
    "machine/tiles": Checks(STREAMED + SHORT, ("dropout",), ("test_attention.py", "test_short_attention.py")),
    **dict.fromkeys(("tile/blocks", "tile/short_attention", "tile/short_attention_backward"), _TILE),
    "window_attention": Checks(SHORT[:2] + STREAMED[:2]),
}

_NO_KEY = "only in rows without a key, where every logit is -inf: exp2(-inf - 1) is exp2(-inf - 0)"
SURVIVORS = {
    "heads.inner_products:drop-float32:4": Survivor(
        "b[n].to(tl.float32) -> b[n]",
        "the other factor is float32, and widens it just so",
    ),
    "heads.store_head:drop-int64:1": Survivor(
        "head.to(tl.int64) -> head",
        "launchers allocate what is stored with heads side by side: head * stride stays below the channels of a row",
    ),
    "scores._term:drop-other:2": Survivor(
        "tl.load(where, mask=inside, other=0) -> tl.load(where, mask=inside)",
        "masked lanes are keys past the last, which the callers forbid after the hook, or whose rows and "
        "columns they do not store",
    ),
    "short_attention_backward._short_bwd:wrong-constant:3": Survivor("0.0 -> 1.0", _NO_KEY),
    "short_attention_backward._short_bwd:wrong-index:17": Survivor(
        "head -> (head * 0)",
        "a padding query has no gradient: dP and dS are zero in its row whatever q is, and its dQ is not stored",
    ),
    "starts.empty:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "minus infinity is exact in float16 and the maximum is float32 from the first turn on; compiled, the changing "
        "type is refused",
    ),
    "stream_bias._stream_bwd_bias:wrong-constant:4": Survivor(
        "0.0 -> 1.0", "only where there is no query, whose weights are 0"
    ),
    "stream_bias._stream_bwd_bias:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "zero is exact in float16 and the sum is float32 from the first addition on; compiled, the "
        "changing type is refused",
    ),
    "stream_hopper._stream_hopper_fwd:narrow-accumulator:2": Survivor(
        "tl.float32 -> tl.float16",
        "zero is exact in float16 and the total is float32 from the first turn on; compiled, the changing type is "
        "refused",
    ),
    "logits._tanh:wrong-constant:1": Survivor(
        "7.90531110763549805 -> 7.913031138014048",
        "beyond either number tanh is 1 to the last bit of float32",
    ),
    "norms.unit:drop-float32:1": Survivor(
        "rows[n].to(tl.float32) -> rows[n]",
        "the other factor is float32, and widens it just so",
    ),
    "splits._combine_softmax:wrong-constant:4": Survivor(
        "1.0 -> 1.0009765625",
        "only in rows without a key, which are 0 over it, and whose logarithm is -inf + log(1.001)",
    ),
    "splits._add_parts:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "zero is exact in float16 and the sum is float32 from the first addition on; compiled, the changing type is "
        "refused",
    ),
    "splits._add_parts:drop-int64:3": Survivor(
        "i.to(tl.int64) -> i",
        "shows beyond 2^31 elements alone, where the cases of `lab offsets` find it",
        equivalent=False,
    ),
    "stream_backward._stream_bwd_dkdv:wrong-constant:3": Survivor(
        "0.0 -> 1.0", "only where there is no query, whose weights are 0"
    ),
    "norms.unit_backward:compare:1": Survivor(
        "inverse < 1e12 -> (inverse <= 1e12)",
        "rows of exactly the shortest length do not come up: those below are found",
    ),
    "norms.unit_backward:wrong-constant:2": Survivor(
        "0.0 -> 1.0",
        "times rows that are shorter than 1e-12, beside gradients that are multiplied by 1e12",
    ),
    "norms.unit_backward:drop-float32:1": Survivor(
        "rows[n].to(tl.float32) -> rows[n]",
        "the other factor is float32, and widens it just so",
    ),
    "starts.sink:drop-float32:1": Survivor(
        "tl.load(args[0] + head).to(tl.float32) -> tl.load(args[0] + head)",
        "the interpreter multiplies half precision by a number in float32 either way; compiled, it would round",
        equivalent=False,
    ),
    "starts.sink:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "zero is exact in float16, and the logit that is added is float32",
    ),
    "starts.sink:narrow-accumulator:2": Survivor(
        "tl.float32 -> tl.float16",
        "one is exact in float16 and the total is float32 from the first turn on; compiled, the changing type is "
        "refused",
    ),
    "weighing.dropout:flip-sign:1": Survivor(
        "qi * 0 + ki * 0 -> (qi * 0 - (ki * 0))",
        "zeros of the shape of the tile either way",
    ),
    "tiles.load_pivot:wrong-constant:1": Survivor("0.0 -> 1.0", _NO_KEY),
}

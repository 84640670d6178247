"""Mutants that live, by name, each with the reason in a line that a stranger can check.

An entry holds for the very change that it names: where the source has changed since, it counts no more.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Survivor:
    """``equivalent``: the program computes the same, so there is nothing to find; else it is a gap that is known."""

    change: str
    reason: str
    equivalent: bool = True


SURVIVORS: dict[str, Survivor] = {
    "epilogues.add_residual:drop-other:1": Survivor(
        "tl.load(row_scale + row // sample_rows, mask=row < rows, other=0.0) -> tl.load(row_scale + row // "
        "sample_rows, mask=row < rows)",
        "masked lanes are rows past the last, which the store at the end leaves out",
    ),
    "heads.inner_products:drop-float32:4": Survivor(
        "b[n].to(tl.float32) -> b[n]",
        "the other factor is float32, and widens it just so",
    ),
    "heads.store_head:drop-int64:1": Survivor(
        "head.to(tl.int64) -> head",
        "launchers allocate what is stored with heads side by side: head * stride stays below the channels of a row",
    ),
    "layernorm._layernorm_fwd:drop-other:1": Survivor(
        "tl.load(row_scale + row // sample_rows, mask=row_mask, other=0.0) -> tl.load(row_scale + row // "
        "sample_rows, mask=row_mask)",
        "masked lanes are rows past the last, which the store at the end leaves out",
    ),
    "tiles.load_channels:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "the default is 0 or 1, exact in float16, and is only combined with float32 tiles, which keeps them float32",
    ),
    "tiles.load_tile:wrong-constant:1": Survivor(
        "0.0 -> 1.0",
        "this branch loads the residual of the MLP kernel; what it gives outside the rows and channels is "
        "added and not stored",
    ),
    "locality.near:drop-float32:1": Survivor(
        "tl.load(y_where, mask=seen, other=0.0).to(tl.float32) -> tl.load(y_where, mask=seen, other=0.0)",
        "what is added next is float32, and widens the half-precision number just so",
    ),
    "matmul.load_columns:drop-float32:1": Survivor(
        "tl.load(pointer + col, mask=col < cols, other=0.0).to(tl.float32) -> tl.load(pointer + col, "
        "mask=col < cols, other=0.0)",
        "every caller adds the values to, or multiplies them with, a float32 accumulator, which widens them just so",
    ),
    "matmul.load_columns:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "the default is 0 or 1, exact in float16, and is only combined with float32 accumulators, which "
        "keeps them float32",
    ),
    "matmul.load_columns:wrong-constant:1": Survivor(
        "0.0 -> 1.0",
        "values past the last column reach stores that mask those columns, or are multiplied by a gradient "
        "that is zero there",
    ),
    "mlp._load_weight:drop-int64:1": Survivor(
        "outer.to(tl.int64) -> outer",
        "whole-row kernels have at most 256 channels: the product passes 2^31 with 8 million hidden "
        "channels, 2^31 elements of one weight",
    ),
    "relative_table._reduce_table:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "zero is exact in float16 and the sum is float32 from the first addition on; compiled, the "
        "changing type is refused",
    ),
    "relative_table._reduce_table:shift-index:1": Survivor(
        "tl.program_id(0) -> (tl.program_id(0) + 1)",
        "the head is taken modulo the number of heads, so the programs of a block of entries swap heads among them",
    ),
    "scores._term:drop-other:2": Survivor(
        "tl.load(where, mask=inside, other=0) -> tl.load(where, mask=inside)",
        "masked lanes are keys past the last, which the callers forbid after the hook, or whose rows and "
        "columns they do not store",
    ),
    "scores.regions:drop-mask-term:3": Survivor(
        "(group % cols == cols - 1) & (SHIFT_W > 0) -> (group % cols == cols - 1)",
        "without a shift the later region begins at WINDOW_W, past the last column: it is empty",
    ),
    "scores.tile_and_regions:wrong-index:1": Survivor(
        "group -> (group * 0)",
        "the tile is one that all groups share: its hook does not look at the group",
    ),
    "short_attention_backward._short_bwd:drop-int64:5": Survivor(
        "head.to(tl.int64) -> head",
        "launchers allocate dq with heads side by side: head * stride stays below the channels of a row",
    ),
    "short_attention_backward._short_bwd:wrong-constant:3": Survivor(
        "0.0 -> 1.0",
        "only in rows without a key, where every logit is -inf: exp2(-inf - 1) is exp2(-inf - 0)",
    ),
    "short_attention_backward._short_bwd:wrong-index:17": Survivor(
        "head -> (head * 0)",
        "a padding query has no gradient: dP and dS are zero in its row whatever q is, and its dQ is not stored",
    ),
    "sparse_attention._places:drop-other:1": Survivor(
        "tl.load(index + sequence.to(tl.int64) * K + qi, mask=qi < K, other=0) -> tl.load(index + "
        "sequence.to(tl.int64) * K + qi, mask=qi < K)",
        "masked lanes are queries past the last, whose rows load_rows and store_rows leave out",
    ),
    "stream._stream_fwd:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "minus infinity is exact in float16 and the maximum is float32 from the first turn on; compiled, the changing "
        "type is refused",
    ),
    "stream_axes._store_sums:drop-int64:1": Survivor(
        "head.to(tl.int64) -> head",
        "the launcher allocates what is stored, contiguous, so a head's offset is its number times the few entries of "
        "an axis",
    ),
    "stream_axes._stream_bwd_axes:wrong-constant:1": Survivor(
        "0.0 -> 1.0",
        "only where there is no query, whose weights are 0 and whose sums are not stored",
    ),
    "stream_axes.stream_axes_gradient:other-strides:3": Survivor(
        "v -> q",
        "q, k and v are slices of one tensor and have their strides in common",
    ),
    "stream_backward._stream_bwd_dq:wrong-axis:2": Survivor(
        "1 -> 0",
        "the two sums add up the whole tile, in either order of its axes",
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
    "tiles.keep_mask:flip-sign:4": Survivor(
        "zero + row -> (zero - row)",
        "the counter of a row is its negative: other random numbers, as many of them, drawn alike by "
        "forward and backward",
    ),
    "tiles.load_pivot:wrong-constant:1": Survivor(
        "0.0 -> 1.0",
        "only in rows without a key, where every logit is -inf: exp2(-inf - 1) is exp2(-inf - 0)",
    ),
    "tokens.window:compare:7": Survivor(
        "SHIFT_W > 0 -> (SHIFT_W >= 0)",
        "with a shift of 0 only x >= wrap_w >= img_w would wrap, which both branches call padding and nobody reads",
    ),
}

"""The problems of ``python -m vitkern lab gradients``.

Small, since a full Jacobian takes two launches for every input element, and one for every output element; yet each
kernel runs over several blocks or groups in some case. `full` cases get the whole Jacobian, the others random
directions through it.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitkern.lab.proving.problems import (
    Problem,
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


@dataclass(frozen=True)
class GradientCase:
    """One problem, and how its gradients are checked.

    ``seeds`` inputs are drawn, each with its random directions; ``full``: every entry of the Jacobian instead.
    ``tied`` arguments are the same tensor as another: its gradient is the sum over both uses. ``ordered``: also run
    in float32, twice and with programs in several orders. ``constant``: inputs that the output does not depend on, by
    the formula. ``sample``: also a case of the tests.
    """

    problem: Problem
    full: bool = False
    seeds: int = 1
    tied: dict[str, str] = field(default_factory=dict)
    ordered: bool = False
    constant: tuple[str, ...] = ()
    sample: bool = False

    @property
    def operator(self) -> str:
        return self.problem.function or self.problem.op

    def __str__(self) -> str:
        return f"{self.operator}: {self.problem.name}"


def _only(problem: Problem, *names: str) -> Problem:
    """A gradient for these inputs alone."""
    return replace(problem, name=f"{problem.name}, only d{' d'.join(names)}", gradients=names)


def _dropped_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout_p: float) -> Tensor:
    """The formula with the operator's own mask: the zeros of its output where the values are one-hot. M = D."""
    from vitkern.ops.attention import attention

    one_hot = torch.eye(v.shape[2], dtype=v.dtype).expand(*v.shape[:2], -1, -1)
    kept = attention(q, k, one_hot, bias=bias, dropout_p=dropout_p).detach() != 0
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
    return scores.softmax(-1) * kept / (1 - dropout_p) @ v


def _attention() -> list[GradientCase]:
    """One tile: up to 64 tokens, no causality, no dropout, equal head counts. All others stream, in blocks of 16."""
    both = random_mask(1, 1, 18, 34, empty_row=True)
    biased = attention_problem("streaming, bias of the batch", (2, 1, 18, 2), bias=(1, 1, 18, 18), causal=True)
    dropped = attention_problem("streaming, dropout", (1, 2, 18, 18), bias=(1, 2, 18, 18), dropout_p=0.3)
    short = attention_problem("bias of the batch", (3, 1, 3, 2), keys=4, bias=(1, 1, 3, 4))
    return [
        GradientCase(attention_problem("N=5", (1, 1, 5, 2)), full=True, sample=True),
        GradientCase(short, full=True, ordered=True),
        GradientCase(attention_problem("N=1 M=3", (1, 1, 1, 3), keys=3), full=True),
        GradientCase(attention_problem("bias of each sample, two heads", (2, 2, 5, 2), bias=(2, 1, 5, 5)), seeds=2,
                     sample=True),
        GradientCase(attention_problem("bias of each head, N=40", (3, 2, 40, 3), bias=(2, 40, 40)), seeds=2),
        GradientCase(attention_problem("bias of a row for all queries", (2, 2, 6, 2), keys=7, bias=(2, 1, 7)), seeds=2),
        GradientCase(attention_problem("bias of a column for all keys", (2, 1, 6, 2), keys=7, bias=(2, 1, 6, 1)),
                     constant=("bias",)),
        GradientCase(attention_problem("bias, bool mask, an empty row", (2, 1, 5, 2), bias=(5, 5),
                                       extra=random_mask(2, 1, 5, 5, empty_row=True)), seeds=2),
        GradientCase(attention_problem("additive mask, scale 0.7", (1, 2, 5, 3), scale=0.7,
                                       extra=lambda g: dict(mask=normal(g, 5, 5)))),
        GradientCase(attention_problem("key padding, log-sum-exp", (2, 1, 5, 2), keys=9, extra=key_padding(2, 9),
                                       outputs=("out", "lse"), return_lse=True), seeds=2),
        GradientCase(attention_problem("q, k and v are one tensor", (1, 1, 5, 3)), full=True, tied=dict(k="q", v="q")),
        GradientCase(_only(short, "bias")),
        GradientCase(_only(short, "k")),
        GradientCase(attention_problem("streaming, causal, N=5", (1, 1, 5, 2), causal=True), full=True),
        GradientCase(attention_problem("streaming, causal, N=17, head dim 1", (1, 1, 17, 1), causal=True), full=True),
        GradientCase(attention_problem("streaming, causal, N=20 M=36", (1, 1, 20, 2), keys=36, causal=True), seeds=2),
        GradientCase(attention_problem("streaming, causal, N=34 M=18", (1, 1, 34, 3), keys=18, causal=True)),
        GradientCase(attention_problem("streaming, N=3 M=70", (1, 1, 3, 2), keys=70), seeds=2, sample=True),
        GradientCase(attention_problem("streaming, head dim 34", (1, 1, 17, 34), keys=17)),
        GradientCase(attention_problem("streaming, four heads on two", (1, 4, 5, 2), kv_heads=2), seeds=2),
        GradientCase(attention_problem("streaming, two heads on one, N=18, bias", (1, 2, 18, 2), kv_heads=1,
                                       bias=(1, 2, 18, 18))),
        GradientCase(biased, seeds=2, ordered=True),
        GradientCase(_only(biased, "bias")),
        GradientCase(_only(biased, "q", "v")),
        GradientCase(attention_problem("streaming, bias of a row, mask, an empty row", (1, 1, 18, 2), keys=34,
                                       bias=(1, 1, 1, 34), extra=both, causal=True)),
        GradientCase(attention_problem("streaming, bias of each sample, key padding", (2, 2, 3, 2), keys=18,
                                       causal=True, bias=(2, 1, 3, 18), extra=key_padding(2, 18))),
        GradientCase(replace(dropped, formula=_dropped_attention), seeds=2),
    ]  # fmt: skip


def _packed() -> list[GradientCase]:
    biased = packed_problem("packed, streaming, causal, bias", 1, 18, 2, 2, bias=(2, 18, 18), causal=True)
    return [
        GradientCase(packed_problem("N=4", 1, 4, 1, 2), full=True, sample=True),
        GradientCase(
            packed_problem("N=6, two heads, bias of the batch", 3, 6, 2, 3, bias=(1, 2, 6, 6)), seeds=2, sample=True
        ),
        GradientCase(biased, seeds=2, ordered=True),
        GradientCase(_only(biased, "bias")),
    ]


def _window_attention() -> list[GradientCase]:
    def problem(name, image, window, **options):
        # tokens of other regions, and padding, still count
        return window_problem(name, image, window, **dict(heads=1, dim=2, mask_value=-1.5) | options)

    padded = problem("3x5, shift 1, rolled then padded", (3, 5), (2, 3), shift=(1, 1), heads=2)
    cosine = problem("3x5, shift 1, padded, cosine", (3, 5), (2, 3), shift=(1, 1), heads=2, cosine=True)
    return [
        GradientCase(problem("2x3, one window", (2, 3), (2, 3)), full=True, sample=True),
        GradientCase(problem("4x4 window 2 shift 1", (4, 4), (2, 2), shift=(1, 1)), seeds=2),
        GradientCase(padded, seeds=2),
        GradientCase(problem("3x5, shift 1, padded then rolled", (3, 5), (2, 3), shift=(1, 2), wrap="padded"), seeds=2),
        GradientCase(problem("2x2 in a window of 2x3, cosine", (2, 2), (2, 3), cosine=True), full=True),
        GradientCase(cosine, seeds=2, ordered=True),
        GradientCase(_only(cosine, "table")),
        GradientCase(_only(cosine, "padding")),
        GradientCase(_only(cosine, "logit_scale")),
        GradientCase(_only(padded, "qkv")),
        GradientCase(problem("6x6, regions forbidden", (6, 6), (3, 6), shift=(0, 2), mask_value=None)),
        GradientCase(problem("6x12 window 6 shift 3", (6, 12), (6, 6), shift=(3, 3))),
        GradientCase(problem("5x6 in a window of 6x6, shift 1, cosine", (5, 6), (6, 6), shift=(1, 1), cosine=True),
                     sample=True),
        GradientCase(problem("streaming, 5x13, cosine", (5, 13), (5, 13), cosine=True)),
        GradientCase(problem("streaming, 8x8 in a window of 8x9, shift 3, padded then rolled", (8, 8), (8, 9),
                             shift=(3, 3), wrap="padded")),
        GradientCase(problem("streaming, 9x8 in a window of 9x9, shift 4, rolled then padded, cosine", (9, 8), (9, 9),
                             shift=(4, 4), cosine=True, mask_value=None)),
    ]  # fmt: skip


def _local_attention() -> list[GradientCase]:
    def problem(*arguments, **options):
        return local_problem(*arguments, **dict(heads=1, dim=2) | options)

    halo = problem("4x6, block 2, halo 1", (4, 6), (2, 2), (1, 1), rel=True, table=True, lse=True)
    window = problem("3x3, windows of 2 that stick out", (3, 3), (2, 2), rel=True, padding=True, heads=2)
    return [
        GradientCase(problem("4x3, 3x3 around each", (4, 3), (1, 1), (1, 1), "clamp", table=True), full=True,
                     sample=True),
        GradientCase(problem("7x9, 3x3 around each, dilation 2, log-sum-exp", (7, 9), (1, 1), (1, 1), "clamp",
                             dilation=(2, 2), table=True, lse=True), seeds=2),
        GradientCase(problem("5x6, 3x5 around each, zeros outside", (5, 6), (1, 1), (1, 2), rel=True), ordered=True),
        GradientCase(halo, seeds=2, ordered=True, sample=True),
        GradientCase(window, full=True),
        GradientCase(problem("5x4, chunks of 2x3", (5, 4), (2, 3), (2, 3), "exclude", table=True)),
        GradientCase(problem("5x4, cyclic chunks of 2x3", (5, 4), (2, 3), (2, 3), "wrap", table=True, heads=2)),
        GradientCase(problem("4x5, a chunk and one more", (4, 5), (2, 2), (2, 2), "wrap", neighbor=(0, 1)), full=True),
        *(GradientCase(_only(halo, name)) for name in ("table", "rel_h", "rel_w")),
        GradientCase(_only(window, "padding"), sample=True),
    ]  # fmt: skip


def _sparse_attention() -> list[GradientCase]:
    gated = sparse_problem("gates, padding", 2, 2, 5, 7, 3, gated=True, padded=True, strength=2.0)
    return [
        GradientCase(sparse_problem("N=5 M=4", 1, 1, 5, 4, 2), full=True),
        GradientCase(sparse_problem("3 of 6 queries, gates", 1, 1, 6, 4, 2, sampled=3, gated=True, strength=2.0),
                     full=True, sample=True),
        GradientCase(gated, seeds=2, ordered=True),
        GradientCase(sparse_problem("N=40 M=20, scale 0.7", 1, 2, 40, 20, 3, gated=True, strength=2.0, scale=0.7)),
        *(GradientCase(_only(gated, name)) for name in ("q", "k", "v", "query_gate", "key_gate")),
    ]  # fmt: skip


def _layernorm() -> list[GradientCase]:
    residual = layernorm_problem("5 rows of 6, residual", 5, 6, residual=True)
    bare = replace(
        layernorm_problem("6 rows of 5, no weight, no bias", 6, 5),
        inputs=lambda g: dict(x=normal(g, 6, 5), weight=None, bias=None),
        gradients=("x",),
    )
    return [
        GradientCase(layernorm_problem("6 rows of 5, mean 3", 6, 5, offset=3.0), full=True),
        GradientCase(residual, full=True, sample=True),
        GradientCase(layernorm_problem("(2, 3) rows of 16, eps 0.1", (2, 3), 16, eps=0.1), full=True),
        GradientCase(bare, full=True),
        GradientCase(layernorm_problem("75 rows of 3, residual", 75, 3, residual=True), seeds=2, ordered=True),
        GradientCase(layernorm_problem("35 rows of 65", 35, 65), seeds=2),
        GradientCase(layernorm_problem("x is its residual", 5, 6, residual=True), full=True, tied=dict(residual="x")),
        *(GradientCase(_only(residual, name)) for name in ("x", "weight", "bias", "residual")),
    ]  # fmt: skip


def _layernorm_mlp() -> list[GradientCase]:
    plain = mlp_problem("C=4 F=6", 1, 3, 4, 6)
    scaled = mlp_problem("two samples, LayerScale, DropPath, gelu_tanh", 2, 3, 4, 5, scales=True, act="gelu_tanh")
    post = mlp_problem("post-norm, LayerScale, DropPath", 2, 3, 4, 5, scales=True, post_norm=True)
    wide = mlp_problem("70 rows of 20, F=70", 2, 35, 20, 70, scales=True, act="quick_gelu")
    square = mlp_problem("fc2 is fc1, LayerScale the norm's weight", 2, 2, 4, 4, scales=True)
    weights = "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "layer_scale"

    def without(problem, *names):
        return replace(
            problem,
            name=f"{problem.name}, without {' '.join(names)}",
            inputs=lambda g: problem.inputs(g) | dict.fromkeys(names),
            gradients=tuple(name for name in problem.gradients if name not in names),
        )

    def value(problem):
        """Without a gradient nothing is kept, and up to 256 channels one kernel does it all."""
        return GradientCase(replace(problem, name=f"{problem.name}, value only", gradients=()))

    return [
        GradientCase(plain, full=True),
        GradientCase(mlp_problem("C=3 F=4, quick_gelu", 1, 2, 3, 4, act="quick_gelu"), full=True, sample=True),
        GradientCase(scaled, full=True),
        GradientCase(post, full=True),
        GradientCase(mlp_problem("post-norm, quick_gelu", 1, 3, 5, 7, post_norm=True, act="quick_gelu"), seeds=2),
        GradientCase(mlp_problem("post-norm, gelu_tanh", 1, 3, 5, 7, post_norm=True, act="gelu_tanh"), seeds=2),
        GradientCase(without(plain, "norm_weight", "norm_bias", "fc1_bias", "fc2_bias"), seeds=2),
        GradientCase(without(post, "norm_weight", "norm_bias", "layer_scale"), seeds=2),
        GradientCase(square, seeds=2, tied=dict(fc2_weight="fc1_weight", layer_scale="norm_weight")),
        GradientCase(wide, seeds=2, ordered=True),
        GradientCase(mlp_problem("C=264, norm of its own", 2, 2, 264, 5, scales=True), sample=True),
        GradientCase(mlp_problem("C=264, post-norm", 2, 2, 264, 5, scales=True, post_norm=True)),
        GradientCase(mlp_problem("C=520, split", 2, 2, 520, 5, scales=True)),
        GradientCase(mlp_problem("C=520, split, post-norm", 2, 2, 520, 5, scales=True, post_norm=True)),
        *(value(problem) for problem in (plain, scaled, post, wide)),
        *(GradientCase(_only(scaled, name)) for name in ("x", *weights)),
        *(GradientCase(_only(post, name)) for name in ("norm_weight", "fc1_weight", "layer_scale")),
    ]


CASES = (
    *_attention(),
    *_packed(),
    *_window_attention(),
    *_local_attention(),
    *_sparse_attention(),
    *_layernorm(),
    *_layernorm_mlp(),
)

"""Softmax attention over dense tokens: validation, dispatch, the registered operators and the PyTorch path."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops import checks
from vitkern.ops.attention.softmax import attention_in_pytorch, kernel_in_pytorch, packed_kernel_in_pytorch
from vitkern.ops.sdpa import differentiable_sdpa
from vitkern.plans import plan_of
from vitkern.reference.attention import Terms
from vitkern.register import kernel_op

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_HEAD_DIM = 256
MIN_SOFTCAP, MAX_SOFTCAP = 1e-30, 1e30  # what float32 holds with its inverse, and with room


@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[False] = False, **terms: "Unpack[Terms]"
) -> Tensor: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: Literal[True], **terms: "Unpack[Terms]"
) -> tuple[Tensor, Tensor]: ...
@overload
def attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool, **terms: "Unpack[Terms]"
) -> Tensor | tuple[Tensor, Tensor]: ...
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(cap(q k^T * scale) + bias + mask) v without the (B, H, N, M) scores in memory (FlashAttention-2, arXiv
    2307.08691).

    Args:
        q: (B, H, N, D), float16, bfloat16 or float32 (float64 and D > 256 run in PyTorch); any strides.
        k: (B, Hk, M, D), v: (B, Hk, M, Dv), dtype of ``q``; Hk divides H, and query head h reads key head
        h // (H / Hk).
        bias: added to the logits, broadcastable to (B, H, N, M), any floating dtype; its gradient is summed in
        float32, deterministically. mask: broadcastable to (B, H, N, M). Bool: True attends. Floating: added to the
        logits. A constant. key_padding_mask: (B, M) bool, True attends.
        causal: query i attends to keys j <= i + M - N, so the last query sees all keys.
        scale: factor of q k^T; 1 / sqrt(D) by default.
        dropout_p: probability of dropping an attention weight; the random numbers follow torch.manual_seed.
        softcap: the scaled products become softcap tanh(product / softcap) (Gemma 2, arXiv 2408.00118, section 2).
        sinks: (H,), any floating dtype: one more logit of each head, for a key whose value is 0 (arXiv 2309.17453,
        section 3.3); its gradient is summed in float32.
        return_lse: also return the logarithm of each row's softmax denominator. It carries no gradient.

    Returns:
        (B, H, N, Dv) in the dtype of ``q`` (the autocast dtype under autocast), laid out as contiguous (B, N, H, Dv),
        so that ``.transpose(1, 2).flatten(2)`` copies nothing. With ``return_lse`` also (B, H, N) float32, natural
        logarithm. A row that may attend to nothing is 0, its logarithm that of its sink or -inf, its gradients 0.

    Raises:
        TypeError: dtypes differ or are unsupported, or an argument is not a dense tensor.
        ValueError: shapes, devices or numbers do not fit, or ``mask`` requires a gradient.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "attention"
    call = plan_of(op, (q, k, v, bias, mask, key_padding_mask, sinks), (causal, scale, dropout_p, softcap))
    if not call.checked:
        for name, tensor in (("q", q), ("k", k), ("v", v)):
            checks.check_tensor(op, name, tensor, ndim=4)
    if call.casts:
        q, k, v = autocast(q, k, v)
    if not call.checked:
        checks.check_same(op, q=q, k=k, v=v)
        _check_heads(op, q, k, v)
        _check_terms(op, q, k, bias, mask, key_padding_mask, causal, scale, dropout_p)
        _check_cap_and_sinks(op, q, softcap, sinks)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    cap = 0.0 if softcap is None else float(softcap)
    terms = (_four(bias), _four(mask), key_padding_mask, sinks)
    if call.known or call.runs_kernel((q, k, v, bias, mask, key_padding_mask, sinks), _reasons(q, v)):
        out, lse = call.run(attention_op, q, k, v, *terms, _seed(q, dropout_p), scale, causal, dropout_p, cap)
        out = out.transpose(1, 2)
    else:
        with differentiable_sdpa(*terms):
            out, lse = attention_in_pytorch(q, k, v, *terms, scale, causal, dropout_p, cap, return_lse)
    return (out, lse) if return_lse else out


@overload
def attention_qkvpacked(qkv: Tensor, *, return_lse: Literal[False] = False, **terms: "Unpack[Terms]") -> Tensor: ...
@overload
def attention_qkvpacked(
    qkv: Tensor, *, return_lse: Literal[True], **terms: "Unpack[Terms]"
) -> tuple[Tensor, Tensor]: ...
@overload
def attention_qkvpacked(
    qkv: Tensor, *, return_lse: bool, **terms: "Unpack[Terms]"
) -> Tensor | tuple[Tensor, Tensor]: ...
def attention_qkvpacked(
    qkv: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`attention` on the output of a joint projection; its gradient is one tensor, with no concatenation.

    Args:
        qkv: (B, N, 3, H, D), that is ``linear(x).view(B, N, 3, H, D)``. The other arguments are those of `attention`.

    Returns:
        (B, N, H, D), contiguous; with ``return_lse`` also (B, H, N) float32.

    Raises:
        As `attention` does.
    """
    op = "attention_qkvpacked"
    call = plan_of(op, (qkv, bias, mask, key_padding_mask, sinks), (causal, scale, dropout_p, softcap))
    if not call.checked:
        checks.check_tensor(op, "qkv", qkv, ndim=5)
        checks.check_shape(op, "qkv", qkv, (None, None, 3, None, None), "(B, N, 3, H, D)")
    if call.casts:
        (qkv,) = autocast(qkv)
    if not call.checked:
        q, k, v = _heads_of(qkv)
        _check_heads(op, q, k, v)
        _check_terms(op, q, k, bias, mask, key_padding_mask, causal, scale, dropout_p)
        _check_cap_and_sinks(op, q, softcap, sinks)
    scale = 1 / math.sqrt(qkv.shape[-1]) if scale is None else float(scale)
    cap = 0.0 if softcap is None else float(softcap)
    terms = (_four(bias), _four(mask), key_padding_mask, sinks)
    if call.known or call.runs_kernel((qkv, bias, mask, key_padding_mask, sinks), _reasons(qkv)):
        out, lse = call.run(attention_qkvpacked_op, qkv, *terms, _seed(qkv, dropout_p), scale, causal, dropout_p, cap)
    else:
        with differentiable_sdpa(*terms):
            out, lse = attention_in_pytorch(*_heads_of(qkv), *terms, scale, causal, dropout_p, cap, return_lse)
        out = out.transpose(1, 2)
    return (out, lse) if return_lse else out


def _heads_of(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, H, N, D) of (B, N, 3, H, D)."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _check_heads(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.shape[-1] == 0:
        raise ValueError(f"{op}: head dim is 0: got q {tuple(q.shape)}; expected at least 1.")
    batch, heads, _, head_dim = q.shape
    expected = (batch, None, None, head_dim)
    checks.check_shape(op, "k", k, expected, lambda: f"(B, Hk, M, D) with q's B = {batch} and D = {head_dim}")
    checks.check_shape(op, "v", v, (*k.shape[:3], None), lambda: f"(B, Hk, M, Dv) beside k {tuple(k.shape)}")
    if v.shape[-1] == 0:
        raise ValueError(f"{op}: the width of v is 0: got v {tuple(v.shape)}; expected at least 1.")
    if heads and (k.shape[1] == 0 or heads % k.shape[1]):
        raise ValueError(
            f"{op}: heads do not divide: got {heads} query heads and {k.shape[1]} key heads; expected a multiple."
        )


def _check_terms(
    op: str,
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    key_padding_mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout_p: float,
) -> None:
    checks.check_flag(op, "causal", causal)
    checks.check_scale(op, scale)
    checks.check_probability(op, "dropout_p", dropout_p)
    scores = (*q.shape[:3], k.shape[2])
    for name, term in (("bias", bias), ("mask", mask)):
        if term is None:
            continue
        checks.check_dense(op, name, term)
        if not (name == "mask" and term.dtype == torch.bool):
            checks.check_tensor(op, name, term)
        aligned = (1,) * (4 - term.dim()) + tuple(term.shape)
        if len(aligned) != 4 or any(size not in (1, full) for size, full in zip(aligned, scores, strict=True)):
            raise ValueError(
                f"{op}: {name} has the wrong shape: got {tuple(term.shape)}; "
                f"expected one that broadcasts to (B, H, N, M) = {scores}."
            )
    checks.check_no_gradient(op, "mask", mask)
    if key_padding_mask is not None:
        checks.check_dense(op, "key_padding_mask", key_padding_mask)
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(
                f"{op}: key_padding_mask is not a bool tensor: got {key_padding_mask.dtype}; expected True where a key "
                "is attended to."
            )
        keys = (scores[0], scores[3])
        checks.check_shape(op, "key_padding_mask", key_padding_mask, keys, lambda: f"(B, M) = {keys}")
    devices = {t.device for t in (q, bias, mask, key_padding_mask) if t is not None}
    if len(devices) > 1:
        raise ValueError(
            f"{op}: devices differ: got {sorted(map(str, devices))}; "
            "expected one device for q and every mask. Move them."
        )


def _check_cap_and_sinks(op: str, q: Tensor, softcap: float | None, sinks: Tensor | None) -> None:
    if softcap is not None:
        meaning = f"a number from {MIN_SOFTCAP:g} to {MAX_SOFTCAP:g}"
        checks.check_number(op, "softcap", softcap, meaning)
        if not MIN_SOFTCAP <= softcap <= MAX_SOFTCAP:
            raise ValueError(f"{op}: softcap is not usable: got {softcap}; expected {meaning}, or None for no cap.")
    if sinks is None:
        return
    checks.check_tensor(op, "sinks", sinks)
    checks.check_shape(op, "sinks", sinks, (q.shape[1],), lambda: f"(H,) = ({q.shape[1]},), a logit for each head")
    if sinks.device != q.device:
        raise ValueError(f"{op}: devices differ: got sinks on {sinks.device}; expected {q.device}, as q. Move it.")


def _reasons(*operands: Tensor) -> list[str]:
    widest = max(operand.shape[-1] for operand in operands)
    return [f"head dim {widest} is above {MAX_HEAD_DIM}"] if widest > MAX_HEAD_DIM else []


def _four(term: Tensor | None) -> Tensor | None:
    return term if term is None or term.dim() == 4 else term[(None,) * (4 - term.dim())]


def _seed(like: Tensor, dropout_p: float) -> Tensor | None:
    """One random int64 on the device: traceable, without synchronisation, redrawn alike by a checkpoint."""
    return torch.randint(0, 2**62, (1,), device=like.device) if dropout_p > 0.0 else None


def _flops(q_shape: Sequence[int], v_shape: Sequence[int]) -> int:
    """A product of (N, D) by (D, M) for each head, and one of (N, M) by (M, Dv); a multiply-add counts twice."""
    return 2 * math.prod(q_shape[:3]) * (q_shape[3] + v_shape[3]) * v_shape[2]


if HAS_TRITON:
    from vitkern.kernels import attention as kernels

    attention_op = kernel_op(
        kernels.attention_outputs, differentiable=("q", "k", "v", "bias", "sinks"), fallback=kernel_in_pytorch
    )(kernels.attention_forward)
    attention_op.backward(kernels.attention_gradients)(kernels.attention_backward)
    attention_qkvpacked_op = kernel_op(
        kernels.attention_qkvpacked_outputs, differentiable=("qkv", "bias", "sinks"), fallback=packed_kernel_in_pytorch
    )(kernels.attention_qkvpacked_forward)
    attention_qkvpacked_op.backward(kernels.attention_qkvpacked_gradients)(kernels.attention_qkvpacked_backward)

    @register_flop_formula(torch.ops.vitkern.attention)
    def _attention_flops(q_shape: Sequence[int], k: Any, v_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        return _flops(q_shape, v_shape)

    @register_flop_formula(torch.ops.vitkern.attention_backward)
    def _attention_backward_flops(
        grad: Any, out: Any, lse: Any, q_shape: Sequence[int], k: Any, v_shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> int:
        return _flops(q_shape, v_shape) * 5 // 2

    @register_flop_formula(torch.ops.vitkern.attention_qkvpacked)
    def _packed_flops(qkv_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
        batch, n, _, heads, head_dim = qkv_shape
        return _flops((batch, heads, n, head_dim), (batch, heads, n, head_dim))

    @register_flop_formula(torch.ops.vitkern.attention_qkvpacked_backward)
    def _packed_backward_flops(
        grad: Any, out: Any, lse: Any, qkv_shape: Sequence[int], *args: Any, **kwargs: Any
    ) -> int:
        return _packed_flops(qkv_shape) * 5 // 2

"""Maps of attention on request, without N x N numbers for each head: validation, dispatch, the PyTorch path."""

import math
from collections.abc import Iterator
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from vitkern import dispatch
from vitkern.ops import checks
from vitkern.ops.attention import MAX_HEAD_DIM, _check_heads, _check_terms, _four, attention
from vitkern.register import _on_device, _with_fallback

Heads = Literal["mean", "sum"] | list[int] | tuple[int, ...]
Operands = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
_SCORES = 1 << 20  # so many are in memory at once in PyTorch, at least those of one query of all heads


class Added(TypedDict):
    """What is added to the logits."""

    bias: Tensor | None
    mask: Tensor | None
    key_padding_mask: Tensor | None
    causal: bool


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    heads: Heads = "mean",
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """The weights of attention, P = softmax(q k^T * scale + bias + mask): of some heads, or over all of them, with no
    more in memory than what is returned (Abnar and Zuidema, arXiv 2005.00928, take the mean).

    Args:
        q: (B, H, N, D), float16, bfloat16, float32 or float64; any strides. k: (B, Hk, M, D), Hk divides H.
        heads: "mean" or "sum" over all heads, or the numbers of the heads whose maps are wanted.
        bias, mask, key_padding_mask, causal, scale: as in `vitkern.attention`.
        lse: (B, H, N) float32, from `vitkern.attention` with ``return_lse``, where it has run: spares the kernel
            another pass.

    Returns:
        (B, N, M), or (B, len(heads), N, M) for numbers; float32, float64 where ``q`` is. A constant: it carries no
        gradient. A row that may attend to nothing is 0.

    Raises:
        TypeError: dtypes differ or are unsupported, or an argument is not a dense tensor.
        ValueError: shapes, devices or numbers do not fit, or there is no such head.
        NotImplementedError: a kernel was forced and cannot run.
    """
    added = Added(bias=bias, mask=mask, key_padding_mask=key_padding_mask, causal=causal)
    return _mapped("attention_map", q, k, None, None, heads, added, scale, lse)


def attention_relevance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    *,
    heads: Heads = "mean",
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """max(0, P dP), what a number owes to each edge of attention, with no more in memory than what is returned
    (Chefer et al., arXiv 2103.15679, equation 5, which takes the mean over heads).

    P are the weights of `attention_map`, whose arguments the others are, and dP = grad v^T their gradients.

    Args:
        v: (B, Hk, M, Dv). grad: (B, H, N, Dv), the gradient of that number with respect to the output of attention.

    Returns:
        As `attention_map`. Errors too.
    """
    added = Added(bias=bias, mask=mask, key_padding_mask=key_padding_mask, causal=causal)
    return _mapped("attention_relevance", q, k, v, grad, heads, added, scale, lse)


@torch.no_grad()
def _mapped(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    grad: Tensor | None,
    heads: Heads,
    added: Added,
    scale: float | None,
    lse: Tensor | None,
) -> Tensor:
    given: dict[str, Any] = dict(q=q, k=k) if op == "attention_map" else dict(q=q, k=k, v=v, grad=grad)
    for name, tensor in given.items():
        checks.check_tensor(op, name, tensor, ndim=4)
    checks.check_same(op, **given)
    _check_heads(op, q, k, k if v is None else v)
    if v is not None and grad is not None:
        expected = (*q.shape[:3], v.shape[3])
        checks.check_shape(op, "grad", grad, expected, lambda: f"(B, H, N, Dv) = {expected}, as the output")
    _check_terms(op, q, k, **added, scale=scale, dropout_p=0.0)
    if lse is not None:
        checks.check_tensor(op, "lse", lse)
        checks.check_shape(op, "lse", lse, tuple(q.shape[:3]), lambda: f"(B, H, N) = {tuple(q.shape[:3])}")
    numbers = _numbers(op, heads, q.shape[1])
    if numbers is not None:
        q, k, v, grad, lse, added = _chosen(numbers, q, k, v, grad, lse, added)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    operands = _operands(q, k, v, grad, added)
    causal, per_head = added["causal"], numbers is not None
    if _runs_kernel(op, (*operands, lse)):
        if lse is None:
            with dispatch.no_autocast(q):
                _, lse = attention(q, k, k, **added, scale=scale, return_lse=True)
        found = _by_kernel(*operands, lse, scale, causal, per_head)
    else:
        found = _in_pytorch(*operands, None, scale, causal, per_head)
    if numbers is not None:
        return found
    return found[:, 0] / max(q.shape[1], 1) if heads == "mean" else found[:, 0]


def _numbers(op: str, heads: Heads, count: int) -> list[int] | None:
    """The heads whose maps are wanted; None for one over all heads."""
    expected = f'"mean", "sum" or numbers from 0 to {count - 1}'
    if isinstance(heads, str):
        if heads not in ("mean", "sum"):
            raise ValueError(f"{op}: heads are unknown: got {heads!r}; expected {expected}.")
        return None
    if not isinstance(heads, list | tuple) or not all(type(number) is int for number in heads):
        raise TypeError(f"{op}: heads are no numbers: got {heads!r}; expected {expected}, in a list.")
    numbers = list(heads)
    if not all(0 <= number < count for number in numbers):
        raise ValueError(f"{op}: there is no such head: got {numbers} of {count}; expected {expected}.")
    return numbers


def _chosen(
    numbers: list[int],
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    grad: Tensor | None,
    lse: Tensor | None,
    added: Added,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Added]:
    """The operands of these heads, each with the key head that it reads."""
    share = q.shape[1] // max(k.shape[1], 1)
    kv = [n // share for n in numbers]

    def of_term(term: Tensor | None) -> Tensor | None:
        term = _four(term)
        return term if term is None or term.shape[1] == 1 else term[:, numbers]

    kept = added | dict(bias=of_term(added["bias"]), mask=of_term(added["mask"]))
    q, k, v = q[:, numbers], k[:, kv], None if v is None else v[:, kv]
    grad, lse = (None if t is None else t[:, numbers] for t in (grad, lse))
    return q, k, v, grad, lse, Added(**kept)


def _operands(q: Tensor, k: Tensor, v: Tensor | None, grad: Tensor | None, added: Added) -> Operands:
    return q, k, v, grad, _four(added["bias"]), _four(added["mask"]), added["key_padding_mask"]


def _runs_kernel(op: str, operands: tuple[Tensor | None, ...]) -> bool:
    widest, reasons = max(t.shape[-1] for t in operands[:3] if t is not None), []
    if widest > MAX_HEAD_DIM:
        reasons.append(f"head dim {widest} is above {MAX_HEAD_DIM}")
    if not dispatch.is_eager(*operands):
        reasons.append("its kernel runs as it is called, in no graph and under no transformation")
    return dispatch.runs_kernel(op, operands, reasons, "attention_map")


def _in_pytorch(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    grad: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    lse: Tensor | None,
    scale: float,
    causal: bool,
    per_head: bool,
) -> Tensor:
    """What the launcher returns, from its arguments, a few queries at a time. Under vmap any operand may be mapped."""
    found: Tensor | None = None
    added = Added(bias=bias, mask=mask, key_padding_mask=key_mask, causal=causal)
    for rows, weights in weights_of_rows(q, k, added, scale):
        if v is not None and grad is not None:
            weights = (weights * grad_of_weights(grad[:, :, rows], v)).clamp_(min=0)
        own = weights if per_head else weights.sum(1, keepdim=True)
        if rows == slice(0, q.shape[2]):
            return own
        if found is None:
            found = own.new_empty(*own.shape[:2], q.shape[2], own.shape[3])
        found[:, :, rows] = own
    return _output(q, k, per_head) if found is None else found


def _output(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
    """What the launcher returns, empty, from its arguments."""
    return q.new_empty(q.shape[0], q.shape[1] if rest[-1] else 1, q.shape[2], k.shape[2], dtype=_wide(q))


if dispatch.HAS_TRITON:
    from vitkern.kernels import attention_map as kernels

    _launched = _on_device(kernels.attention_map, _output)
    _by_kernel = _with_fallback("attention_map", _launched, _output, _in_pytorch, slice(None))


def grad_of_weights(grad: Tensor, v: Tensor) -> Tensor:
    """dP = grad v^T, (B, H, N, M), never in half precision."""
    wide = _wide(grad)
    with dispatch.no_autocast(grad):
        return grad.to(wide) @ _shared(v.to(wide), grad.shape[1]).mT


def weights_of_rows(q: Tensor, k: Tensor, added: Added, scale: float) -> Iterator[tuple[slice, Tensor]]:
    """(queries, their weights (B, H, queries, M)), so many queries at a time that `_SCORES` are in memory; never in
    half precision."""
    (batch, heads, n, _), keys = q.shape, k.shape[2]
    wide = _wide(q)
    k = _shared(k.to(wide), heads).mT
    step = max(1, _SCORES // max(1, batch * heads * keys))
    bias, mask, kept = _four(added["bias"]), _four(added["mask"]), added["key_padding_mask"]
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        with dispatch.no_autocast(q):
            scores = (q[:, :, rows].to(wide) * scale) @ k
        if bias is not None:
            scores = scores + _rows_of(bias, rows).to(wide)
        if mask is not None:
            part = _rows_of(mask, rows)
            scores = scores.masked_fill(~part, -math.inf) if mask.dtype == torch.bool else scores + part.to(wide)
        if kept is not None:
            scores = scores.masked_fill(~kept[:, None, None], -math.inf)
        if added["causal"]:
            query = torch.arange(rows.start, rows.stop, device=q.device)[:, None]
            scores = scores.masked_fill_(torch.arange(keys, device=q.device) > query + keys - n, -math.inf)
        weights = scores.softmax(-1)
        hidden = mask is not None or kept is not None or added["causal"] or bias is not None
        yield rows, weights.masked_fill_((scores == -math.inf).all(-1, keepdim=True), 0.0) if hidden else weights


def _wide(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _rows_of(term: Tensor, rows: slice) -> Tensor:
    return term if term.shape[2] == 1 else term[:, :, rows]


def _shared(kv: Tensor, heads: int) -> Tensor:
    """(B, Hk, M, D) -> (B, H, M, D): the key head of each query head."""
    return kv if kv.shape[1] == heads else kv.repeat_interleave(heads // kv.shape[1], 1)

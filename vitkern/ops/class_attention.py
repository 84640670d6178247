"""Attention of a few queries, as a class token's, over tokens that are projected to keys and values for them alone. No
kernel of its own: where the projections are plain they are absorbed, and matrix products are left."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from vitkern.dispatch import autocast_dtype
from vitkern.ops import checks
from vitkern.ops.attention import attention
from vitkern.ops.bypass import may_bypass


def class_attention(
    q: Tensor,
    x: Tensor,
    *projections: Callable[[Tensor], Tensor],
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale q k^T) v with k and v projected from ``x`` (class attention of CaiT, Touvron et al., arXiv
    2103.17239, section 3; attention pooling of Set Transformer, Lee et al., arXiv 1810.00825, section 3.2).

    Where the projections are plain linear layers, without hooks, and queries are few, they are absorbed,

        q_h (x Wk_h^T)^T = (q_h Wk_h) x^T    P_h (x Wv_h^T) = (P_h x) Wv_h^T

    so that no token is projected: C / (H L) times fewer operations. Masks and dropout leave them as they are.

    Args:
        q: (B, H, L, D), or (1, H, L, D) for all of the batch; any floating dtype.
        x: (B, N, C), dtype of ``q``.
        projections: keys and values, (B, N, C) -> (B, N, H * D) each; or one of both, keys first.
        scale: 1 / sqrt(D) by default.
        mask: as `vitkern.ops.attention.attention` takes it.
        dropout_p: probability of dropping an attention weight, 0 <= p < 1.

    Returns:
        (B, L, H, D) in the dtype of ``q`` (the autocast dtype under autocast). Differentiable.

    Raises:
        TypeError: ``q`` or ``x`` is not a dense floating-point tensor, or their dtypes differ without autocast.
        ValueError: shapes, devices or numbers do not fit.
    """
    op = "class_attention"
    checks.check_tensor(op, "q", q, ndim=4)
    checks.check_tensor(op, "x", x, ndim=3)
    if autocast_dtype(x) is None:  # which would cast both
        checks.check_same(op, q=q, x=x)
    if q.shape[0] not in (1, x.shape[0]) or q.shape[-1] == 0:
        raise ValueError(
            f"{op}: q does not fit the tokens: got q {tuple(q.shape)}, x {tuple(x.shape)}; expected (B, H, L, D) or "
            f"(1, H, L, D) for x (B, N, C), D at least 1."
        )
    if len(projections) not in (1, 2):
        raise ValueError(
            f"{op}: too few or too many projections: got {len(projections)}; expected that of the keys and that of the "
            "values, or one of both."
        )
    checks.check_scale(op, scale)
    checks.check_probability(op, "dropout_p", dropout_p)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    absorbed = _read(q, x, projections) if mask is None and dropout_p == 0.0 else None
    if absorbed is not None:
        return _absorbed(q * scale, x, *absorbed)
    k, v = _projected(op, q, x, projections)
    q = q.expand(x.shape[0], *q.shape[1:]).to(k.dtype)
    return attention(q, k, v, scale=scale, mask=mask, dropout_p=dropout_p).transpose(1, 2)


Linear = tuple[Tensor, Tensor | None]  # weight (H * D, C), bias (H * D,)


def _read(q: Tensor, x: Tensor, projections: tuple[Callable, ...]) -> tuple[Linear, Linear] | None:
    """What projects keys and values; None where it may not be read, or would better be called."""
    heads, queries, dim = q.shape[1:]
    parts: list[Linear] = []
    for project in projections:
        if not may_bypass(project, nn.Linear):
            return None
        count = 2 // len(projections)
        if tuple(project.weight.shape) != (count * heads * dim, x.shape[-1]):
            return None
        biases = (None,) * count if project.bias is None else project.bias.chunk(count)
        parts += zip(project.weight.chunk(count), biases, strict=True)
    return (parts[0], parts[1]) if x.shape[1] and 2 * queries <= dim else None


def _absorbed(q: Tensor, x: Tensor, keys: Linear, values: Linear) -> Tensor:
    """``q`` with its scale."""
    (key, key_bias), (value, value_bias) = keys, values
    (batch, _, channels), (heads, queries, dim) = x.shape, q.shape[1:]
    rows = (q @ key.view(heads, dim, channels)).flatten(1, 2)  # (B or 1, H * L, C)
    rows = rows.expand(batch, -1, -1)
    scores = rows @ x.transpose(1, 2)
    if key_bias is not None:  # the same for all keys: no softmax sees it, but its gradient is there, 0
        scores = scores + (q @ key_bias.view(heads, dim, 1)).flatten(1, 2)
    pooled = scores.softmax(-1).to(x.dtype) @ x  # (B, H * L, C)
    pooled = pooled.unflatten(1, (heads, queries)).transpose(0, 1).flatten(1, 2)  # (H, B * L, C)
    out = pooled @ value.view(heads, dim, channels).transpose(1, 2)
    out = out.unflatten(1, (batch, queries)).permute(1, 2, 0, 3)  # (B, L, H, D)
    return out if value_bias is None else out + value_bias.to(out.dtype).view(heads, dim)


def _projected(op: str, q: Tensor, x: Tensor, projections: tuple[Callable, ...]) -> tuple[Tensor, Tensor]:
    """k and v (B, H, N, D)."""
    heads, dim = q.shape[1], q.shape[-1]
    found = [project(x) for project in projections]
    width = heads * dim * (2 if len(found) == 1 else 1)
    for rows in found:
        checks.check_tensor(op, "what is projected", rows, ndim=3)
        expected = (*x.shape[:2], width)
        checks.check_shape(op, "what is projected", rows, expected, lambda: f"(B, N, {width}) for q {tuple(q.shape)}")
    k, v = found[0].chunk(2, -1) if len(found) == 1 else found
    return k.unflatten(-1, (heads, dim)).transpose(1, 2), v.unflatten(-1, (heads, dim)).transpose(1, 2)

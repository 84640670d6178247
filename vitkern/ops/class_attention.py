"""Attention of a few queries, as a class token's, over tokens that are projected to keys and values for them alone. No
kernel of its own: where the projections are plain they are absorbed, and matrix products are left."""

import math
from collections.abc import Callable

from torch import Tensor, nn

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
        TypeError: ``q`` or ``x`` is not a dense floating-point tensor.
        ValueError: shapes or numbers do not fit.
    """
    op = "class_attention"
    checks.check_tensor(op, "q", q, ndim=4)
    checks.check_tensor(op, "x", x, ndim=3)
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
    if mask is None and dropout_p == 0.0 and x.shape[1] and _absorbs(q, x, projections):
        return _absorbed(q * scale, x, *_parts(projections))
    k, v = _projected(op, q, x, projections)
    q = q.expand(x.shape[0], *q.shape[1:]).to(k.dtype)
    return attention(q, k, v, scale=scale, mask=mask, dropout_p=dropout_p).transpose(1, 2)


def _absorbs(q: Tensor, x: Tensor, projections: tuple[Callable, ...]) -> bool:
    """Whether the projections may be read, and are of these shapes."""
    heads, queries, dim = q.shape[1:]
    if 2 * queries > dim or not all(may_bypass(project, nn.Linear) for project in projections):
        return False
    rows = heads * dim * (2 if len(projections) == 1 else 1)
    return all(tuple(project.weight.shape) == (rows, x.shape[-1]) for project in projections)


def _parts(projections: tuple[nn.Linear, ...]) -> list[Tensor | None]:
    """Weight and bias of the keys, weight and bias of the values."""
    if len(projections) == 2:
        return [tensor for project in projections for tensor in (project.weight, project.bias)]
    weights, bias = projections[0].weight.chunk(2), projections[0].bias
    biases = (None, None) if bias is None else bias.chunk(2)
    return [weights[0], biases[0], weights[1], biases[1]]


def _absorbed(
    q: Tensor, x: Tensor, key: Tensor, key_bias: Tensor | None, value: Tensor, value_bias: Tensor | None
) -> Tensor:
    """``q`` with its scale; weights (H * D, C), biases (H * D,)."""
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

"""Projections are called, not read: adapters, quantisation and hooks stay what they are. How often may be chosen for a
plain linear layer alone."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitkern.ops.bypass import may_bypass
from vitkern.ops.checks import check_tensor


def calls_freely(project: Callable | None) -> bool:
    """Whether nobody can tell in how many calls ``project`` gets its rows: a plain linear layer; or None."""
    return project is None or may_bypass(project, nn.Linear)


def check_projection(op: str, x: Tensor, rows: Tensor, heads: int) -> None:
    """``rows`` hold q, k and v of ``heads`` heads for each token of ``x``."""
    check_tensor(op, "project(x)", rows, ndim=x.dim())
    if rows.shape[:-1] != x.shape[:-1] or rows.shape[-1] % (3 * heads):
        raise ValueError(
            f"{op}: project does not give q, k and v of {heads} heads for each token: got {tuple(x.shape)} -> "
            f"{tuple(rows.shape)}; expected (..., 3 C) with C a multiple of {heads}."
        )


def projected(
    op: str, x: Tensor, project: Callable[[Tensor], Tensor], heads: int, padded: bool
) -> tuple[Tensor, Tensor | None]:
    """``project`` of x (B, img_h, img_w, C_in) -> (B, img_h, img_w, 3 C), and where it is ``padded`` what it makes of a
    token of zeros (3 C,).

    One call gets both where it may look at all its rows, as dynamic quantisation does.
    """
    if not padded:
        image = project(x)
        check_projection(op, x, image, heads)
        return image, None
    zero = x.new_zeros(1, x.shape[-1])
    if calls_freely(project):
        image, outside = project(x), project(zero)
        check_projection(op, x, image, heads)
        return image, outside[0]
    tokens = torch.cat([x.flatten(0, 2), zero])
    rows = project(tokens)
    check_projection(op, tokens, rows, heads)
    return rows[:-1].unflatten(0, x.shape[:3]), rows[-1]

"""Validation of the arguments that describe local attention; the error contract is that of `vitkern.ops.checks`."""

import torch
from torch import Tensor

from vitkern.ops.checks import check_shape, check_tensor
from vitkern.ops.window_attention.checks import int_pair

LIMIT = 2**15  # of sizes: places within a tile are numbers of 32 bits
BORDERS = ("clamp", "exclude", "keep", "wrap")


def check_locality(
    op: str,
    qkv: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    border: str,
    dilation: tuple[int, int],
    neighbor: tuple[int, int] | None = None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """``block``, ``halo`` and ``dilation`` as pairs.

    Raises:
        TypeError: no integers.
        ValueError: heads that do not divide the channels, or sizes that do not fit one another or the image.
    """
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"{op}: num_heads is no integer: got {num_heads!r}; expected an int above 0.")
    if num_heads <= 0 or qkv.shape[-1] == 0 or qkv.shape[-1] % (3 * num_heads):
        raise ValueError(
            f"{op}: qkv does not split into q, k, v and heads: got {qkv.shape[-1]} channels, num_heads = {num_heads}; "
            "expected a multiple of 3 * num_heads."
        )
    block, halo, dilation = (
        int_pair(op, name, value) for name, value in (("block", block), ("halo", halo), ("dilation", dilation))
    )
    sizes = (*block, *halo, *dilation)
    if min(block) <= 0 or min(halo) < 0 or min(dilation) <= 0 or max(sizes) >= LIMIT:
        raise ValueError(
            f"{op}: sizes are not usable: got block {block}, halo {halo}, dilation {dilation}; expected block and "
            f"dilation above 0, halo 0 or more, all below {LIMIT}."
        )
    if border not in BORDERS:
        raise ValueError(f"{op}: unknown border: got {border!r}; expected one of {', '.join(BORDERS)}.")
    if any(h > b > 1 for b, h in zip(block, halo, strict=True)):
        raise ValueError(
            f"{op}: the halo is larger than the block: got halo {halo}, block {block}; expected at most one block "
            "around a block. Take larger blocks."
        )
    if border == "clamp":
        _check_clamp(op, qkv.shape[1:3], block, halo, dilation)
    if border == "wrap" and (max(dilation) > 1 or any(h > b for b, h in zip(block, halo, strict=True))):
        raise ValueError(
            f"{op}: only whole blocks wrap: got block {block}, halo {halo}, dilation {dilation}; expected halo <= "
            "block and no dilation."
        )
    if neighbor is not None and (block != halo or any(n not in (-1, 0, 1) for n in int_pair(op, "neighbor", neighbor))):
        raise ValueError(
            f"{op}: neighbor names no block: got {neighbor} with block {block}, halo {halo}; expected a pair of -1, 0 "
            "and 1, and halo = block."
        )
    return block, halo, dilation


def _check_clamp(
    op: str, image: torch.Size, block: tuple[int, int], halo: tuple[int, int], dilation: tuple[int, int]
) -> None:
    if block != (1, 1):
        raise ValueError(
            f'{op}: border "clamp" moves the window of a single query: got block {block}; expected (1, 1). Use '
            '"exclude" or "keep" with larger blocks.'
        )
    needed = tuple((2 * h + 1) * d for h, d in zip(halo, dilation, strict=True))
    if image.numel() and any(size < n for size, n in zip(image, needed, strict=True)):
        raise ValueError(
            f"{op}: the image is smaller than the window times the dilation: got image {tuple(image)}; expected at "
            f"least {needed}. Pad the image, or take a smaller halo."
        )


def check_terms(
    op: str,
    qkv: Tensor,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int],
    border: str,
    table: Tensor | None,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    padding: Tensor | None,
) -> None:
    """The tensors beside ``qkv``.

    Raises:
        TypeError: no tensor, or no floating-point one.
        ValueError: shapes or devices that do not fit.
    """
    extent = tuple(b + 2 * h for b, h in zip(block, halo, strict=True))
    if table is not None:
        check_tensor(op, "table", table, ndim=3)
        reach = tuple(e - 1 if border == "clamp" else b + h - 1 for e, b, h in zip(extent, block, halo, strict=True))
        fits = all(size % 2 and size >= 2 * r + 1 for size, r in zip(table.shape[1:], reach, strict=True))
        if table.shape[0] != num_heads or not fits:
            least = tuple(2 * r + 1 for r in reach)
            raise ValueError(
                f"{op}: table has the wrong shape: got {tuple(table.shape)}; expected (H, T_h, T_w) with H = "
                f"{num_heads} and odd sizes from {least} on."
            )
    if (rel_h is None) != (rel_w is None):
        raise ValueError(f"{op}: one of rel_h and rel_w is missing: got one of them; expected both or neither.")
    for name, rel, size in (("rel_h", rel_h, extent[0]), ("rel_w", rel_w, extent[1])):
        if rel is not None:
            check_tensor(op, name, rel)
            shape = (*qkv.shape[:3], num_heads, size)
            check_shape(op, name, rel, shape, f"(B, img_h, img_w, H, E) = {tuple(shape)}")
    if padding is not None:
        check_tensor(op, "padding", padding)
        check_shape(op, "padding", padding, (qkv.shape[-1],), f"(3 C,) = ({qkv.shape[-1]},)")
        if border != "keep" or max(halo) > 0:
            raise ValueError(
                f'{op}: padding is not used: got border {border!r}, halo {halo}; expected border "keep" and no halo. '
                "Leave it out: with a halo, what lies beyond the image is zero."
            )
    if table is not None and table.device != qkv.device:
        raise ValueError(f"{op}: devices differ: got qkv on {qkv.device}, table on {table.device}; expected one.")

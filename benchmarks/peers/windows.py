"""Windows and neighbourhoods as the authors of the models write them, from the packed projection on."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.layers import Neighborhood
from vitkern.reference.window_attention import regions, relative_position_index


def window(options: dict, device: torch.device) -> Callable:
    """Swin's and SwinV2's forward: pad, roll, partition, softmax, reverse. ``fused``: SDPA on the windows."""
    (size, _), shift, heads = options["window"], options["shift"], options["num_heads"]
    index = relative_position_index(options["window"]).to(device)
    tokens = size * size

    @functools.cache
    def mask(side: int, dtype: torch.dtype) -> Tensor:
        """(windows, N, N): -100 between tokens of different regions; made once, as the model's buffer is."""
        region = regions((side, side), (size, size), shift)
        region = region.view(side // size, size, side // size, size).transpose(1, 2).reshape(-1, tokens)
        return (region[:, :, None] != region[:, None, :]).to(device, dtype) * -100.0

    def scores_of(q, k, logit_scale):
        if logit_scale is None:
            return q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return scores * logit_scale.view(-1, 1, 1).clamp(max=math.log(100)).exp()

    def run(qkv, table, padding=None, logit_scale=None, fused=False):
        batch, side, _, packed = qkv.shape
        channels, x = packed // 3, qkv
        if padding is not None:
            inside = F.pad(qkv.new_ones(side, side, 1), (0, 0, 0, -side % size, 0, -side % size))
            x = F.pad(qkv, (0, 0, 0, -side % size, 0, -side % size)) + (1 - inside) * padding
        padded = x.shape[1]
        x, rows = x.roll((-shift[0], -shift[1]), (1, 2)) if shift[0] else x, padded // size
        x = (
            x.view(batch, rows, size, rows, size, packed)
            .transpose(2, 3)
            .reshape(-1, tokens, 3, heads, channels // heads)
        )
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)  # (B windows, H, N, D)
        bias = table[index.view(-1)].view(tokens, tokens, heads).permute(2, 0, 1)
        if shift[0]:
            bias = bias + mask(padded, bias.dtype).unsqueeze(1)  # (windows, H, N, N)
        if fused:
            bias = bias.expand(rows * rows, -1, -1, -1).repeat(batch, 1, 1, 1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            scores = scores_of(q, k, logit_scale).view(batch, rows * rows, heads, tokens, tokens) + bias
            out = scores.softmax(-1).view(-1, heads, tokens, tokens) @ v
        out = out.transpose(1, 2).reshape(batch, rows, rows, size, size, channels).transpose(2, 3)
        out = out.reshape(batch, padded, padded, channels)
        out = out.roll(shift, (1, 2)) if shift[0] else out
        return out if padding is None else out[:, :side, :side].contiguous()

    return run


def start_of(position, size: int, kernel: int, dilation: int):
    """The first neighbour of a position of an axis, in steps of ``dilation``; windows are moved inside the axis."""
    first, rank = position % dilation, position // dilation
    count = (size - first + dilation - 1) // dilation  # positions that see one another
    return torch.minimum((rank - kernel // 2).clamp(min=0), count - kernel)


def _places(case: Neighborhood, device: torch.device) -> tuple[Tensor, Tensor]:
    """(tokens, kernel^2): the keys of each token of the image, and where their bias lies in a flat table."""
    position, width = torch.arange(case.side), 2 * case.kernel - 1
    steps = start_of(position, case.side, case.kernel, case.dilation)[:, None] + torch.arange(case.kernel)
    keys = (position % case.dilation)[:, None] + steps * case.dilation
    offset = steps - (position // case.dilation)[:, None] + case.kernel - 1
    where = keys[:, None, :, None] * case.side + keys[None, :, None, :]
    place = offset[:, None, :, None] * width + offset[None, :, None, :]
    count = case.side**2
    return where.reshape(count, -1).to(device), place.reshape(count, -1).to(device)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three (B, H, tokens, D)."""
    return qkv.flatten(1, 2).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def neighborhood(case: Neighborhood, device: torch.device) -> Callable:
    """Every token gathers its own keys and values, as an implementation without a kernel of its own must."""
    where, place = _places(case, device)
    scale = (case.channels // case.heads) ** -0.5

    def run(qkv, table):
        q, k, v = _heads(qkv, case.heads)
        scores = torch.einsum("bhnd,bhnkd->bhnk", q * scale, k[:, :, where]) + table.flatten(1)[:, place]
        out = torch.einsum("bhnk,bhnkd->bhnd", scores.softmax(-1), v[:, :, where])
        return out.transpose(1, 2).reshape(*qkv.shape[:3], case.channels)

    return run


def neighborhood_fused(case: Neighborhood, device: torch.device) -> Callable:
    """SDPA over the whole image with a mask of -inf outside the neighbourhood."""
    where, place = _places(case, device)

    def run(qkv, table):
        q, k, v = _heads(qkv, case.heads)
        bias = table.new_full((case.heads, case.side**2, case.side**2), -math.inf)
        bias = bias.scatter(2, where.expand(case.heads, -1, -1), table.flatten(1)[:, place])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return out.transpose(1, 2).reshape(*qkv.shape[:3], case.channels)

    return run

"""Windows and neighbourhoods as the authors of the models write them, from the packed projection on."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.lab.compiling.layer import Layer
from vitkern.reference.window_attention import regions, relative_position_index


class Partition:
    """Swin's way to windows and back: pad, roll, cut; put together, roll, crop."""

    def __init__(self, options: dict, device: torch.device):
        (self.size, _), self.shift, self.heads = options["window"], options["shift"], options["num_heads"]
        self.device, self.tokens = device, self.size * self.size
        self.index = relative_position_index(options["window"]).to(device).view(-1)

    def windows(self, qkv: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Three (B windows, H, N, D)."""
        batch, side, _, packed = qkv.shape
        missing = -side % self.size
        x = qkv
        if missing:
            inside = F.pad(qkv.new_ones(side, side, 1), (0, 0, 0, missing, 0, missing))
            x = F.pad(qkv, (0, 0, 0, missing, 0, missing)) + (1 - inside) * padding
        x, rows = x.roll((-self.shift[0], -self.shift[1]), (1, 2)) if self.shift[0] else x, x.shape[1] // self.size
        x = x.view(batch, rows, self.size, rows, self.size, packed).transpose(2, 3)
        return x.reshape(-1, self.tokens, 3, self.heads, packed // 3 // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

    def image(self, out: Tensor, side: int) -> Tensor:
        """(B windows, H, N, D) -> (B, side, side, C)."""
        rows = -(-side // self.size)
        out = out.transpose(1, 2).reshape(-1, rows, rows, self.size, self.size, out.shape[1] * out.shape[3])
        out = out.transpose(2, 3).reshape(-1, rows * self.size, rows * self.size, out.shape[-1])
        out = out.roll(self.shift, (1, 2)) if self.shift[0] else out
        return out if side % self.size == 0 else out[:, :side, :side].contiguous()

    def bias(self, table: Tensor) -> Tensor:
        """(H, N, N)."""
        return table[self.index].view(self.tokens, self.tokens, self.heads).permute(2, 0, 1)

    @functools.cache  # noqa: B019  (as the model's buffer, for as long as the peer)
    def regions(self, side: int) -> Tensor:
        """(windows, N): which region of the rolled image each token is of; made once, as the model's buffer is."""
        rows = -(-side // self.size)
        found = regions((rows * self.size,) * 2, (self.size,) * 2, self.shift)
        return found.view(rows, self.size, rows, self.size).transpose(1, 2).reshape(-1, self.tokens).to(self.device)

    @functools.cache  # noqa: B019
    def mask(self, side: int, dtype: torch.dtype) -> Tensor:
        """(windows, N, N): -100 between tokens of different regions."""
        region = self.regions(side)
        return (region[:, :, None] != region[:, None, :]).to(dtype) * -100.0


def cosines(q: Tensor, k: Tensor, logit_scale: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """q and k, and the scale of their product, for the scores of Swin or of Swin V2."""
    if logit_scale is None:
        return q, k, q.shape[-1] ** -0.5
    factor = logit_scale.view(-1, 1, 1).clamp(max=math.log(100)).exp()
    return F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1), 1.0


def window(options: dict, device: torch.device) -> Callable:
    """Swin's and SwinV2's forward. ``fused``: SDPA on the windows."""
    of = Partition(options, device)

    def run(qkv, table=None, padding=None, logit_scale=None, fused=False):
        batch, side = qkv.shape[:2]
        q, k, v = of.windows(qkv, padding)
        bias = None if table is None else of.bias(table)
        if of.shift[0]:
            mask = of.mask(side, qkv.dtype).unsqueeze(1)
            bias = mask if bias is None else bias + mask  # (windows, H, N, N)
        if fused:
            bias = bias.repeat(batch, 1, 1, 1) if of.shift[0] else bias
            return of.image(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), side)
        q, k, scale = cosines(q, k, logit_scale)
        scores = q * scale @ k.transpose(-2, -1)
        if bias is not None:
            scores = (scores.unflatten(0, (batch, -1)) + bias).flatten(0, 1)
        return of.image(scores.softmax(-1) @ v, side)

    return run


def start_of(position, size: int, kernel: int, dilation: int):
    """The first neighbour of a position of an axis, in steps of ``dilation``; windows are moved inside the axis."""
    first, rank = position % dilation, position // dilation
    count = (size - first + dilation - 1) // dilation  # positions that see one another
    return torch.minimum((rank - kernel // 2).clamp(min=0), count - kernel)


def _places(case: Layer, device: torch.device) -> tuple[Tensor, Tensor]:
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


def neighborhood(case: Layer, device: torch.device) -> Callable:
    """Every token gathers its own keys and values, as an implementation without a kernel of its own must."""
    where, place = _places(case, device)
    scale = (case.channels // case.heads) ** -0.5

    def run(qkv, table):
        q, k, v = _heads(qkv, case.heads)
        scores = torch.einsum("bhnd,bhnkd->bhnk", q * scale, k[:, :, where]) + table.flatten(1)[:, place]
        out = torch.einsum("bhnk,bhnkd->bhnd", scores.softmax(-1), v[:, :, where])
        return out.transpose(1, 2).reshape(*qkv.shape[:3], case.channels)

    return run


def neighborhood_fused(case: Layer, device: torch.device) -> Callable:
    """SDPA over the whole image with a mask of -inf outside the neighbourhood."""
    where, place = _places(case, device)

    def run(qkv, table):
        q, k, v = _heads(qkv, case.heads)
        bias = table.new_full((case.heads, case.side**2, case.side**2), -math.inf)
        bias = bias.scatter(2, where.expand(case.heads, -1, -1), table.flatten(1)[:, place])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return out.transpose(1, 2).reshape(*qkv.shape[:3], case.channels)

    return run

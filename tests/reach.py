"""Which results of local attention a token that is not finite reaches, by what the docstring of the operator says."""

import torch

from vitkern.reference.local_attention import intervals

IMAGE, TOKEN, HEADS, DIM = (13, 10), (6, 5), 2, 4
NEAR = {
    "around each": dict(block=(1, 1), halo=(1, 1), border="clamp"),
    "around each, dilated": dict(block=(1, 1), halo=(1, 2), border="exclude", dilation=(2, 1)),
    "blocks with a halo": dict(block=(4, 3), halo=(1, 2), border="keep"),
}


def _axis(size, token, tile, block, halo, border, dilation):
    """Queries that see ``token``, and those whose tile reads it."""
    near, query = intervals(size, block, halo, border, dilation), torch.arange(size)
    extent = block + 2 * halo
    tile, span = (tile, tile - 1 + extent) if block == 1 else (block, extent)
    rank, same = query // dilation, query % dilation == token % dilation
    begin = rank + near.offset[:, 0]
    place = token // dilation - begin[query - rank % tile * dilation]  # among the keys of the tile
    return (near.position == token).any(1), same & (place >= 0) & (place < span)


def reached(tile, near):
    """(own, seen, read), each (img_h, img_w) bool: the query of `TOKEN`, those that see it, those whose tile does."""
    dilation = near.get("dilation", (1, 1))
    axes = zip(IMAGE, TOKEN, near["block"], near["halo"], dilation, strict=True)
    pairs = [_axis(size, token, tile, b, h, near["border"], d) for size, token, b, h, d in axes]
    seen, read = (y[:, None] & x for y, x in zip(*pairs, strict=True))
    own = torch.zeros_like(seen)
    own[TOKEN] = True
    return own, seen, read


def spoiled(function, part, near):
    """Where ``function`` gives NaN, (img_h, img_w, H, D), if channel 3 of head 0 is NaN in one part of `TOKEN`: 0, 1, 2
    for q, k, v."""
    qkv = torch.randn(1, *IMAGE, 3, HEADS, DIM, generator=torch.Generator().manual_seed(0))
    qkv[0, TOKEN[0], TOKEN[1], part, 0, 3] = torch.nan
    return function(qkv.flatten(3), num_heads=HEADS, **near).isnan().view(*IMAGE, HEADS, DIM)


def spread(own, of_key, of_value):
    """What `spoiled` gives for each part where these queries are reached."""
    for where, channels in ((own, slice(None)), (of_key, slice(None)), (of_value, slice(3, 4))):
        found = torch.zeros(*IMAGE, HEADS, DIM, dtype=torch.bool)
        found[..., 0, channels] = where[..., None]
        yield found

"""timm's other windows, in place: Twins' locally grouped attention, DaViT's windows, MaxViT's windows and grids."""

from functools import partial

from timm.layers import RelPosBias, RelPosBiasTf, RelPosMlp
from timm.models.davit import SpatialBlock as TimmSpatialBlock
from timm.models.davit import WindowAttention as TimmWindowAttention
from timm.models.maxxvit import AttentionCl as TimmAttentionCl
from timm.models.maxxvit import PartitionAttentionCl as TimmPartitionAttentionCl
from timm.models.twins import LocallyGroupedAttn as TimmLocallyGroupedAttn
from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop import fusion
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.interop.timm import mlp_fit, mlp_of
from vitkern.nn.partition_attention import project_head_first
from vitkern.ops.bypass import plain, untouched
from vitkern.ops.local_attention import local_attention
from vitkern.ops.window_attention import projected_window_attention

# In PyTorch, windows in place are faster on large images only: timm does well without a bias to learn or a shift.
_ORIGINAL = (WAITS,)
_DROPOUT = ("attention dropout is active in training, and windows have none: the original attention runs then",)


def _calls_freely(attn: nn.Module) -> bool:
    """Nobody watches the projections, which get the image and not its windows."""
    return untouched(attn.qkv) and untouched(attn.proj)


def _keeps_weights(attn: nn.Module) -> bool:
    """Nothing drops the attention weights just now."""
    return not (attn.training and attn.attn_drop.p > 0.0)


class LocallyGroupedAttn(Adapter, TimmLocallyGroupedAttn):
    """`timm.models.twins.LocallyGroupedAttn`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_drop, nn.Dropout) or not _calls_freely(module):
            return Fit((), ("attn_drop, qkv or proj is hooked or replaced",))
        return Fit(("window_attention",), (*_ORIGINAL, *(_DROPOUT if module.attn_drop.p > 0.0 else ())), True)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        fits = plain(self.attn_drop, nn.Dropout) and _calls_freely(self) and _keeps_weights(self)
        if not fits or not runs_kernel("window_attention", autocast(x)):
            return super().forward(x, size)
        image = x.reshape(x.shape[0], *size, x.shape[-1])
        out = projected_window_attention(image, self.qkv, num_heads=self.num_heads, window=(self.ws, self.ws))
        return self.proj_drop(self.proj(out.flatten(1, 2)))


class SpatialBlock(Adapter, TimmSpatialBlock):
    """`timm.models.davit.SpatialBlock`: windows where they lie, and the MLP as one op."""

    covers = ("attn",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not _is_open(module):
            return Fit((), ("its attention is replaced or hooked, or it has no MLP",))
        ops, reasons = mlp_fit(module)
        return Fit(("window_attention", *ops), (*_ORIGINAL, *reasons), True)

    def forward(self, x: Tensor) -> Tensor:
        if not _is_open(self) or not runs_kernel("window_attention", autocast(x)):
            return super().forward(x)
        attn, image = self.attn, x.shape
        tokens = self.cpe1(x).flatten(2).transpose(1, 2)  # (B, N, C)
        windows = self.norm1(tokens).reshape(image[0], *image[2:], image[1])
        out = projected_window_attention(windows, attn.qkv, num_heads=attn.num_heads, window=self.window_size)
        tokens = tokens + self.drop_path1(attn.proj(out).flatten(1, 2))
        tokens = self.cpe2(tokens.transpose(1, 2).reshape(image)).flatten(2).transpose(1, 2)
        mlp = mlp_of(self)
        if mlp is not None and fusion.obstacle(mlp) is None:
            tokens = fusion.run(tokens, mlp)
        else:
            tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).reshape(image)


def _is_open(block: nn.Module) -> bool:
    """Whether DaViT's attention may be passed over: only its projections are called."""
    attn = block.attn
    known = plain(attn, TimmWindowAttention) and plain(attn.softmax, nn.Softmax)
    return block.mlp is not None and known and _calls_freely(attn)


class PartitionAttentionCl(Adapter, TimmPartitionAttentionCl):
    """`timm.models.maxxvit.PartitionAttentionCl`: windows and grids where they lie, and the MLP as one op."""

    covers = ("attn",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not _reads_positions(module.attn):
            return Fit((), ("its attention, or positions or dropout of it, are replaced or hooked",))
        ops, reasons = mlp_fit(module)
        dropout = _DROPOUT if module.attn.attn_drop.p > 0.0 else ()
        return Fit((_operator(module), *ops), (*_ORIGINAL, *dropout, *reasons), True)

    def forward(self, x: Tensor) -> Tensor:
        attn, parts = self.attn, zip(x.shape[1:3], self.partition_size, strict=True)
        fits = _reads_positions(attn) and _keeps_weights(attn) and not any(length % part for length, part in parts)
        if not fits or not runs_kernel(_operator(self), autocast(x)):
            return super().forward(x)
        x = x + self.drop_path1(self.ls1(self._attend(self.norm1(x))))
        mlp = mlp_of(self)
        if mlp is not None and fusion.obstacle(mlp) is None:
            return fusion.run(x, mlp)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    def _attend(self, x: Tensor) -> Tensor:
        attn, size = self.attn, tuple(self.partition_size)
        project, heads, table = attn.qkv, attn.num_heads, _table(attn.rel_pos)
        if attn.head_first:
            readable = plain(attn.qkv, nn.Linear)
            project = partial(project_head_first, qkv=attn.qkv, num_heads=heads, readable=readable)
        if self.partition_block:
            out = projected_window_attention(x, project, num_heads=heads, window=size, table=table)
        else:
            if table is not None:
                sides = tuple(2 * part - 1 for part in size)
                table = table.view(*sides, heads).flip(0, 1).permute(2, 0, 1)  # by the key's offset
            steps = tuple(length // part for length, part in zip(x.shape[1:3], size, strict=True))
            out = local_attention(project(x), num_heads=heads, block=size, dilation=steps, table=table)
        return attn.proj_drop(attn.proj(out))


def _operator(block: nn.Module) -> str:
    return "window_attention" if block.partition_block else "local_attention"


def _reads_positions(attn: nn.Module) -> bool:
    """Whether MaxViT's attention may be passed over: its projections are called, its positions are read."""
    positions = attn.rel_pos is None or plain(attn.rel_pos, RelPosBias, RelPosBiasTf, RelPosMlp)
    return positions and plain(attn, TimmAttentionCl) and plain(attn.attn_drop, nn.Dropout) and _calls_freely(attn)


def _table(positions: nn.Module | None) -> Tensor | None:
    """(entries, H), by the query's offset from the key."""
    if positions is None:
        return None
    if type(positions) is RelPosMlp:
        table = positions.bias_act(positions.mlp(positions.rel_coords_log).view(-1, positions.num_heads))
        return table if positions.bias_gain is None else positions.bias_gain * table
    table = positions.relative_position_bias_table
    return table.flip(1, 2).flatten(1).t() if type(positions) is RelPosBiasTf else table

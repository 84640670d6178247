"""timm's Swin and Swin V2: windows attended to where they lie in the image, and the MLP as one op."""

import torch
from timm.models.swin_transformer import SwinTransformerBlock as TimmSwinBlock
from timm.models.swin_transformer import WindowAttention as TimmWindowAttention
from timm.models.swin_transformer_v2 import SwinTransformerV2Block as TimmSwinV2Block
from timm.models.swin_transformer_v2 import WindowAttention as TimmWindowAttentionV2
from torch import Tensor, nn
from torch.nn import functional as F

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import mlp_fit, mlp_of
from vitkern.ops.attention import attention
from vitkern.ops.window_attention import projected_window_attention


def _weights_are_hooked(attn: nn.Module) -> bool:
    """Something wants to see the attention weights, which the op never has."""
    return not (fusion.plain(attn.attn_drop, nn.Dropout) and fusion.plain(attn.softmax, nn.Softmax))


def _drops_weights(attn: nn.Module) -> bool:
    return attn.training and attn.attn_drop.p > 0.0


def _dropout_note(attn: nn.Module) -> tuple[str, ...]:
    if attn.attn_drop.p == 0.0:
        return ()
    return ("attention dropout is active in training, and windows have none: the original attention runs then",)


class WindowAttention(Adapter, TimmWindowAttention):
    """`timm.models.swin_transformer.WindowAttention` on windows that are cut out already."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if _weights_are_hooked(module):
            return Fit((), ("attn_drop or softmax is hooked or replaced",))
        return Fit(("attention",))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if _weights_are_hooked(self) or (mask is not None and mask.requires_grad):
            return super().forward(x, mask)
        groups, tokens, _ = x.shape
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if mask is not None:  # (windows, N, N) -> (G, 1, N, N), one for each window of each image
            mask = mask.expand(groups // mask.shape[0], *mask.shape).reshape(groups, 1, tokens, tokens)
        dropout_p = self.attn_drop.p if self.training else 0.0
        out = attention(q, k, v, bias=self._get_rel_pos_bias(), mask=mask, scale=self.scale, dropout_p=dropout_p)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class _Windows(Adapter):
    """What both versions of the block share. Subclasses: which attention they take over, and how."""

    covers = ("attn",)
    attention_kinds: tuple[type, ...] = ()

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        ops, reasons = mlp_fit(module)
        attn = module.attn
        if not fusion.plain(attn, *cls.attention_kinds) or not (
            fusion.untouched(attn.qkv) and fusion.untouched(attn.proj)
        ):
            return Fit(ops, ("attention kept: it, its qkv or its proj is replaced or hooked", *reasons))
        if _weights_are_hooked(attn):
            return Fit(ops, ("attention kept: attn_drop or softmax is hooked or replaced", *reasons))
        return Fit(("window_attention", *ops), (*_dropout_note(attn), *reasons))

    def takes_windows(self, x: Tensor) -> bool:
        """Whether attention can be done in the image; timm's fixed mask belongs to one image size."""
        attn = self.attn
        return (
            fusion.plain(attn, *self.attention_kinds)
            and fusion.untouched(attn.qkv)
            and fusion.untouched(attn.proj)
            and not _weights_are_hooked(attn)
            and not _drops_weights(attn)
            and (self.dynamic_mask or not any(self.shift_size) or tuple(x.shape[1:3]) == tuple(self.input_resolution))
        )

    def mlp_branch(self, x: Tensor, post_norm: bool) -> Tensor:
        mlp = mlp_of(self)
        if mlp is not None and fusion.obstacle(mlp) is None:
            return fusion.run(x, mlp, post_norm)
        tokens = x.flatten(1, 2)
        branch = self.norm2(self.mlp(tokens)) if post_norm else self.mlp(self.norm2(tokens))
        return (tokens + self.drop_path2(branch)).view_as(x)


class SwinTransformerBlock(_Windows, TimmSwinBlock):
    """`timm.models.swin_transformer.SwinTransformerBlock`."""

    attention_kinds = (TimmWindowAttention, WindowAttention)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = x, self.norm1(x)
        if self.takes_windows(x):
            attn = self.attn
            out = projected_window_attention(
                x,
                attn.qkv,
                num_heads=attn.num_heads,
                window=self.window_size,
                shift=self.shift_size,
                table=attn.relative_position_bias_table,
                scale=attn.scale,
            )
            out = attn.proj(out.flatten(1, 2)).view(shortcut.shape)  # adapters of linears may ask for (B, N, C)
            branch = self.drop_path1(attn.proj_drop(out))
            x = fusion.residual(shortcut, branch, attn.proj, attn.proj_drop, self.drop_path1)
        else:
            x = shortcut + self.drop_path1(self._attn(x))
        return self.mlp_branch(x, post_norm=False)


class SwinTransformerV2Block(_Windows, TimmSwinV2Block):
    """`timm.models.swin_transformer_v2.SwinTransformerV2Block`: cosine scores, norms after the branches."""

    attention_kinds = (TimmWindowAttentionV2,)

    def forward(self, x: Tensor) -> Tensor:
        if self.takes_windows(x):
            attn = self.attn
            bias = 16 * torch.sigmoid(attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads))
            out = projected_window_attention(
                x,
                self._project,
                num_heads=attn.num_heads,
                window=self.window_size,
                shift=self.shift_size,
                table=bias,
                logit_scale=attn.logit_scale,
            )
            out = attn.proj_drop(attn.proj(out.flatten(1, 2)).view(x.shape))
        else:
            out = self._attn(x)
        x = fusion.residual(x, self.drop_path1(self.norm1(out)), self.norm1, self.drop_path1)
        return self.mlp_branch(x, post_norm=True)

    def _project(self, x: Tensor) -> Tensor:
        """As the original does: the bias is put together from its trained parts, and the weight is read."""
        attn = self.attn
        if attn.q_bias is None:
            return attn.qkv(x)
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        return attn.qkv(x) + bias if attn.qkv_bias_separate else F.linear(x, attn.qkv.weight, bias)

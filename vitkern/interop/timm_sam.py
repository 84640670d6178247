"""timm's SAM: windows attended to where they lie in the image, relative positions without a bias of all pairs, and the
MLP as one op."""

from timm.models.vision_transformer_sam import Attention as TimmAttention
from timm.models.vision_transformer_sam import Block as TimmBlock
from torch import Tensor, nn

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import mlp_fit, mlp_of
from vitkern.ops.bypass import plain, untouched
from vitkern.ops.decomposed_attention import projected_decomposed_attention


class Block(Adapter, TimmBlock):
    """`timm.models.vision_transformer_sam.Block`, where it has relative positions and neither rotary ones nor norms of
    q and k."""

    covers = ("attn",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        reason = cls.attention_obstacle(module, training=False)
        if reason is not None:
            return Fit((), (f"attention kept: {reason}",))
        ops, reasons = mlp_fit(module)
        reason = cls.attention_obstacle(module, training=True)
        if reason is not None:
            reasons = (f"in training the original block runs: {reason}", *reasons)
        return Fit(("decomposed_attention", *ops), reasons)

    @staticmethod
    def attention_obstacle(block: nn.Module, training: bool | None = None) -> str | None:
        """Why attention in the image would differ from the original, or None; projections are called. ``training``: as
        if dropouts were in that mode."""
        attn = block.attn
        if not plain(attn, TimmAttention) or not (untouched(attn.qkv) and untouched(attn.proj)):
            return "it, its qkv or its proj is replaced or hooked"
        if not attn.use_rel_pos or attn.rope is not None:
            return "it has no decomposed relative positions"
        if not (plain(attn.q_norm, nn.Identity) and plain(attn.k_norm, nn.Identity)):
            return "it normalises q and k"
        if not fusion.silent(attn.attn_drop, training):
            return "attn_drop is active, hooked or replaced"
        training = block.drop_path1.training if training is None else training
        drops = training and type(block.drop_path1) is not nn.Identity
        return "its stochastic depth drops single windows" if drops and block.window_size > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        attn, mlp = self.attn, mlp_of(self)
        if self.attention_obstacle(self) is not None:
            return super().forward(x)
        out = projected_decomposed_attention(
            self.norm1(x),
            attn.qkv,
            attn.rel_pos_h,
            attn.rel_pos_w,
            num_heads=attn.num_heads,
            window=(self.window_size, self.window_size) if self.window_size > 0 else None,
            scale=None if attn.fused_attn else attn.scale,
        )
        branch = self.drop_path1(self.ls1(attn.proj_drop(attn.proj(out))))
        x = fusion.residual(x, branch, attn.proj, attn.proj_drop, self.ls1, self.drop_path1)
        if mlp is not None and fusion.obstacle(mlp) is None:
            return fusion.run(x, mlp)
        tokens = x.flatten(1, 2)
        return (tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))).view_as(x)

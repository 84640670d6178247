"""timm's plain attention and pre-norm transformer block: ViT, DeiT, PiT and whatever else builds on them."""

import timm.layers.activations
from timm.layers import Attention as TimmAttention
from timm.layers import DropPath, LayerNorm, LayerScale
from timm.layers.mlp import GluMlp, SwiGLU
from timm.layers.mlp import Mlp as TimmMlp
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm_qk_norm import qk_norms
from vitkern.ops.attention import attention, attention_qkvpacked
from vitkern.ops.bypass import plain
from vitkern.ops.qk_norm_attention import qk_norm_attention

fusion.LAYER_NORMS.append(LayerNorm)
fusion.DROP_PATHS.append(DropPath)
fusion.WRAPPERS += [TimmMlp, GluMlp, SwiGLU]
fusion.LAYER_SCALES.append(LayerScale)
fusion.GATES.update({timm.layers.activations.Sigmoid: "sigmoid", timm.layers.activations.Swish: "silu"})
fusion.ACTIVATIONS.update(
    {
        timm.layers.activations.GELU: "gelu",
        timm.layers.activations.GELUTanh: "gelu_tanh",
        timm.layers.activations.QuickGELU: "quick_gelu",
    }
)


WATCHED = Fit((), ("attn_drop is hooked or replaced, and the op holds no attention weights to give it",))


def parts_of(
    norm: nn.Module, mlp: nn.Module, drop_path: nn.Module, layer_scale: nn.Module | Tensor | None = None
) -> fusion.Mlp | None:
    """The second half of a timm block as parts; None where its MLP is of another kind."""
    if type(mlp) not in (TimmMlp, GluMlp, SwiGLU):
        return None
    inner = mlp._modules
    between = (inner["drop1"], inner["norm"], inner["drop2"])
    if isinstance(layer_scale, nn.Module) and type(layer_scale) is not LayerScale:
        between, layer_scale = (*between, layer_scale), None  # an Identity, or something that has to be called
    gate, value = "", None
    if type(mlp) is SwiGLU:
        gate, value = "pair", inner["fc1_x"]
    elif type(mlp) is GluMlp:
        gate = "last" if mlp.gate_last else "first"
    linears = inner["fc1_g" if gate == "pair" else "fc1"], inner["act"], inner["fc2"]
    return fusion.Mlp(norm, *linears, between, (mlp,), layer_scale, drop_path, gate, value)


def mlp_of(block: nn.Module) -> fusion.Mlp | None:
    """`parts_of` a block that names them as ViT's does."""
    own = block._modules
    return parts_of(own["norm2"], own["mlp"], own["drop_path2"], own.get("ls2"))


def mlp_fit(block: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`vitkern.interop.fusion.fit_of` a block that names its parts as ViT's does."""
    return fusion.fit_of(mlp_of(block), block.mlp)


class Attention(Adapter, TimmAttention):
    """`timm.layers.Attention`, with normalised q and k, gate and masks; attention dropout included."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.attn_drop, nn.Dropout):
            return WATCHED
        return Fit(("attention",) if qk_norms(module.q_norm, module.k_norm) is None else ("qk_norm_attention",))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if not plain(self.attn_drop, nn.Dropout) or (is_causal and attn_mask is not None):
            return super().forward(x, attn_mask, is_causal)
        batch, tokens, _ = x.shape
        learnt = attn_mask is not None and attn_mask.requires_grad
        arguments = dict(
            bias=attn_mask if learnt else None,
            mask=None if learnt else attn_mask,
            causal=is_causal,
            scale=None if self.fused_attn else self.scale,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        if plain(self.q_norm, nn.Identity) and plain(self.k_norm, nn.Identity):
            out = attention_qkvpacked(qkv, **arguments)
        elif (
            attn_mask is None
            and not is_causal
            and arguments["dropout_p"] == 0.0
            and (norms := qk_norms(self.q_norm, self.k_norm))
        ):
            out = qk_norm_attention(qkv, *norms.parameters, **norms.options, scale=arguments["scale"])
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D)
            out = attention(self.q_norm(q), self.k_norm(k), v, **arguments).transpose(1, 2)
        out = self.norm(out.flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


class Block(Adapter, TimmBlock):
    """`timm.models.vision_transformer.Block`: attention as the module is, then norm, MLP and residual as one op."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*mlp_fit(module))

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        mlp = mlp_of(self)
        if not fusion.fits(mlp):
            return super().forward(x, *args, **kwargs)
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), *args, **kwargs)))
        return fusion.run(x, mlp)

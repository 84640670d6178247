"""torchvision's ViT: nn.MultiheadAttention and the MLP of its encoder block as ops."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchvision.models.vision_transformer import EncoderBlock as TorchvisionEncoderBlock
from torchvision.models.vision_transformer import MLPBlock
from torchvision.ops.misc import MLP

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.ops.attention import attention_qkvpacked
from vitkern.ops.bypass import plain

fusion.WRAPPERS += [MLP, MLPBlock]


def mlp_of(norm: nn.Module, mlp: nn.Module, drop_path: nn.Module | None = None) -> fusion.Mlp | None:
    """A norm and one of torchvision's MLPs as parts; None where that is of another kind."""
    if type(mlp) not in (MLP, MLPBlock) or len(mlp) != 5:
        return None
    fc1, act, drop1, fc2, drop2 = mlp
    return fusion.Mlp(norm, fc1, act, fc2, (drop1, drop2), (mlp,), drop_path=drop_path)


def mlp_fit(
    norm: nn.Module, mlp: nn.Module, drop_path: nn.Module | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ops, reasons) of such an MLP."""
    parts = mlp_of(norm, mlp, drop_path)
    if parts is None:
        return (), (f"MLP not fused: it is a {type(mlp).__name__} of another shape",)
    return fusion.mlp_fit(parts)


def open_attention(attn: nn.Module) -> bool:
    """Whether self-attention may read the weights of ``attn``, which reads them itself, instead of calling it."""
    return (
        plain(attn, nn.MultiheadAttention)
        and plain(attn.out_proj, NonDynamicallyQuantizableLinear)
        and attn.in_proj_weight is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
        and attn.batch_first
    )


def self_attention(x: Tensor, attn: nn.MultiheadAttention) -> Tensor:
    """``attn(x, x, x, need_weights=False)[0]``; x (B, N, C)."""
    batch, tokens, channels = x.shape
    qkv = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).view(batch, tokens, 3, attn.num_heads, attn.head_dim)
    out = attention_qkvpacked(qkv, dropout_p=attn.dropout if attn.training else 0.0)
    return F.linear(out.reshape(batch, tokens, channels), attn.out_proj.weight, attn.out_proj.bias)


class EncoderBlock(Adapter, TorchvisionEncoderBlock):
    """`torchvision.models.vision_transformer.EncoderBlock`."""

    covers = ("self_attention",)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        ops, reasons = mlp_fit(module.ln_2, module.mlp)
        if not open_attention(module.self_attention):
            return Fit(ops, ("attention kept: it is hooked, replaced or of another shape", *reasons))
        return Fit(("attention", *ops), reasons)

    def forward(self, input: Tensor) -> Tensor:
        attn = self.self_attention
        if input.dim() != 3:
            return super().forward(input)
        x = self.ln_1(input)
        x = self_attention(x, attn) if open_attention(attn) else attn(x, x, x, need_weights=False)[0]
        x = self.dropout(x) + input
        mlp = mlp_of(self.ln_2, self.mlp)
        if mlp is not None and fusion.obstacle(mlp) is None:
            return fusion.run(x, mlp)
        return x + self.mlp(self.ln_2(x))

"""A ViT taken apart, whoever named its parts: what layer-wise relevance has to know of one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # by the names of vitkern.nn.Mlp
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_PLAIN = nn.Identity()


class Block(NamedTuple):
    """x + ls1(proj(attention(norm1(x)))), then x + ls2(fc2(act(fc1(norm2(x))))). ``qkv``: the projections that give
    them, one or three."""

    norm1: nn.Module
    qkv: Sequence[nn.Linear]
    heads: int
    scale: float
    q_norm: nn.Module
    k_norm: nn.Module
    proj: nn.Linear
    ls1: nn.Module
    norm2: nn.Module
    fc1: nn.Linear
    act: Callable[[Tensor], Tensor]
    fc2: nn.Linear
    ls2: nn.Module


class Vit(NamedTuple):
    """``first``: the module of the first block, which is given the embedded tokens. ``heads``: (token, its linear), of
    whose logits the mean is taken; no token: the mean of the patches, after ``prefix`` others."""

    first: nn.Module
    blocks: list[Block]
    norm: nn.Module
    fc_norm: nn.Module
    heads: list[tuple[int | None, nn.Linear]]
    prefix: int


def vit_of(model: nn.Module) -> Vit:
    """The parts of a ViT or DeiT of vitkern, timm or transformers.

    Raises:
        NotImplementedError: it has others.
    """
    try:
        found = _of_transformers(model) if hasattr(model, "config") else _of_timm(model)
        linears = [part for block in found.blocks for part in (*block.qkv, block.proj, block.fc1, block.fc2)]
        if all(isinstance(part, nn.Linear) for part in (*linears, *(head for _, head in found.heads))):
            return found
        lacking = "linear layers throughout"
    except (AttributeError, TypeError, ValueError) as error:
        lacking = str(error)
    raise NotImplementedError(
        f'explain: method="lrp" is not defined for this model: got {type(model).__name__} ({lacking}); expected a ViT '
        'or DeiT of vitkern, timm or transformers, for whose blocks its rules are. method="relevance" takes others.'
    )


def _of_timm(model: Any) -> Vit:
    """And of vitkern, which names parts alike."""
    blocks = []
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        act = ACTIVATIONS[mlp.act] if isinstance(mlp.act, str) else mlp.act
        blocks.append(
            Block(
                block.norm1, [attn.qkv], attn.num_heads, getattr(attn, "scale", attn.head_dim**-0.5),
                attn.q_norm, attn.k_norm, attn.proj, getattr(block, "ls1", _PLAIN),
                block.norm2, mlp.fc1, act, mlp.fc2, getattr(block, "ls2", _PLAIN),
            )
        )  # fmt: skip
    if model.global_pool not in ("token", "avg"):
        raise ValueError(f"global_pool={model.global_pool!r}")
    heads: list[tuple[int | None, nn.Linear]] = [(0 if model.global_pool == "token" else None, model.head)]
    if hasattr(model, "head_dist"):
        heads.append((1, model.head_dist))
    return Vit(model.blocks[0], blocks, model.norm, model.fc_norm, heads, model.num_prefix_tokens)


def _of_transformers(model: Any) -> Vit:
    base = model.base_model
    blocks = []
    for layer in base.layers:
        attn, mlp = layer.attention, layer.mlp
        blocks.append(
            Block(
                layer.layernorm_before, [attn.q_proj, attn.k_proj, attn.v_proj], attn.num_attention_heads, attn.scaling,
                _PLAIN, _PLAIN, attn.o_proj, _PLAIN,
                layer.layernorm_after, mlp.fc1, mlp.activation_fn, mlp.fc2, _PLAIN,
            )
        )  # fmt: skip
    if hasattr(model, "distillation_classifier"):
        heads: list[tuple[int | None, nn.Linear]] = [(0, model.cls_classifier), (1, model.distillation_classifier)]
    else:
        heads = [(0, model.classifier)]
    return Vit(base.layers[0], blocks, base.layernorm, _PLAIN, heads, 1)

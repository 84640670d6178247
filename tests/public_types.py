"""What a type checker says of the public names to someone who uses them; read by mypy, never run."""

import torch
from torch import Tensor
from typing_extensions import assert_type

import vitkern
from vitkern.interop.report import Report


def attention(q: Tensor, log: bool) -> None:
    assert_type(vitkern.attention(q, q, q), Tensor)
    assert_type(vitkern.attention(q, q, q, bias=None, return_lse=True), tuple[Tensor, Tensor])
    assert_type(vitkern.attention(q, q, q, return_lse=log), Tensor | tuple[Tensor, Tensor])
    assert_type(vitkern.attention_qkvpacked(q, causal=True), Tensor)
    assert_type(vitkern.local_attention(q, num_heads=1, block=(7, 7), return_lse=True), tuple[Tensor, Tensor])
    vitkern.attention(q, q, q, biass=q)  # type: ignore[call-overload]
    vitkern.local_attention(q, num_heads=1)  # type: ignore[call-overload]


def layernorm(x: Tensor) -> None:
    assert_type(vitkern.layernorm(x, None, None, 1e-6), Tensor)
    assert_type(vitkern.layernorm(x, None, None, 1e-6, x), tuple[Tensor, Tensor])


def maps(q: Tensor, model: torch.nn.Module) -> None:
    assert_type(vitkern.attention_map(q, q, heads=[0, 1]), Tensor)
    assert_type(vitkern.attention_relevance(q, q, q, q), Tensor)
    assert_type(vitkern.explain(model, q, "rollout", target=3).heat, Tensor)
    vitkern.explain(model, q, "saliency")  # type: ignore[arg-type]


def models() -> None:
    with vitkern.use_backend("torch"):
        assert_type(vitkern.accelerate(vitkern.create_model("vit_tiny_patch16_224")), Report)
    assert_type(vitkern.list_models("vit*"), list[str])
    vitkern.atention  # type: ignore[attr-defined] # noqa: B018

"""Which perceptron a block has: the plain one, or one of the gated ones (Shazeer 2020, arXiv 2002.05202)."""

import torch.nn as nn

from vitkern.nn.layernorm_glu import GluMlp
from vitkern.nn.layernorm_mlp import Mlp

# Names of the paper -> the activation of the gate.
GATES = {"glu": "sigmoid", "bilinear": "identity", "reglu": "relu", "geglu": "gelu", "swiglu": "silu"}
MLPS = ("mlp", *GATES)


def build_mlp(kind: str, dim: int, hidden_dim: int, act: str = "gelu", drop: float = 0.0) -> nn.Module:
    """C -> hidden -> C, over ``dim`` channels.

    Args:
        kind: "mlp", or "glu", "bilinear", "reglu", "geglu", "swiglu", named as in timm: the last is its SwiGLUPacked,
            whose gate is the first half of ``fc1``, the others its GluMlp, whose gate is the second.
        hidden_dim: width of ``fc1``: a gated one has half of it left after the gate.
        act: of "mlp".
        drop: dropout after each layer, in training.

    Raises:
        ValueError: an unknown kind, or an odd width to be halved.
    """
    if kind not in MLPS:
        raise ValueError(f"build_mlp: unknown perceptron: got mlp_layer={kind!r}; expected one of {', '.join(MLPS)}.")
    if kind == "mlp":
        return Mlp(dim, hidden_dim, act=act, drop=drop)
    if hidden_dim % 2:
        raise ValueError(
            f"build_mlp: gate and value have no common width: got {hidden_dim} hidden channels for mlp_layer={kind!r}; "
            "expected an even number. Choose another mlp_ratio."
        )
    return GluMlp(dim, hidden_dim // 2, act=GATES[kind], gate_last=kind != "swiglu", drop=drop)

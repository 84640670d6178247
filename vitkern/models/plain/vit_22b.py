"""ViT-22B (Dehghani et al. 2023, arXiv 2302.05442): attention and MLP side by side, norms of queries and keys. Named as
in timm's `ParallelScalingBlock`; its LayerNorms keep a bias, which the paper leaves out."""

from typing import Any

from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.registry import register
from vitkern.nn.parallel_block import ParallelBlock

PAPER = "Scaling Vision Transformers to 22 Billion Parameters, Dehghani et al. 2023, arXiv 2302.05442"


def _block(*args: Any, mlp_layer: str, **kwargs: Any) -> ParallelBlock:
    if mlp_layer != "mlp":
        raise ValueError(
            f"ParallelVisionTransformer: the MLP of a parallel block is the plain one: got mlp_layer={mlp_layer!r}; "
            "expected 'mlp'."
        )
    return ParallelBlock(*args, **kwargs)


class ParallelVisionTransformer(VisionTransformer):
    """A ViT of parallel blocks, `vitkern.nn.ParallelBlock`, without biases of q, k and v, with norms of q and k.

    Arguments are `VisionTransformer`'s.

    Raises:
        ValueError: a gated MLP.
    """

    def __init__(
        self, img_size: int | tuple[int, int] = 224, *, qkv_bias: bool = False, qk_norm: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(img_size, qkv_bias=qkv_bias, qk_norm=qk_norm, block_fn=_block, **kwargs)


_22b: dict[str, Any] = dict(embed_dim=6144, depth=48, num_heads=48, global_pool="map", class_token=False)
register("vit_22b_patch14_224", ParallelVisionTransformer, PAPER, patch_size=14, **_22b)

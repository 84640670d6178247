"""Ids of the Hugging Face hub: which architecture each one is, and its published configuration. No network is used.

`CONFIGS` holds keyword arguments for `transformers.AutoConfig.for_model`, so that the model of an id can be built
offline. ``architectures`` names the class that the checkpoint was saved from; "ViTModel" checkpoints have no
classifier.
"""

from collections.abc import Iterator
from typing import Any

_SIZES = {
    "tiny": dict(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768),
    "small": dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536),
    "base": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
    "huge": dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, intermediate_size=5120),
}
_SWIN_SIZES = {
    "tiny": dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
    "small": dict(embed_dim=96, depths=[2, 2, 18, 2], num_heads=[3, 6, 12, 24]),
    "base": dict(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]),
    "large": dict(embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48]),
}
# timm's checkpoints of these trainings have another head than the 1000 classes of ImageNet-1k.
_TAG_CLASSES = {"augreg_in21k": 21843, "ms_in22k": 21841, "orig_in21k": 0, "dino": 0, "mae": 0, "bamboo": 115217}
_TAG_CLASSES |= {
    "lvd142m": 0,
    "goog_in21k": 21843,
    "miil_in21k": 11221,
    "msft_florence2": 0,
    "cvnets_in22k_ft_in1k_384": 1000,
}
# Published for classes that transformers 5 has no more, so that they have no configuration here.
FORMER: dict[str, tuple[str, dict[str, Any]]] = {
    "google/vit-hybrid-base-bit-384": ("vit_base_r50_s16_384", {"num_classes": 1000, "eps": 1e-12})
}


def _vit(
    size: str, patch: int, pixels: int, *, model_type: str = "vit", head: str = "ViTForImageClassification"
) -> dict[str, Any]:
    labels = {} if head == "ViTModel" else {"num_labels": 1000}
    return dict(
        model_type=model_type,
        architectures=[head],
        **_SIZES[size],
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.02,
        layer_norm_eps=1e-12,
        image_size=pixels,
        patch_size=patch,
        num_channels=3,
        qkv_bias=True,
        **labels,
    )


def _swin(
    size: str, window: int, pixels: int, labels: int, *, v2: bool = False, pretrained: list[int] | None = None
) -> dict[str, Any]:
    return dict(
        model_type="swinv2" if v2 else "swin",
        architectures=["Swinv2ForImageClassification" if v2 else "SwinForImageClassification"],
        **_SWIN_SIZES[size],
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.1,
        initializer_range=0.02,
        layer_norm_eps=1e-5,
        image_size=pixels,
        patch_size=4,
        num_channels=3,
        mlp_ratio=4.0,
        qkv_bias=True,
        use_absolute_embeddings=False,
        window_size=window,
        **({"pretrained_window_sizes": pretrained or [0, 0, 0, 0]} if v2 else {}),
        num_labels=labels,
    )


def _configs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for size, patch, pixels in (
        ("base", 16, 224),
        ("base", 16, 384),
        ("base", 32, 384),
        ("large", 16, 224),
        ("large", 16, 384),
        ("large", 32, 384),
    ):
        yield f"google/vit-{size}-patch{patch}-{pixels}", f"vit_{size}_patch{patch}_{pixels}", _vit(size, patch, pixels)
    for size, patch in (("base", 16), ("base", 32), ("large", 16), ("large", 32), ("huge", 14)):
        yield (
            f"google/vit-{size}-patch{patch}-224-in21k",
            f"vit_{size}_patch{patch}_224",
            _vit(size, patch, 224, head="ViTModel"),
        )
    for size, pixels in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
        distilled = _vit(size, 16, pixels, model_type="deit", head="DeiTForImageClassificationWithTeacher")
        yield f"facebook/deit-{size}-patch16-{pixels}", f"deit_{size}_patch16_{pixels}", _vit(size, 16, pixels)
        yield f"facebook/deit-{size}-distilled-patch16-{pixels}", f"deit_{size}_distilled_patch16_{pixels}", distilled
    for size in _SWIN_SIZES:
        for window, pixels in ((7, 224), (12, 384)):
            name = f"{size}-patch4-window{window}-{pixels}"
            built = f"swin_{size}_patch4_window{window}_{pixels}"
            if window == 12 and size in ("tiny", "small"):
                continue
            yield f"microsoft/swin-{name}", built, _swin(size, window, pixels, 1000)
            if size in ("base", "large"):
                yield f"microsoft/swin-{name}-in22k", built, _swin(size, window, pixels, 21841)
    for size in ("tiny", "small", "base"):
        for window in (8, 16):
            name = f"microsoft/swinv2-{size}-patch4-window{window}-256"
            yield name, f"swinv2_{size}_window{window}_256", _swin(size, window, 256, 1000, v2=True)
    for size in ("base", "large"):
        yield (
            f"microsoft/swinv2-{size}-patch4-window12-192-22k",
            f"swinv2_{size}_window12_192",
            _swin(size, 12, 192, 21841, v2=True),
        )
        for window, pixels in ((16, 256), (24, 384)):
            name = f"microsoft/swinv2-{size}-patch4-window12to{window}-192to{pixels}-22kto1k-ft"
            config = _swin(size, window, pixels, 1000, v2=True, pretrained=[12, 12, 12, 6])
            yield name, f"swinv2_{size}_window12to{window}_192to{pixels}", config


CONFIGS: dict[str, dict[str, Any]] = {}
ARCHITECTURES: dict[str, str] = {}
for _id, _architecture, _config in _configs():
    CONFIGS[_id], ARCHITECTURES[_id] = _config, _architecture


def config(hub_id: str) -> dict[str, Any]:
    """The published configuration of a hub id, as keyword arguments; a fresh copy.

    Raises:
        ValueError: an id that is not in `CONFIGS`.
    """
    if hub_id not in CONFIGS:
        raise ValueError(
            f"hub: no published configuration is known: got {hub_id!r}; expected one of {', '.join(CONFIGS)}."
        )
    return {key: list(value) if isinstance(value, list) else value for key, value in CONFIGS[hub_id].items()}


def resolve(name: str) -> tuple[str, dict[str, Any]]:
    """(architecture, arguments that the checkpoint needs) of a hub id or of timm's ``architecture.tag``.

    Any other name comes back as it is.
    """
    if name in FORMER:
        return FORMER[name]
    if name in CONFIGS:
        found = CONFIGS[name]
        return ARCHITECTURES[name], {"num_classes": found.get("num_labels", 0), "eps": found["layer_norm_eps"]}
    base, _, tag = name.removeprefix("timm/").partition(".")
    if not tag:
        return base, {}
    classes = 1000 if tag.endswith("in1k") else _TAG_CLASSES.get(tag)
    return base, {} if classes is None else {"num_classes": classes}

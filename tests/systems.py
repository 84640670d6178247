"""The systems of docs/models.md: a row each."""

from typing import NamedTuple

TIMM, HF, AUTHORS = "timm", "transformers", "the authors' code, stored"


class System(NamedTuple):
    """``names``: globs of `vitkern.list_models`. ``published``: millions of parameters, by the authors or the peer.
    ``tests``: words of the files of its parity tests, and a pytest expression that chooses those of this system.
    ``note``: where a figure is another than the published one, why."""

    title: str
    names: str
    published: str
    peer: str
    weights: str
    tests: str
    chosen: str = ""
    note: str = ""


SYSTEMS = (
    System(
        "Transformer", "transformer_*", "65, 213 with embeddings", f"PyTorch, {HF}' Marian", "-", "transformer_model"
    ),
    System("BERT", "bert_*", "110, 340", HF, "google-bert/bert-*-uncased", "bert_model"),
    System("iGPT", "igpt_*", "76, 455, 1,400", HF, "openai/imagegpt-*", "igpt_model"),
    System(
        "ViT, AugReg",
        "vit_*_patch16_* vit_*_patch32_* vit_*_patch8_* vit_large_patch14_224 vit_huge_*",
        "86, 307, 632",
        TIMM,
        "timm, google/vit-*",
        "models",
        "vit_ and not swin",
    ),
    System(
        "ViT-g, G, e",
        "vit_giant_patch14_224 vit_gigantic_* vit_giant_*map* vit_e_*",
        "1,012, 1,843, 3,926",
        TIMM,
        TIMM,
        "vit_variants_model",
        "not dinov2 and not pixels",
    ),
    System("ViT-22B", "vit_22b_*", "21,743", f"{TIMM}'s block", "-", "vit_22b_model"),
    System(
        "ViT hybrid (R + BiT)",
        "vit_*_r26_* vit_*_r50_* vit_*_r_*",
        "98",
        f"{TIMM}, {HF}",
        "timm, google/vit-hybrid-base-bit-384",
        "vit_hybrid_model",
    ),
    System("ViT, early convolutions", "vit_c_* vit_p_*", "18, 37, 82", "torchvision", "-", "vit_c_model"),
    System("ViT of pixels", "vit_*_patch1_224", "-", f"{TIMM}", "-", "vit_variants_model", "of_pixels"),
    System("DINOv2", "vit_*dinov2", "22, 87, 304, 1,136", TIMM, TIMM, "vit_variants_model", "dinov2"),
    System("DeiT", "deit_*", "5, 22, 86", TIMM, "timm, facebook/deit-*", "models", "deit"),
    System("CaiT", "cait_*", "12, 17, 27, 47, 68, 271, 356", f"{TIMM}, {AUTHORS}", TIMM, "cait_model"),
    System("ConViT", "convit_*", "6, 27, 86; +: 10, 48, 152", f"{TIMM}, {AUTHORS}", TIMM, "convit_model"),
    System("CPVT", "cpvt_*", "6, 23, 88", f"{TIMM}'s parts", "-", "cpvt_model"),
    System("MLP-Mixer", "mixer_*", "19, 18, 60, 59, 206, 207, 431", TIMM, TIMM, "mixer_model"),
    System("ViTDet", "vitdet_*", "-", HF, "-", "vitdet_model"),
    System("Swin", "swin_*", "29, 50, 88, 197", TIMM, "timm, microsoft/swin-*", "models", "swin_"),
    System("SwinV2", "swinv2_[tsbl]*", "28, 50, 88, 197", TIMM, "timm, microsoft/swinv2-*", "models", "swinv2"),
    System("SwinV2-H, G", "swinv2_huge* swinv2_giant*", "658, 3,000", f"{TIMM}'s blocks", "-", "swin_v2_giant_model"),
    System("ViL", "vil_*", "6.7, 24.6, 39.7, 39.8, 55.7, 79.0", AUTHORS, "-", "vil_model"),
    System("NAT", "nat_*", "20, 28, 51, 90", AUTHORS, "-", "nat_model"),
    System("DiNAT", "dinat_*", "20, 28, 51, 90, 200", AUTHORS, "-", "nat_model", "dinat or level or block"),
    System("PVT", "pvt_[tsml]*", "13.2, 24.5, 44.2, 61.4", f"{HF}, {AUTHORS}", HF, "pvt_model"),
    System("PVTv2", "pvt_v2_*", "3.7, 14.0, 25.4, 22.6, 45.2, 62.6, 82.0", TIMM, TIMM, "pvt_v2_model"),
    System("Twins", "twins_*", "24.1, 43.8, 60.9; 24.0, 56.0, 99.2", f"{TIMM}, {AUTHORS}", TIMM, "twins_model"),
    System("CvT", "cvt_*", "20, 32, 277", f"{HF}, {AUTHORS}", HF, "cvt_model"),
    System("DaViT", "davit_*", "28, 50, 88", TIMM, TIMM, "davit_model"),
    System("HaloNet", "halonet*", "5.5, 8.1, 67.4 (H0, H1, H7)", f"{TIMM} (H1, 26t, 50ts)", TIMM, "halonet_model"),
    System("SASA-ResNet", "sasa_*", "10.3, 14.1, 18.0", "the formula in float64", "-", "sasa_model"),
    System("MobileViT", "mobilevit_*", "1.3, 2.3, 5.6", TIMM, TIMM, "mobilevit_model", "not mobilevitv2"),
    System(
        "MobileViT v2",
        "mobilevitv2_*",
        "1.4, 2.9, 4.9, 7.5, 10.6, 14.3, 18.5",
        TIMM,
        TIMM,
        "mobilevit_model",
        "mobilevitv2",
    ),
    System("MobileViT v3", "mobilevitv3_*", "1.2, 2.5, 5.8; 1.4, 3.0, 5.1", AUTHORS, "-", "mobilevit_v3_model"),
    System("VT (token-based)", "vt_*", "-", "the formula in float64", "-", "vt_model"),
    System("DynamicViT", "dynamicvit_*", "22.8, 89.5, 10.3", AUTHORS, "-", "dynamicvit_model"),
    System(
        "Deformable DETR",
        "deformable_detr*",
        "40, 34, 41, 41",
        HF,
        HF,
        "deformable_detr_model",
        note="with refinement each layer of the decoder has a class head of its own, as the authors'; transformers "
        "ties them until a checkpoint has several, and of its default of 2 classes counts 40,709,852 where 40,712,422 "
        "are here. The paper's 173 GMACs are a mean over images of COCO: 800 x 1333 pixels, of which `--describe` "
        "tells, cost 203.7, 800 x 1130 cost 173.4.",
    ),
)

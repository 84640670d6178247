"""timm: a model of each family, at one image size or several, and the sizes that make it small."""

from typing import Any

from torch import nn

from vitkern.covering.family import Family, pictures

LIBRARY = "timm"
CLASSES = 5
# name@size of a square image: one of each family whose modules differ, those without attention among them.
MODELS = """
vit_tiny_patch16_224@64 test_vit@64 test_vit2@64 test_vit3@64 test_vit4@64 vit_xsmall_patch16_clip_224@64
vit_base_patch32_clip_quickgelu_224@64 vit_base_patch16_siglip_224@64 vit_base_patch16_siglip_gap_224@64
vit_medium_patch16_gap_240@64 vit_wee_patch16_reg1_gap_256@64 vit_pwee_patch16_reg1_gap_256@64
vit_dwee_patch16_reg1_gap_256@64 vit_little_patch16_reg4_gap_256@64 vit_mediumd_patch16_reg4_gap_256@64
vit_betwixt_patch16_reg1_gap_256@64 vit_so150m_patch16_reg4_gap_256@64 vit_so150m_patch16_reg4_map_256@64
vit_so150m2_patch16_reg1_gap_256@64 vit_base_patch16_rpn_224@64 vit_small_patch16_18x2_224@64
vit_base_patch16_xp_224@64 vit_base_patch16_224_miil@64 vit_base_patch16_radio_v3@64 vit_base_patch14_reg1_tipsv2@70
vit_intern300m_patch14_448@70 eva_large_patch14_196@70 flexivit_small@60 vit_tiny_r_s16_p8_224@64
vit_small_r26_s32_224@64 vit_base_mci_224@64 test_vit_relpos@64 vit_relpos_small_patch16_rpn_224@64
vit_srelpos_small_patch16_224@64 samvit_base_patch16_224@96 samvit_base_patch16_224@112 deit_tiny_patch16_224@64
deit_tiny_distilled_patch16_224@64 deit3_small_patch16_224@64 vit_small_patch16_rope_224@64
vit_small_patch16_rope_ape_224@64 vit_small_patch16_rope_mixed_224@64 vit_small_patch16_rope_mixed_ape_224@64
vit_medium_patch16_rope_reg1_gap_256@64 vit_pe_core_tiny_patch16_384@64 vit_pe_spatial_tiny_patch16_512@64
vit_pe_lang_large_patch14_448@56 vit_small_patch16_lingbot@64 convit_tiny@64 crossvit_tiny_240@240
crossvit_9_dagger_240@240 davit_tiny@64 davit_base_fl@64 deepseek_vit_412m@84 efficientvit_b0@64 efficientvit_l1@64
fastvit_t8@64 fastvit_sa12@64 fastvit_mci0@64 gcvit_xxtiny@224 gemma4_vit_167m@48 test_maxvit@64
maxvit_tiny_tf_224@64 maxvit_pico_rw_256@64 maxvit_rmlp_pico_rw_256@64 maxvit_tiny_pm_256@64
maxxvit_rmlp_nano_rw_256@64 maxxvitv2_nano_rw_256@64 mobilevitv2_050@64 mvitv2_tiny@64 mvitv2_small_cls@64
naflexvit_base_patch16_gap@64 naflexvit_base_patch16_map@64 naflexvit_base_patch16_par_gap@64
naflexvit_base_patch16_parfac_gap@64 naflexvit_base_patch16_siglip@64 naflexvit_base_patch16_radio_v3@64
naflexvit_so150m2_patch16_reg1_gap@64 vit_small_patch14_dinov2@70 vit_small_patch14_reg4_dinov2@70
vit_giant_patch14_dinov2@70 aimv2_large_patch14_224@70 beit3_base_patch16_224@64 beit_base_patch16_224@64
beitv2_base_patch16_224@64 eva_giant_patch14_224@56 eva_giant_patch14_clip_224@56 eva02_tiny_patch14_224@56
eva02_base_patch16_clip_224@64 vit_tiny_patch16_dinov3_qkvb@64 vit_small_patch16_dinov3@64
vit_small_plus_patch16_dinov3@64 vit_base_patch16_sapiens2@64 cait_xxs24_224@64 coat_tiny@64 coat_lite_tiny@64
csatv2@128 edgenext_xx_small@64 efficientformer_l1@224 efficientformerv2_s0@224 efficientvim_m1@64 efficientvit_m0@224
focalnet_tiny_srf@64 hiera_tiny_224@224 hiera_small_abswin_256@256 hieradet_small@128 sam2_hiera_tiny@128 iformer_t@64
levit_128s@224 levit_conv_128s@224 lowformer_b0@64 lowformer_e1@64 cpubone_nano@64 mambaout_femto@64 test_coatnet@64
coatnet_0_224@64 coatnet_pico_rw_224@64 coatnet_rmlp_nano_rw_224@64 coatnet_nano_cc_224@64 coatnet_bn_0_rw_224@64
coatnext_nano_rw_224@64 poolformer_s12@64 poolformerv2_s12@64 mixer_s32_224@64 mobilenetv4_hybrid_medium_075@64
mobilenetv5_base@64 mobilevit_xxs@64 nest_tiny@64 nest_tiny_jx@64 nextvit_small@64 pit_ti_224@96
pit_ti_distilled_224@96 pvt_v2_b0@64 pvt_v2_b2_li@64 qwen3_vit_88m@64 repvit_m0_9@64 sequencer2d_s@64 shvit_s1@128
swiftformer_xs@64 swin_tiny_patch4_window7_224@112 swin_tiny_patch4_window7_224@224 swin_tiny_patch4_window7_224@64
swin_s3_tiny_224@224 swinv2_tiny_window8_256@128 swinv2_tiny_window16_256@128 swinv2_base_window12to16_192to256@128
swinv2_cr_tiny_224@224 swinv2_cr_tiny_ns_224@224 tiny_vit_5m_224@64 tnt_s_patch16_224@64 tnt_s_legacy_patch16_224@64
twins_pcpvt_small@64 twins_svt_small@64 visformer_tiny@64 vitamin_small_224@64 xcit_nano_12_p16_224@64 halonet26t@256
halonet_h1@256 halo2botnet50ts_256@128 haloregnetz_b@224 eca_halonext26ts@256 lamhalobotnet50ts_256@128
botnet26t_256@64 sebotnet33ts_256@64 eca_botnext26ts_256@64 lambda_resnet26t@64 lambda_resnet26rpt_256@64
bat_resnext26ts@256 gcresnext26ts@64 resnet50_clip@64 cs3se_edgenet_x@64 eca_nfnet_l0@64 skresnet18@64 resnest14d@64
caformer_s18@64 convformer_s18@64 gmixer_12_224@64 gmlp_ti16_224@64 resmlp_12_224@64 volo_d1_224@64
"""
VIT = dict(embed_dim=32, depth=2, num_heads=2)
SWIN = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4))
# Of timm's modules, those whose constructors take smaller sizes.
SMALL: dict[str, dict[str, Any]] = {
    "beit": VIT,
    "cait": dict(VIT, depth_token_only=1),
    "coat": dict(embed_dims=(32, 32, 32, 32), serial_depths=(1, 1, 1, 1), num_heads=4),
    "convit": dict(embed_dim=8, depth=2, num_heads=4, local_up_to_layer=1),
    "crossvit": dict(embed_dim=(16, 32), num_heads=(2, 2)),
    "davit": dict(depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4)),
    "deepseek_vit": VIT,
    "deit": VIT,
    "edgenext": dict(depths=(1, 1, 2, 1), dims=(16, 16, 32, 32)),
    "efficientformer": dict(depths=(1, 1, 1, 2), embed_dims=(16, 16, 32, 32), num_vit=1),
    "efficientformer_v2": dict(depths=(1, 1, 2, 2), embed_dims=(16, 16, 32, 32), num_vit=1),
    "efficientvit_mit": dict(widths=(8, 16, 16, 16, 32), depths=(1, 1, 1, 1, 1), head_widths=(32, 32)),
    "efficientvit_msra": dict(embed_dim=(16, 32, 32), depth=(1, 1, 1), num_heads=(2, 2, 2), key_dim=(8, 8, 8)),
    "eva": VIT,
    "fastvit": dict(layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32)),
    "gemma4_vit": dict(VIT, head_dim=16, intermediate_size=64),
    "hiera": dict(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1)),
    "hieradet_sam2": dict(embed_dim=16, num_heads=1, stages=(1, 1, 2, 1), global_att_blocks=(3,)),
    "levit": dict(embed_dim=(32, 48, 64), num_heads=(2, 3, 4), depth=(1, 1, 1), key_dim=8),
    "maxxvit": dict(depths=(1, 1, 1, 1), embed_dim=(32, 32, 64, 64), stem_width=16),
    "naflexvit": VIT,
    "pit": dict(base_dims=(16, 16, 16), depth=(1, 1, 1), heads=(1, 2, 4)),
    "pvt_v2": dict(depths=(1, 1, 1, 1), embed_dims=(16, 16, 16, 16), num_heads=(1, 2, 2, 2)),
    "qwen3_vit": VIT,
    "swiftformer": dict(layers=(1, 1, 1, 1), embed_dims=(16, 16, 32, 32)),
    "swin_transformer": SWIN,
    "swin_transformer_v2": SWIN,
    "swin_transformer_v2_cr": SWIN,
    "tiny_vit": dict(embed_dims=(16, 32, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)),
    "tnt": dict(embed_dim=32, inner_dim=8, depth=2, num_heads_outer=2),
    "twins": dict(depths=(1, 1, 2, 1), embed_dims=(16, 16, 16, 16), num_heads=(1, 2, 2, 2)),
    "vision_transformer": VIT,
    "vision_transformer_relpos": VIT,
    "vision_transformer_sam": dict(VIT, global_attn_indexes=(1,)),
    "visformer": dict(init_channels=8, embed_dim=32, depth=(1, 1, 1), num_heads=2),
    "xcit": dict(embed_dim=16, depth=1, num_heads=2, cls_attn_layers=1),
}
# Of models, those that differ from their module's.
OWN: dict[str, dict[str, Any]] = {
    "swin_s3_tiny_224": dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 2)),
    "vit_base_patch16_sapiens2": dict(VIT, num_kv_heads=1),
}
# The modules whose models are built for one image size.
SIZED = """
beit byoanet byobnet cait coat convit deepseek_vit deit efficientvit_msra eva gemma4_vit hiera levit maxxvit
mlp_mixer mobilevit naflexvit nest pit qwen3_vit sequencer swin_transformer swin_transformer_v2
swin_transformer_v2_cr tnt twins visformer vision_transformer vision_transformer_hybrid vision_transformer_relpos
vision_transformer_sam vitamin volo xcit
"""


def families() -> list[Family]:
    return [_family(*word.split("@")) for word in MODELS.split()]


def _family(name: str, size: str) -> Family:
    def build() -> tuple[nn.Module, dict[str, Any]]:
        import timm

        module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
        options = dict(OWN.get(name, SMALL.get(module, {})), num_classes=CLASSES)
        if module in SIZED.split():
            options["img_size"] = int(size)
        return timm.create_model(name, **options), {"images": pictures(int(size))}

    return Family(f"{name}, {size} pixels", build)

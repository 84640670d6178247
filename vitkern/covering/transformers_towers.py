"""Towers of transformers: one resolution, windows, stages, films."""

from vitkern.covering.transformers_parts import SWIN, VIDEO, Changed, flattened

TOWERS: dict[str, Changed] = {
    # windows, and images that they divide or do not
    "SwinForImageClassification": Changed(64, SWIN),
    "SwinModel, padded": Changed(52, dict(SWIN, image_size=52)),
    "SwinForMaskedImageModeling": Changed(64, dict(SWIN, encoder_stride=8), dict(bool_masked_pos=None)),
    "SwinBackbone": Changed(64, dict(SWIN, out_features=["stage1", "stage2"])),
    "Swinv2ForImageClassification": Changed(64, SWIN),
    "Swinv2Model, padded": Changed(52, dict(SWIN, image_size=52)),
    "Swin2SRForImageSuperResolution": Changed(
        16, dict(embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4, image_size=16, patch_size=1)
    ),
    "DonutSwinModel": Changed(64, SWIN),
    "MaskFormerSwinBackbone": Changed(64, dict(SWIN, out_features=["stage1", "stage2"])),
    # one resolution
    "VitDetModel, windows": Changed(
        64, dict(image_size=64, window_size=3, window_block_indices=[0], use_relative_position_embeddings=True)
    ),
    "VitPoseBackbone": Changed(32, dict(image_size=[32, 32], patch_size=[8, 8], num_experts=1)),
    "BeitModel, shared bias": Changed(config=dict(use_shared_relative_position_bias=True)),
    "BeitForImageClassification, relative bias": Changed(config=dict(use_relative_position_bias=True)),
    "ViTMAEForPreTraining": Changed(
        config=dict(
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
        ),
        inputs=dict(noise=(2, 16)),
    ),
    "ImageGPTModel": Changed(config=dict(n_positions=64, n_embd=32, n_layer=2, n_head=2)),
    "Siglip2VisionModel": Changed(
        inputs=dict(
            pixel_values=(2, 16, 192),
            pixel_attention_mask=[[1] * 16, [1] * 12 + [0] * 4],
            spatial_shapes=[[4, 4], [3, 4]],
        )
    ),
    "Pix2StructVisionModel": Changed(
        config=dict(patch_embed_hidden_size=192, d_ff=64, d_kv=16, seq_len=32),
        inputs=dict(flattened_patches=[flattened(12, 192)] * 2),
    ),
    # stages
    "LevitForImageClassification": Changed(
        64,
        dict(
            image_size=64,
            patch_size=16,
            hidden_sizes=[16, 24, 32],
            num_attention_heads=[2, 2, 2],
            key_dim=[4, 4, 4],
            depths=[1, 1, 1],
        ),
    ),
    "MobileViTV2ForImageClassification": Changed(64, dict(image_size=64, patch_size=2, width_multiplier=0.25)),
    "SegformerForImageClassification": Changed(64),
    "sam2.Sam2HieraDetModel": Changed(
        64,
        dict(
            image_size=[64, 64],
            hidden_size=16,
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[16, 32, 64, 128],
            window_size_per_stage=[8, 4, 4, 2],
            global_attention_blocks=[3],
        ),
    ),
    # films
    "VideoMAEModel": Changed(inputs=dict(pixel_values=VIDEO)),
    "TimesformerModel": Changed(inputs=dict(pixel_values=VIDEO)),
    "VivitModel": Changed(config=dict(tubelet_size=[2, 8, 8]), inputs=dict(pixel_values=VIDEO)),
    "VJEPA2Model": Changed(
        config=dict(
            crop_size=32,
            frames_per_clip=4,
            tubelet_size=2,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=2,
            pred_num_mask_tokens=2,
        ),
        inputs=dict(pixel_values_videos=VIDEO),
    ),
    "XCLIPVisionModel": Changed(config=dict(mit_hidden_size=32), inputs=dict(pixel_values=(8, 3, 32, 32))),
    "videoprism.VideoPrismVisionModel": Changed(inputs=dict(pixel_values_videos=VIDEO)),
    # tiles
    "llama4.Llama4VisionModel": Changed(
        config=dict(
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
            pixel_shuffle_ratio=0.5,
            intermediate_size=128,
        )
    ),
    "mllama.MllamaVisionModel": Changed(
        config=dict(
            max_num_tiles=1,
            supported_aspect_ratios=[[1, 1]],
            num_global_layers=1,
            intermediate_layers_indices=[0],
            vision_output_dim=64,
        ),
        inputs=dict(pixel_values=(2, 1, 1, 3, 32, 32), aspect_ratio_ids=[[1], [1]], aspect_ratio_mask=[[[1]], [[1]]]),
    ),
    # copies, and others
    "got_ocr2.GotOcr2VisionEncoder": Changed(
        config=dict(window_size=3, global_attn_indexes=[1], output_channels=16, num_pos_feats=8)
    ),
    "unlimited_ocr.UnlimitedOcrSamVisionEncoder": Changed(
        64, dict(image_size=64, window_size=3, global_attn_indexes=[1])
    ),
    "deepseek_ocr2.DeepseekOcr2SamVisionEncoder": Changed(
        64, dict(image_size=64, window_size=3, global_attn_indexes=[1])
    ),
    "Sam2VisionModel": Changed(
        64,
        dict(
            backbone_config=dict(
                model_type="sam2_hiera_det_model",
                image_size=[64, 64],
                hidden_size=16,
                blocks_per_stage=[1, 1, 2, 1],
                embed_dim_per_stage=[16, 32, 64, 128],
                window_size_per_stage=[8, 4, 4, 2],
                global_attention_blocks=[3],
            ),
            backbone_channel_list=[128, 64, 32, 16],
            fpn_hidden_size=16,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
    ),
    "kosmos2_5.Kosmos2_5VisionModel": Changed(
        config=dict(patch_embed_hidden_size=192), inputs=dict(flattened_patches=[flattened(12, 192)] * 2)
    ),
    "lw_detr.LwDetrViTBackbone": Changed(
        64, dict(image_size=64, pretrain_image_size=64, num_windows=4, window_block_indices=[0])
    ),
    "VideoMAEForPreTraining": Changed(
        config=dict(
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
        ),
        inputs=dict(pixel_values=VIDEO, bool_masked_pos=[[True] * 16 + [False] * 16] * 2),
    ),
    "Data2VecVisionModel": Changed(config=dict(use_relative_position_bias=True)),
    "SegGptModel": Changed(
        config=dict(
            image_size=[32, 16],
            patch_size=8,
            pretrain_image_size=32,
            intermediate_hidden_state_indices=[0, 1],
            decoder_hidden_size=16,
            merge_index=0,
        ),
        inputs=dict(pixel_values=(2, 3, 16, 16), prompt_pixel_values=(2, 3, 16, 16), prompt_masks=(2, 3, 16, 16)),
    ),
    "PerceiverForImageClassificationLearned": Changed(
        config=dict(
            num_latents=8,
            d_latents=16,
            d_model=128,
            num_blocks=1,
            num_self_attends_per_block=2,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
        )
    ),
}

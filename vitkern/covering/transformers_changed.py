"""Models of transformers that need more than the rules of `shrinking`: other sizes, or arguments of their own."""

from typing import Any, NamedTuple


class Changed(NamedTuple):
    """``size``: of the square image. ``config``: options that go before the rules'. ``inputs``: of the forward, as
    `shrinking.arguments` reads them."""

    size: int = 32
    config: dict[str, Any] = {}
    inputs: dict[str, Any] = {}


SWIN = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=64, patch_size=4)
SWIN_4 = dict(model_type="swin", **{**SWIN, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]})
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET = dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
RESNET_LAST = dict(RESNET, layer_type="basic", out_features=STAGES[3:])
RESNET_THREE = dict(RESNET, layer_type="basic", out_features=STAGES[1:])
HYBRID = dict(
    backbone_config=dict(
        model_type="rt_detr_resnet",
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=STAGES[1:],
    ),
    encoder_in_channels=[16, 16, 32],
    encoder_hidden_dim=32,
    decoder_in_channels=[32, 32, 32],
)
DINOV2 = dict(model_type="dinov2", num_hidden_layers=4, out_features=STAGES, reshape_hidden_states=False)
NECK = dict(neck_hidden_sizes=[8, 16, 16, 32], fusion_hidden_size=16)
CLIP = dict(model_type="clip_vision_model")
VIDEO = (2, 4, 3, 32, 32)
GRID = [[1, 4, 4], [1, 4, 4]]
PATCHES = dict(hidden_states=(32, 2 * 3 * 8 * 8), grid_thw=GRID)
TWO_HEADS = dict(num_heads=2)


def text_with(token: int, count: int) -> dict[str, Any]:
    """Two texts with ``count`` places for features of an image."""
    return dict(input_ids=[[5] + [token] * count + [7, 8, 9]] * 2, attention_mask=[[1] * (count + 4)] * 2)


def flattened(count: int, numbers: int) -> list[list[float]]:
    """Patches of a picture that is four wide, each with its row and its column in front."""
    return [
        [i // 4 + 1, i % 4 + 1, *((i * 7 + j * j) % 11 / 5 - 1 for j in range(numbers))] for i in range(count)
    ]


CHANGED: dict[str, Changed] = {
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
            decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=64
        ),
        inputs=dict(noise=(2, 16)),
    ),
    "ImageGPTModel": Changed(config=dict(n_positions=64, n_embd=32, n_layer=2, n_head=2)),
    "Siglip2VisionModel": Changed(
        inputs=dict(
            pixel_values=(2, 16, 192), pixel_attention_mask=[[1] * 16, [1] * 12 + [0] * 4], spatial_shapes=[[4, 4], [3, 4]]
        )
    ),
    "Pix2StructVisionModel": Changed(
        config=dict(patch_embed_hidden_size=192, d_ff=64, d_kv=16, seq_len=32), inputs=dict(flattened_patches=[flattened(12, 192)] * 2)
    ),
    # stages
    "LevitForImageClassification": Changed(
        64, dict(image_size=64, patch_size=16, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], key_dim=[4, 4, 4], depths=[1, 1, 1])
    ),
    "MobileViTV2ForImageClassification": Changed(64, dict(image_size=64, patch_size=2, width_multiplier=0.25)),
    "SegformerForImageClassification": Changed(64),
    "sam2.Sam2HieraDetModel": Changed(
        64,
        dict(
            image_size=[64, 64],
            hidden_size=16,
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[16, 32, 32, 64],
            num_attention_heads=1,
            num_attention_heads_per_stage=[1, 2, 2, 4],
            window_size_per_stage=[8, 4, 2, 1],
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
    # patches of several images in one sequence
    "qwen2_vl.Qwen2VisionTransformerPretrainedModel": Changed(config=TWO_HEADS, inputs=PATCHES),
    "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel": Changed(config=dict(TWO_HEADS, window_size=32), inputs=PATCHES),
    "qwen3_vl.Qwen3VLVisionModel": Changed(
        config=dict(deepstack_visual_indexes=[0], num_position_embeddings=16), inputs=PATCHES
    ),
    "qwen3_5.Qwen3_5VisionModel": Changed(config=dict(num_position_embeddings=16), inputs=PATCHES),
    "glm4v.Glm4vVisionModel": Changed(config=dict(out_hidden_size=32), inputs=PATCHES),
    "exaone4_5.Exaone4_5_VisionModel": Changed(config=dict(window_size=32), inputs=PATCHES),
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
        config=dict(max_num_tiles=1, supported_aspect_ratios=[[1, 1]], num_global_layers=1, intermediate_layers_indices=[0], vision_output_dim=64),
        inputs=dict(pixel_values=(2, 1, 1, 3, 32, 32), aspect_ratio_ids=[[1], [1]], aspect_ratio_mask=[[[1]], [[1]]]),
    ),
    # detection
    "DetrForObjectDetection": Changed(64, dict(backbone_config=RESNET_LAST)),
    "DetrForObjectDetection, padded": Changed(
        64, dict(backbone_config=RESNET_LAST), dict(pixel_mask=[[[1] * 40 + [0] * 24] * 64, [[1] * 64] * 64])
    ),
    "ConditionalDetrForObjectDetection": Changed(64, dict(backbone_config=RESNET_LAST)),
    "DabDetrForObjectDetection": Changed(64, dict(backbone_config=RESNET_LAST, hidden_size=32)),
    "TableTransformerForObjectDetection": Changed(64, dict(backbone_config=RESNET_LAST)),
    "DeformableDetrForObjectDetection": Changed(64, dict(backbone_config=RESNET_THREE)),
    "RTDetrForObjectDetection": Changed(64, HYBRID),
    "RTDetrV2ForObjectDetection": Changed(64, HYBRID),
    "DFineForObjectDetection": Changed(64, dict(HYBRID, lqe_hidden_dim=8)),
    "GroundingDinoForObjectDetection": Changed(
        64, dict(backbone_config=dict(SWIN_4, out_features=STAGES[1:]), text_config=dict(model_type="bert"), d_model=32)
    ),
    "MMGroundingDinoForObjectDetection": Changed(
        64, dict(backbone_config=dict(SWIN_4, out_features=STAGES[1:]), text_config=dict(model_type="bert"), d_model=32)
    ),
    # segmentation and depth
    "MaskFormerForInstanceSegmentation": Changed(
        64,
        dict(
            backbone_config=dict(SWIN_4, out_features=STAGES),
            decoder_config=dict(model_type="detr", d_model=32, num_queries=6),
            fpn_feature_size=32,
            mask_feature_size=32,
        ),
    ),
    "Mask2FormerForUniversalSegmentation": Changed(
        64,
        dict(
            backbone_config=dict(SWIN_4, out_features=STAGES),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=64,
            dim_feedforward=64,
            decoder_layers=3,
        ),
    ),
    "OneFormerForUniversalSegmentation": Changed(
        64,
        dict(
            backbone_config=dict(SWIN_4, out_features=STAGES),
            conv_dim=32,
            mask_dim=32,
            hidden_dim=32,
            encoder_feedforward_dim=64,
            dim_feedforward=64,
            decoder_layers=3,
            task_seq_len=9,
            text_encoder_width=32,
            text_encoder_context_length=9,
            text_encoder_num_layers=1,
            text_encoder_vocab_size=96,
        ),
        dict(task_inputs=(2, 9)),
    ),
    "UperNetForSemanticSegmentation": Changed(
        64,
        dict(
            backbone_config=dict(SWIN_4, out_features=STAGES), pool_scales=[1, 2], use_auxiliary_head=False, hidden_size=16
        ),
    ),
    "EomtForUniversalSegmentation": Changed(
        config=dict(num_blocks=1, num_upscale_blocks=1, num_attention_heads=2), inputs={}
    ),
    "DPTForDepthEstimation": Changed(config=dict(NECK, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3])),
    "DepthAnythingForDepthEstimation": Changed(
        32, dict(NECK, backbone_config=DINOV2, patch_size=8, reassemble_hidden_size=32, head_hidden_size=8)
    ),
    "ZoeDepthForDepthEstimation": Changed(
        32,
        dict(
            NECK,
            backbone_config=dict(
                model_type="beit", num_hidden_layers=4, out_features=STAGES, reshape_hidden_states=False
            ),
            bottleneck_features=16,
            num_relative_features=16,
        ),
    ),
    "VitMatteForImageMatting": Changed(
        64,
        dict(
            backbone_config=dict(
                model_type="vitdet", num_channels=4, image_size=64, patch_size=16, use_relative_position_embeddings=True
            ),
            hidden_size=32,
            fusion_hidden_sizes=[16, 8, 8, 8],
            convstream_hidden_sizes=[8, 8, 8],
        ),
        dict(pixel_values=(2, 4, 64, 64)),
    ),
    "SamModel": Changed(
        32,
        dict(
            vision_config=dict(output_channels=32, window_size=3, global_attn_indexes=[1], num_pos_feats=16),
            mask_decoder_config=dict(iou_head_hidden_dim=16),
        ),
        dict(input_points=(2, 1, 2, 2)),
    ),
    "SamHQModel": Changed(
        32,
        dict(
            vision_config=dict(output_channels=32, window_size=3, global_attn_indexes=[1], num_pos_feats=16),
            mask_decoder_config=dict(iou_head_hidden_dim=16, vit_dim=32),
        ),
        dict(input_points=(2, 1, 2, 2)),
    ),
    "CLIPSegForImageSegmentation": Changed(config=dict(extract_layers=[0, 1], reduce_dim=16), inputs={}),
    "OwlViTForObjectDetection": Changed(config=dict(projection_dim=32), inputs={}),
    "Owlv2ForObjectDetection": Changed(config=dict(projection_dim=32), inputs={}),
    # matching
    "SuperGlueForKeypointMatching": Changed(
        32,
        dict(
            keypoint_detector_config=dict(encoder_hidden_sizes=[8, 8, 8, 16], decoder_hidden_size=16, descriptor_decoder_dim=32),
            hidden_size=32,
            keypoint_encoder_sizes=[16, 32],
            gnn_layers_types=["self", "cross"],
            num_attention_heads=2,
        ),
        dict(pixel_values=(2, 2, 3, 32, 32)),
    ),
    # images and words
    "BlipForConditionalGeneration": Changed(config=dict(text_config=dict(encoder_hidden_size=32))),
    "LlavaModel": Changed(
        config=dict(vision_config=CLIP, text_config=dict(model_type="llama"), image_token_index=90),
        inputs=text_with(90, 16),
    ),
    "LlavaModel, Mistral": Changed(
        config=dict(vision_config=CLIP, text_config=dict(model_type="mistral", sliding_window=5), image_token_index=90),
        inputs=text_with(90, 16),
    ),
    "LlavaModel, Gemma 2": Changed(
        config=dict(vision_config=CLIP, text_config=dict(model_type="gemma2", sliding_window=5), image_token_index=90),
        inputs=text_with(90, 16),
    ),
    "PaliGemmaModel": Changed(
        config=dict(
            projection_dim=32,
            vision_config=dict(model_type="siglip_vision_model"),
            text_config=dict(model_type="gemma"),
            image_token_index=90,
        ),
        inputs=dict(text_with(90, 16), token_type_ids=[[0] * 20] * 2),
    ),
    "InternVLModel": Changed(config=dict(image_token_id=90, image_seq_length=4), inputs=text_with(90, 4)),
    "Idefics2Model": Changed(
        config=dict(
            image_token_id=90,
            perceiver_config=dict(resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=16),
            text_config=dict(model_type="mistral"),
        ),
        inputs=dict(text_with(90, 4), pixel_values=(2, 1, 3, 32, 32)),
    ),
    "VisionEncoderDecoderModel": Changed(
        config=dict(
            encoder=dict(model_type="vit"),
            decoder=dict(model_type="bert", is_decoder=True, add_cross_attention=True),
        ),
        inputs=dict(decoder_input_ids=[[3, 4, 5, 6]] * 2),
    ),
    "VisionTextDualEncoderModel": Changed(
        config=dict(vision_config=dict(model_type="vit"), text_config=dict(model_type="bert"))
    ),
}

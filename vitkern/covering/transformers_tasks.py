"""Models of transformers for a task: detection, segmentation and depth, matching."""

from vitkern.covering.transformers_parts import DINOV2, HYBRID, NECK, RESNET_LAST, RESNET_THREE, STAGES, SWIN_4, Changed

TASKS: dict[str, Changed] = {
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
            backbone_config=dict(SWIN_4, out_features=STAGES),
            pool_scales=[1, 2],
            use_auxiliary_head=False,
            hidden_size=16,
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
            keypoint_detector_config=dict(
                encoder_hidden_sizes=[8, 8, 8, 16], decoder_hidden_size=16, descriptor_decoder_dim=32
            ),
            hidden_size=32,
            keypoint_encoder_sizes=[16, 32],
            gnn_layers_types=["self", "cross"],
            num_attention_heads=2,
        ),
        dict(pixel_values=(2, 2, 3, 32, 32)),
    ),
    "LwDetrForObjectDetection": Changed(
        64,
        dict(
            backbone_config=dict(
                model_type="lw_detr_vit",
                image_size=64,
                pretrain_image_size=64,
                num_windows=4,
                window_block_indices=[0],
                out_indices=[1, 2],
            ),
            projector_scale_factors=[1.0],
            decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2,
            group_detr=2,
            num_queries=6,
        ),
    ),
    "LightGlueForKeypointMatching": Changed(
        32,
        dict(
            keypoint_detector_config=dict(
                encoder_hidden_sizes=[8, 8, 8, 16], decoder_hidden_size=16, descriptor_decoder_dim=32
            ),
            descriptor_dim=32,
        ),
        dict(pixel_values=(2, 2, 3, 32, 32)),
    ),
    "PromptDepthAnythingForDepthEstimation": Changed(
        32, dict(NECK, backbone_config=DINOV2, patch_size=8, reassemble_hidden_size=32, head_hidden_size=8)
    ),
    "EomtDinov3ForUniversalSegmentation": Changed(config=dict(num_blocks=1, num_upscale_blocks=1)),
}

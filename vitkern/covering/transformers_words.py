"""Models of transformers that take images and words."""

from vitkern.covering.transformers_parts import CLIP, GRID, TWO_HEADS, Changed, text_with

WORDS: dict[str, Changed] = {
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
    "BridgeTowerModel": Changed(
        config=dict(
            hidden_size=64, num_attention_heads=2, vision_config=dict(hidden_size=64), text_config=dict(hidden_size=64)
        )
    ),
    "LayoutLMv3Model": Changed(
        config=dict(coordinate_size=5, shape_size=6, input_size=32, max_2d_position_embeddings=64),
        inputs=dict(bbox=[[[1, 2, 3, 4]] * 9] * 2),
    ),
    "Kosmos2Model": Changed(
        inputs=dict(text_with(90, 4), image_embeds_position_mask=[[0] + [1] * 4 + [0] * 3] * 2),
        config=dict(latent_query_num=4),
    ),
    "GitForCausalLM": Changed(),
    "Gemma3Model": Changed(
        config=dict(mm_tokens_per_image=4, image_token_id=90, text_config=dict(sliding_window=5)),
        inputs=dict(text_with(90, 4), token_type_ids=[[0] + [1] * 4 + [0] * 3] * 2),
    ),
    "Mistral3Model": Changed(
        config=dict(image_token_id=90, spatial_merge_size=2),
        inputs=dict(text_with(90, 4), image_sizes=[[32, 32], [32, 32]]),
    ),
    "Idefics3Model": Changed(
        config=dict(image_token_id=90, scale_factor=2), inputs=dict(text_with(90, 4), pixel_values=(2, 1, 3, 32, 32))
    ),
    "SmolVLMModel": Changed(
        config=dict(image_token_id=90, scale_factor=2), inputs=dict(text_with(90, 4), pixel_values=(2, 1, 3, 32, 32))
    ),
    "Blip2Model": Changed(
        config=dict(
            image_token_id=90,
            image_token_index=90,
            num_query_tokens=4,
            text_config=dict(model_type="opt", word_embed_proj_dim=32),
        ),
        inputs=text_with(90, 4),
    ),
    "XCLIPModel": Changed(
        config=dict(
            vision_config=dict(
                mit_hidden_size=16, mit_num_attention_heads=2, mit_intermediate_size=32, mit_num_hidden_layers=1
            ),
            prompt_num_attention_heads=2,
        ),
        inputs=dict(pixel_values=(2, 4, 3, 32, 32)),
    ),
    "VisualBertModel": Changed(
        config=dict(visual_embedding_dim=20), inputs=dict(visual_embeds=(2, 4, 20), visual_attention_mask=[[1] * 4] * 2)
    ),
    "UdopModel": Changed(
        config=dict(d_kv=16, d_ff=64),
        inputs=dict(bbox=[[[0.1, 0.2, 0.3, 0.4]] * 9] * 2, decoder_input_ids=[[3, 4]] * 2),
    ),
    "VisionEncoderDecoderModel, TrOCR": Changed(
        config=dict(
            encoder=dict(model_type="deit"),
            decoder=dict(model_type="trocr", is_decoder=True, add_cross_attention=True, cross_attention_hidden_size=32),
        ),
        inputs=dict(decoder_input_ids=[[3, 4, 5, 6]] * 2),
    ),
    "IdeficsModel": Changed(
        config=dict(
            vision_config=dict(embed_dim=32, num_attention_heads=2),
            perceiver_config=dict(use_resampler=False),
            cross_layer_interval=1,
        ),
        inputs=dict(pixel_values=(2, 1, 3, 32, 32), image_attention_mask=[[[1]] * 9] * 2),
    ),
    "Florence2Model": Changed(
        64,
        dict(
            image_token_id=90,
            vision_config=dict(
                depths=[1, 1],
                embed_dim=[16, 32],
                num_heads=[2, 4],
                num_groups=[2, 4],
                patch_size=[7, 3],
                patch_stride=[4, 2],
                patch_padding=[3, 1],
                patch_prenorm=[False, True],
                window_size=4,
                projection_dim=32,
            ),
            text_config=dict(model_type="bart", max_position_embeddings=96),
        ),
        text_with(90, 65),
    ),
    "Qwen2VLModel": Changed(
        config=dict(
            image_token_id=90,
            vision_config=dict(TWO_HEADS, hidden_size=32),
            text_config=dict(rope_parameters=dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=1e4)),
        ),
        inputs=dict(
            text_with(90, 4),
            pixel_values=(32, 384),
            image_grid_thw=GRID,
            mm_token_type_ids=[[0] + [1] * 4 + [0] * 3] * 2,
        ),
    ),
}

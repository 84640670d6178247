"""Towers of transformers that take the patches of several images in one sequence."""

from vitkern.covering.transformers_parts import GRID, TWO_HEADS, Changed, patches

GRIDS: dict[str, Changed] = {
    "qwen2_vl.Qwen2VisionTransformerPretrainedModel": Changed(config=TWO_HEADS, inputs=patches(384)),
    "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel": Changed(
        config=dict(TWO_HEADS, window_size=32), inputs=patches(384)
    ),
    "qwen3_vl.Qwen3VLVisionModel": Changed(
        config=dict(deepstack_visual_indexes=[0], num_position_embeddings=16), inputs=patches(384)
    ),
    "qwen3_5.Qwen3_5VisionModel": Changed(config=dict(num_position_embeddings=16), inputs=patches(384)),
    "glm4v.Glm4vVisionModel": Changed(config=dict(out_hidden_size=32), inputs=patches(384)),
    "exaone4_5.Exaone4_5_VisionModel": Changed(config=dict(window_size=32), inputs=patches(384)),
    "ernie4_5_vl_moe.Ernie4_5_VLMoeVisionTransformerPretrainedModel": Changed(inputs=patches(192)),
    "cohere_compass.CohereCompassVisionModel": Changed(inputs=patches(384)),
    "glm_ocr.GlmOcrVisionModel": Changed(config=dict(out_hidden_size=32), inputs=patches(384)),
    "glm4v_moe.Glm4vMoeVisionModel": Changed(config=dict(out_hidden_size=32), inputs=patches(384)),
    "glm_image.GlmImageVisionModel": Changed(inputs=patches(192, "pixel_values")),
    "cosmos3_edge.Cosmos3EdgeVisionModel": Changed(inputs=patches(192, "pixel_values")),
    "qwen2_5_omni.Qwen2_5OmniVisionEncoder": Changed(config=dict(TWO_HEADS, window_size=32), inputs=patches(384)),
    "qwen3_omni_moe.Qwen3OmniMoeVisionEncoder": Changed(
        config=dict(deepstack_visual_indexes=[0], num_position_embeddings=16), inputs=patches(384)
    ),
    "qwen3_vl_moe.Qwen3VLMoeVisionModel": Changed(
        config=dict(deepstack_visual_indexes=[0], num_position_embeddings=16), inputs=patches(384)
    ),
    "qwen3_5_moe.Qwen3_5MoeVisionModel": Changed(config=dict(num_position_embeddings=16), inputs=patches(384)),
    "qwen4_exp.Qwen4ExpVisionModel": Changed(config=dict(num_position_embeddings=16), inputs=patches(384)),
    "kimi_k25.Kimi_K25VisionModel": Changed(inputs=dict(pixel_values=(32, 3, 8, 8), grid_thw=GRID)),
    "hunyuan_vl.HunYuanVLVisionTransformer": Changed(inputs=patches(192, "pixel_values")),
    "hy_v4_vl.HYV4VLVisionModel": Changed(inputs=patches(192, "pixel_values")),
    "lfm3_vl.Lfm3VlVisionModel": Changed(inputs=patches(384, "pixel_values")),
    "minimax_m3_vl.MiniMaxM3VLVisionModel": Changed(inputs=patches(384, "pixel_values")),
    "muse_glimmer.MuseGlimmerVisionModel": Changed(inputs=patches(384, "pixel_values")),
    "muse_spark.MuseSparkVisionModel": Changed(inputs=patches(384, "pixel_values")),
    "video_llama_3.VideoLlama3VisionModel": Changed(
        inputs=dict(pixel_values=(32, 192), grid_thw=GRID, merge_sizes=[1, 1])
    ),
    "paddleocr_vl.PaddleOCRVisionModel": Changed(inputs=dict(pixel_values=(1, 32, 3, 8, 8), grid_thw=GRID)),
    "minicpmv4_6.MiniCPMV4_6VisionModel": Changed(
        inputs=dict(pixel_values=(1, 3, 8, 256), target_sizes=[[4, 4], [4, 4]])
    ),
    "gemma4.Gemma4VisionModel": Changed(
        inputs=dict(pixel_values=(2, 16, 192), pixel_position_ids=[[[i % 4, i // 4] for i in range(16)]] * 2)
    ),
}

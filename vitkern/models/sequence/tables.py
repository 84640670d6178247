"""What other libraries call the parameters of these models; see `vitkern.models.sequence.keys`."""

from vitkern.models.sequence.keys import Table, rows

TORCH = Table(
    "torch.nn.Transformer",
    rows("""
        {side}.layers.{i}.self_attn.in_proj_{p} = {side}.{i}.attn.qkv.{p}
        {side}.layers.{i}.self_attn.out_proj.{p} = {side}.{i}.attn.proj.{p}
        {side}.layers.{i}.linear1.{p} = {side}.{i}.mlp.fc1.{p}
        {side}.layers.{i}.linear2.{p} = {side}.{i}.mlp.fc2.{p}
        {side}.layers.{i}.norm1.{p} = {side}.{i}.norm1.{p}
        {side}.norm.{p} = {side}_norm.{p}
        encoder.layers.{i}.norm2.{p} = encoder.{i}.norm2.{p}
        decoder.layers.{i}.multihead_attn.in_proj_{p} = decoder.{i}.cross.q.{p} + decoder.{i}.cross.kv.{p}
        decoder.layers.{i}.multihead_attn.out_proj.{p} = decoder.{i}.cross.proj.{p}
        decoder.layers.{i}.norm2.{p} = decoder.{i}.norm_cross.{p}
        decoder.layers.{i}.norm3.{p} = decoder.{i}.norm2.{p}
    """),
)

_MARIAN, _MARIAN_CROSS = "model.{side}.layers.{i}.self_attn", "model.decoder.layers.{i}.encoder_attn"
MARIAN = Table(
    "transformers' MarianMTModel",
    rows(f"""
        model.shared.weight = embed.weight
        {_MARIAN}.q_proj.{{p}} + {_MARIAN}.k_proj.{{p}} + {_MARIAN}.v_proj.{{p}} = {{side}}.{{i}}.attn.qkv.{{p}}
        {_MARIAN}.out_proj.{{p}} = {{side}}.{{i}}.attn.proj.{{p}}
        {_MARIAN}_layer_norm.{{p}} = {{side}}.{{i}}.norm1.{{p}}
        {_MARIAN_CROSS}.q_proj.{{p}} = decoder.{{i}}.cross.q.{{p}}
        {_MARIAN_CROSS}.k_proj.{{p}} + {_MARIAN_CROSS}.v_proj.{{p}} = decoder.{{i}}.cross.kv.{{p}}
        {_MARIAN_CROSS}.out_proj.{{p}} = decoder.{{i}}.cross.proj.{{p}}
        {_MARIAN_CROSS}_layer_norm.{{p}} = decoder.{{i}}.norm_cross.{{p}}
        model.{{side}}.layers.{{i}}.fc1.{{p}} = {{side}}.{{i}}.mlp.fc1.{{p}}
        model.{{side}}.layers.{{i}}.fc2.{{p}} = {{side}}.{{i}}.mlp.fc2.{{p}}
        model.{{side}}.layers.{{i}}.final_layer_norm.{{p}} = {{side}}.{{i}}.norm2.{{p}}
    """),
    ignored=r"model\.(en|de)coder\.embed_positions\.weight",
    copies=(r"lm_head\.weight|model\.(en|de)coder\.embed_tokens\.weight", "model.shared.weight"),
    zero=r"final_logits_bias",
)

_BERT = "encoder.layer.{i}.attention.self"
BERT = Table(
    "transformers' BertModel",
    rows(f"""
        embeddings.word_embeddings.weight = embed.weight
        embeddings.position_embeddings.weight = pos_embed
        embeddings.token_type_embeddings.weight = type_embed.weight
        embeddings.LayerNorm.{{p}} = norm.{{p}}
        {_BERT}.query.{{p}} + {_BERT}.key.{{p}} + {_BERT}.value.{{p}} = blocks.{{i}}.attn.qkv.{{p}}
        encoder.layer.{{i}}.attention.output.dense.{{p}} = blocks.{{i}}.attn.proj.{{p}}
        encoder.layer.{{i}}.attention.output.LayerNorm.{{p}} = blocks.{{i}}.norm1.{{p}}
        encoder.layer.{{i}}.intermediate.dense.{{p}} = blocks.{{i}}.mlp.fc1.{{p}}
        encoder.layer.{{i}}.output.dense.{{p}} = blocks.{{i}}.mlp.fc2.{{p}}
        encoder.layer.{{i}}.output.LayerNorm.{{p}} = blocks.{{i}}.norm2.{{p}}
        pooler.dense.{{p}} = pooler.{{p}}
        classifier.{{p}} = head.{{p}}
    """),
    # Checkpoints of the first release; and heads of the pre-training, which are no part of the encoder.
    renamed=((r"^bert\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias")),
    ignored=r"embeddings\.position_ids|cls\..*",
)

IMAGEGPT = Table(
    "transformers' ImageGPTForCausalImageModeling",
    rows("""
        transformer.wte.weight = embed.weight
        transformer.wpe.weight = pos_embed
        transformer.h.{i}.ln_1.weight = blocks.{i}.norm1.weight
        transformer.h.{i}.attn.c_attn.weight ^T = blocks.{i}.attn.qkv.weight
        transformer.h.{i}.attn.c_attn.bias = blocks.{i}.attn.qkv.bias
        transformer.h.{i}.attn.c_proj.weight ^T = blocks.{i}.attn.proj.weight
        transformer.h.{i}.attn.c_proj.bias = blocks.{i}.attn.proj.bias
        transformer.h.{i}.ln_2.weight = blocks.{i}.norm2.weight
        transformer.h.{i}.mlp.c_fc.weight ^T = blocks.{i}.mlp.fc1.weight
        transformer.h.{i}.mlp.c_fc.bias = blocks.{i}.mlp.fc1.bias
        transformer.h.{i}.mlp.c_proj.weight ^T = blocks.{i}.mlp.fc2.weight
        transformer.h.{i}.mlp.c_proj.bias = blocks.{i}.mlp.fc2.bias
        transformer.ln_f.weight = norm.weight
        lm_head.weight = head.weight
    """),
    ignored=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",  # the mask
)

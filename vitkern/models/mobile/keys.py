"""The names of MobileViT's authors -> ours: v1, v2 and v3 are all built of cvnets' parts."""

import re
from collections.abc import Sequence

from vitkern.models.tables import Rows, Target

_WB = r"(weight|bias)"
# Every convolution of cvnets is a block of a convolution and a norm.
_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
STEM: Rows = [
    (r"conv_1\.block\.conv\.weight", "stem.conv.weight"),
    (rf"conv_1\.block\.norm\.{_BN}", r"stem.bn.\1"),
    (r"conv_1x1_exp\.block\.conv\.weight", "final_conv.conv.weight"),
    (rf"conv_1x1_exp\.block\.norm\.{_BN}", r"final_conv.bn.\1"),
    (rf"classifier\.(?:fc|1)\.{_WB}", r"head.fc.\1"),
]
_CONVS = {
    "block.exp_1x1": "conv1_1x1",
    "block.conv_3x3": "conv2_kxk",
    "block.red_1x1": "conv3_1x1",
    "local_rep.conv_3x3": "conv_kxk",
    "local_rep.0": "conv_kxk",
    "conv_proj": "conv_proj",
    "fusion": "conv_fusion",
}
_CONV = "|".join(map(re.escape, _CONVS))
ROWS: Sequence[tuple[str, Target]] = [
    (rf"({_CONV})\.block\.conv\.weight", lambda m: f"{_CONVS[m[1]]}.conv.weight"),
    (rf"({_CONV})\.block\.norm\.{_BN}", lambda m: f"{_CONVS[m[1]]}.bn.{m[2]}"),
    (r"local_rep\.(?:conv_1x1|1)\.block\.conv\.weight", "conv_1x1.weight"),
    (rf"global_rep\.\d+\.{_WB}", r"norm.\1"),
    (rf"global_rep\.(\d+)\.pre_norm_(?:mha|attn)\.0\.{_WB}", r"transformer.\1.norm1.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_mha\.1\.qkv_proj\.{_WB}", r"transformer.\1.attn.qkv.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_mha\.1\.out_proj\.{_WB}", r"transformer.\1.attn.proj.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_attn\.1\.(qkv|out)_proj\.block\.conv\.{_WB}", r"transformer.\1.attn.\2_proj.\3"),
    (rf"global_rep\.(\d+)\.pre_norm_ffn\.0\.{_WB}", r"transformer.\1.norm2.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_ffn\.1\.(?:block\.conv\.)?{_WB}", r"transformer.\1.mlp.fc1.\2"),
    (rf"global_rep\.(\d+)\.pre_norm_ffn\.(?:4|3\.block\.conv)\.{_WB}", r"transformer.\1.mlp.fc2.\2"),
]
BLOCK: tuple[str, Target] = (r"layer_(\d+)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.{m[2]}.")

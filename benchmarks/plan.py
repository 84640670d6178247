"""Everything worth recording on a GPU, the most telling first: the arguments of `python -m benchmarks`, in order."""

ATTENTION = ("window_attention", "attention")
OTHERS = ("layernorm_mlp", "layernorm", "neighborhood_attention", "sparse_attention")
BOTH = ("--mode", "forward", "backward")

PLAN = (
    (*ATTENTION, "--dtype", "bf16", *BOTH),
    ("models", "--dtype", "bf16", "--mode", "forward", "training", "--compile"),
    (*OTHERS, "--dtype", "bf16", *BOTH),
    ("tune", "window_attention", *BOTH),
    ("tune", "attention", *BOTH),
    ("tune", "layernorm_mlp", *BOTH),
    ("scale",),
    ("scale", "--mode", "training"),
    (*ATTENTION, *OTHERS, "--dtype", "fp16"),
    (*ATTENTION, *OTHERS, "--dtype", "fp32"),
)

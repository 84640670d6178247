"""Attention with convolutional projections: dense attention to a quarter of the tokens, with another scale."""

from dataclasses import replace

from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._attention_case import problem
from vitkern.lab.specimens._attention_layers import Attention

NAME = "convolutional_attention"
CASES = (problem("CvT: 65 tokens, 17 keys, scale of all channels", (2, 3, 65, 16), keys=17, scale=48**-0.5),)

SPECIMEN = View(
    name=NAME,
    of="attention",
    check=tuple(replace(case, family=NAME) for case in CASES),
    layers=(
        Attention("CvT-13 stage 1", 1, 3136, 64, keys=784),
        Attention("CvT-13 stage 2", 3, 784, 64, keys=196),
        Attention("CvT-13 stage 3", 6, 197, 64, keys=50),
    ),
    modules={
        "ConvolutionalAttention": Module((2, 25, 32), dict(dim=32, num_heads=2), ((4, 6),)),
    },
)

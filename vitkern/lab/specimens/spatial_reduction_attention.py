"""Attention to spatially reduced keys: dense attention of many queries to few keys. Its layers, PVT's, are among those
of attention."""

from dataclasses import replace

from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._attention_case import problem

NAME = "spatial_reduction_attention"
CASES = (
    problem("PVT: 12x12 tokens, reduced by 4", (2, 2, 144, 32), keys=9),
    problem("PVTv2-Li: 10x10 tokens, 7x7 keys", (1, 1, 100, 64), keys=49),
)

SPECIMEN = View(
    name=NAME,
    of="attention",
    check=tuple(replace(case, family=NAME) for case in CASES),
    modules={
        "SpatialReductionAttention": Module((2, 24, 32), dict(dim=32, num_heads=2, sr_ratio=2), ((4, 6),)),
    },
)

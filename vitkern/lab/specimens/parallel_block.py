"""The parallel block of ViT-22B: dense attention beside an MLP."""

from dataclasses import replace

from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._attention_case import problem

NAME = "parallel_block"
CASES = (problem("33 tokens of a parallel block", (2, 3, 33, 24)),)

SPECIMEN = View(
    name=NAME,
    of="attention",
    check=tuple(replace(case, family=NAME) for case in CASES),
    modules={"ParallelBlock": Module((2, 5, 32), dict(dim=32, num_heads=2, mlp_ratio=2.0))},
)

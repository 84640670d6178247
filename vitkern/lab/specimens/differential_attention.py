"""Differential attention: two softmaxes of one head, with values twice as wide as queries."""

from dataclasses import replace

from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._attention_case import problem

NAME = "differential_attention"
CASES = (problem("a softmax of a head, values twice as wide", (2, 2, 50, 16), width=32),)

SPECIMEN = View(
    name=NAME,
    of="attention",
    check=tuple(replace(case, family=NAME) for case in CASES),
    modules={"DifferentialAttention": Module((2, 5, 32), dict(dim=32, num_heads=2, qk_norm=True))},
)

"""Attention of the class token of CaiT, and pooling by attention: dense attention of one query, where its projections
are not absorbed."""

from dataclasses import replace

from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._attention_case import problem

NAME = "class_attention"

SPECIMEN = View(
    name=NAME,
    of="attention",
    check=tuple(
        replace(problem(name, (2, heads, 1, dim), keys=keys), family=NAME)
        for name, heads, dim, keys in (("one query of 197 keys", 8, 48, 197), ("one query of 50 keys", 3, 16, 50))
    ),
    modules={
        "ClassAttention": Module((2, 5, 32), dict(dim=32, num_heads=2)),
        "AttentionPool": Module((2, 5, 32), dict(dim=32, num_heads=2)),
    },
)

"""Nadaraya-Watson kernel regression: dense attention of one head, with a learned bias for each key."""

from dataclasses import replace

from vitkern.lab.proving.integration import Module
from vitkern.lab.specimen import View
from vitkern.lab.specimens._attention_case import problem

NAME = "nadaraya_watson"
CASES = (
    problem("Nadaraya-Watson: 50 keys on a line", (1, 1, 33, 1), keys=50, bias=(1, 1, 1, 50), scale=1.0),
    problem("Nadaraya-Watson: 20 keys in the plane", (2, 1, 17, 2), keys=20, bias=(2, 1, 1, 20), width=8, scale=1.0),
)

SPECIMEN = View(
    name=NAME,
    of="attention",
    check=tuple(replace(case, family=NAME) for case in CASES),
    modules={"NadarayaWatson": Module((2, 5, 3), dict(width=0.7))},
)

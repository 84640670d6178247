"""Random cases: `draw` makes one out of an operator's name and a seed, always the same one; what all operators' cases
have in common is drawn here.

Costs are bounded: a case is drawn again until its tiles fit a budget that is small as a rule and rarely large, so that
long sequences come with few heads, or with the large blocks of a GPU.
"""

import random

from vitkern.lab.fuzzing.case import Case

ARCHS = (80, 90, 100, 120, 942)
TILES = 24  # of forward and backward together, in most cases
RARE_TILES = 100
OPERAND_LAYOUTS = ("permuted", "heads inside", "transposed", "packed", "expanded", "sliced", "misaligned", "stepped")
SPECIAL = 0.1  # share of the cases with NaN or infinities


def draw(op: str, seed: int) -> Case:
    """A case of the operator ``op``."""
    from vitkern.lab.specimens import specimens

    specimen, rng = specimens()[op], random.Random(f"{op}:{seed}")
    budget = RARE_TILES if rng.random() < 0.03 else TILES
    while True:
        case = specimen.draw(rng)
        if specimen.tiles(case) <= budget:
            return case


def chance(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def common(rng: random.Random, operands: tuple[str, ...], *, arch_share: float) -> dict:
    """Fields that all cases have. ``operands``: those that may be laid out in some way."""
    backward = chance(rng, 0.85)
    found = dict(
        dtype=rng.choice(("fp32", "fp16", "bf16")),
        arch=rng.choice(ARCHS) if chance(rng, arch_share) else 0,
        backward=backward,
        twice=chance(rng, 0.1),
        frozen=tuple(name for name in operands if chance(rng, 0.5)) if backward and chance(rng, 0.15) else (),
    )
    layouts = {}
    if chance(rng, 0.8):
        layouts = {name: rng.choice(OPERAND_LAYOUTS) for name in operands if chance(rng, 0.6)}
        if backward and chance(rng, 0.6):
            layouts["grad out"] = rng.choice((*OPERAND_LAYOUTS, "constant"))
    return found | dict(layouts=layouts)


def thawed(found: dict, names: tuple[str, ...]) -> None:
    """Some operand of ``names`` keeps its gradient."""
    if not set(found["frozen"]) < set(names):
        found["frozen"] = ()

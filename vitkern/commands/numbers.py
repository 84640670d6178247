"""Numbers that options take: what is out of range is refused where it is parsed."""

import argparse
import math
import re
from collections.abc import Callable

LARGEST = 10**12


def whole(least: int, most: int = LARGEST) -> Callable[[str], int]:
    """The ``type`` of an option that takes whole numbers from ``least`` to ``most``."""

    def number(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number {_between(least, most)}")
        return value

    return number


def real(least: float, most: float = LARGEST) -> Callable[[str], float]:
    """The ``type`` of an option that takes finite numbers from ``least`` to ``most``."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}; expected a number {_between(least, most)}")
        return value

    return number


def _between(least: float, most: float) -> str:
    return f"of {least:g} or more" if most == LARGEST else f"from {least:g} to {most:g}"

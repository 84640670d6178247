"""Times of a log: what a cell says, and whether a column says something else than seconds."""

import math
import re
from datetime import datetime, timezone

import numpy as np

_NUMBER = re.compile(r"[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# Times written as digits: how many, and what the last ones are besides year, month and day.
_CLOCKS = {8: (), 12: (24, 60), 14: (24, 60, 60)}
_EXAMPLES = {8: "2024-01-31", 12: "2024-01-31T23:59", 14: "2024-01-31T23:59:59"}
_PART = 0.9  # of a column that has to look so
_FAR = 1e11  # the year 5138 in seconds, 1973 in milliseconds


def parse_time(text: str) -> int | float | None:
    """Seconds since 1970 of a number or an ISO 8601 date; None where it is neither, or beyond 2^53."""
    if _NUMBER.fullmatch(text):
        try:
            return _in_range(int(text))
        except ValueError:  # a fraction, an exponent, or thousands of digits
            number = float(text)
        return _in_range(int(number) if number.is_integer() else number) if math.isfinite(number) else None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    return int(seconds) if seconds.is_integer() else seconds


def _in_range(seconds: int | float) -> int | float | None:
    return seconds if abs(seconds) < 2**53 else None


def unit_note(times: np.ndarray) -> str | None:
    """What to tell of (events,) seconds that look like dates written as digits, or like milliseconds; None: nothing."""
    whole = times.astype(np.int64)
    for digits, example in _EXAMPLES.items():
        if np.mean(_is_date(whole, digits)) > _PART:
            shown, layout = int(whole[_is_date(whole, digits)][0]), "YYYYMMDDHHMMSS"[:digits]
            return (
                f"times such as {shown} look like dates ({layout}) and are read as seconds, so that ages are wrong; "
                f"write them as {example} or as seconds since 1970"
            )
    if np.median(np.abs(whole)) >= _FAR:
        shown = int(whole[np.abs(whole) >= _FAR][0])
        return (
            f"times such as {shown} look like milliseconds or less and are read as seconds, so that ages are wrong; "
            "divide them to seconds since 1970"
        )
    return None


def _is_date(whole: np.ndarray, digits: int) -> np.ndarray:
    """(events,) whether a number of so many digits is a moment of the years 1900 to 2199."""
    valid, rest = np.ones(len(whole), dtype=bool), whole
    for limit in reversed(_CLOCKS[digits]):
        valid &= rest % 100 < limit
        rest = rest // 100
    year, month, day = rest // 10000, rest // 100 % 100, rest % 100
    return valid & (year >= 1900) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)

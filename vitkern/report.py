"""What the commands print with: aligned tables on stdout, counted progress on stderr, one line for bad input."""

import difflib
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

LONGEST = 1000  # characters of a message


class BadInput(Exception):
    """The user's input cannot be used; its text is the one line to print, and the exit code is 2."""


def one_line(text: object) -> str:
    """``text`` as one line that a terminal can show: messages quote names and files, which may hold anything. Spaces
    stay, as names may have several; a line break, and what indents the next line, is a space."""
    line = " ".join(part.strip() for part in str(text).splitlines() if part.strip())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def is_shortage(error: BaseException) -> bool:
    """Whether ``error`` says that memory ended."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return True
    said = "not enough memory", "allocate memory", "size calculation overflowed", "overflow when unpacking"
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in said)


def regular(path: Path, what: str) -> Path:
    """``path``, where it leads to a file that can be read to its end: opening a pipe waits for whoever writes to it.

    Raises:
        BadInput: it does not exist, or is a folder, a pipe or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise BadInput(f"{what} does not exist: {path}") from None
    except (OSError, ValueError) as error:  # too long a name, a loop of links, no permission
        raise BadInput(f"{what} cannot be read: {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise BadInput(f"{what} is no regular file: {path}")
    return path


def near_matches(name: str, known: Iterable[str], count: int = 5) -> str:
    """`` Near: a, b, c.`` or nothing: the names that look like ``name``, as a whole or in their beginning."""
    matcher = difflib.SequenceMatcher(b=name.lower())
    scored = []
    for other in sorted(set(known)):
        scores = []
        for part in (other, other[: len(name)]):
            matcher.set_seq1(part.lower())
            scores.append(matcher.ratio())
        scored.append((scores[0] + scores[1], max(scores), other))
    close = [other for _, best, other in sorted(scored, key=lambda item: -item[0]) if best >= 0.6][:count]
    return f" Near: {', '.join(close)}." if close else ""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns two spaces apart; a column of numbers is set right, the others left."""
    cells = [[str(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [all(row[i][:1].isdigit() or row[i][:1] in "-+" for row in cells[1:] if row[i]) for i in range(len(header))]
    lines = []
    for row in cells:
        aligned = [
            value.rjust(width) if flush else value.ljust(width)
            for value, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def counted(items: Sequence, what: str) -> Iterator:
    """Yield ``items``, each announced on stderr as ``[3/20] what item``."""
    start = time.perf_counter()
    for i, item in enumerate(items, 1):
        print(f"[{i}/{len(items)}] {what} {item} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
        yield item


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def seconds(value: float) -> str:
    """A duration in the unit that reads best."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1.0 or unit == "us":
            return f"{value * factor:.3g} {unit}"
    raise AssertionError


def memory(value: float | None) -> str:
    return "n/a" if value is None else f"{value / 2**20:.1f} MiB"

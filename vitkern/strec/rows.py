"""Rows of a CSV or TSV file: the header and its three columns, and every row after it with its number."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from vitkern.report import BadInput

COLUMNS = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "movieid", "product_id"),
    "timestamp": ("timestamp", "time", "ts", "unixtime", "datetime", "date"),
}
_END = "end"
_SHOWN = 5
_LONGEST_HEADER, _LONGEST_EXAMPLE = 1 << 20, 60


def rows_text(rows) -> str:
    """``row 7`` or ``rows 7, 9, 12 and 40 more``."""
    shown, more = ", ".join(str(int(row)) for row in rows[:_SHOWN]), len(rows) - _SHOWN
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")


def example(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_EXAMPLE else f"{text[:_LONGEST_EXAMPLE]}...")


class Rows:
    """What the standard library's reader gives, with the row's number in the file, the header being row 1.

    The delimiter is a tab where the first line holds one, else a comma. Quotes have to be closed: of all that follows
    an open one the reader would make a single field.

    delimiter, header: of the file. places: which cells are user, item and timestamp. long: rows of several lines, of
        those that were read.

    Raises:
        BadInput: as `read_log` of the header; iteration raises it for a row that is no row.
    """

    def __init__(self, file: TextIO, path: Path, columns: dict[str, str | None]):
        first = file.readline(_LONGEST_HEADER)
        if not first.strip():
            raise BadInput(f"{path} is empty; expected a header with user, item and timestamp.")
        if len(first) == _LONGEST_HEADER:
            raise BadInput(f"{path}: row 1 is no header: got a line of more than {_LONGEST_HEADER:,} characters.")
        self.path, self.long = path, []
        self.delimiter = "\t" if "\t" in first else ","
        self._reader = csv.reader(self._lines(first, file), delimiter=self.delimiter)
        self._number, self._ended = 0, False
        self.header = [cell.strip() for cell in self._next() or []]
        self.long.clear()
        if unknown := columns.keys() - COLUMNS.keys():
            raise BadInput(f"unknown columns {', '.join(map(str, unknown))}; expected {', '.join(COLUMNS)}.")
        self.places = [self._place(kind, columns.get(kind)) for kind in COLUMNS]
        for kind, place in zip(COLUMNS, self.places, strict=True):
            if others := [k for k, p in zip(COLUMNS, self.places, strict=True) if p == place and k != kind]:
                raise BadInput(f"{path}: row 1: {example(self.header[place])} cannot be both {kind} and {others[0]}.")

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        while (cells := self._next()) is not None:
            if cells:
                yield self._number, cells

    def _lines(self, first: str, file: TextIO) -> Iterator[str]:
        """Those of the file and one more, which is a row of its own unless a quote is open."""
        yield first
        yield from file
        self._ended = True
        yield _END

    def _next(self) -> list[str] | None:
        line = self._reader.line_num
        self._number += 1
        try:
            cells = next(self._reader)
        except csv.Error as error:
            raise BadInput(f"{self.path}: row {self._number}: it is no row of a table: {error}.") from None
        if self._ended and cells != [_END]:
            remedy = 'Close it, or write "" for a quote in a text.'
            raise BadInput(f"{self.path}: row {self._number}: a quote is opened and never closed. {remedy}")
        if self._ended:
            return None
        if self._reader.line_num > line + 1:
            self.long.append(self._number)
        return cells

    def _place(self, kind: str, wanted: str | None) -> int:
        """RecBole's ``user_id:token`` counts as ``user_id``."""
        names = COLUMNS[kind] if wanted is None else (wanted,)
        heads = [cell.split(":")[0] for cell in self.header]
        exact = [i for i, cell in enumerate(self.header) if cell in names or heads[i] in names]
        alike = [i for i, head in enumerate(heads) if head.lower() in (name.lower() for name in names)]
        found = exact if wanted is not None and exact else alike
        if not found:
            got = _listed(heads)
            raise BadInput(f"{self.path}: row 1: no {kind} column: got {got}; expected {' or '.join(names)}.")
        if len(found) > 1:
            got = _listed([self.header[i] for i in found])
            remedy = f"Name one (--{kind}-column)." if wanted is None else "Rename one."
            raise BadInput(f"{self.path}: row 1: {len(found)} columns may be the {kind}: got {got}. {remedy}")
        return found[0]


def _listed(names: list[str]) -> str:
    shown = ", ".join(
        name if name.isprintable() and len(name) <= _LONGEST_EXAMPLE else example(name) for name in names[:20]
    )
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")

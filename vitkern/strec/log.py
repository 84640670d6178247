"""Reads an interaction log: CSV or TSV with user, item and timestamp columns, RecBole's ``.inter`` too."""

import csv
import math
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from vitkern.report import BadInput

COLUMNS = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "movieid", "product_id"),
    "timestamp": ("timestamp", "time", "ts", "unixtime", "datetime", "date"),
}
_SHOWN = 5


@dataclass
class Log:
    """Events, each user's in the order of time.

    users, items: names; ``items[0]`` is "" and stands for padding.
    starts: (users + 1,) int64: user u's events are ``starts[u] : starts[u + 1]``.
    item, time, row: (events,) item code (int64, 1 or more), seconds (int64, or float64 where the log has fractions) and
        row number in the file, the header being row 1.
    notes: what was remarkable, one line each.
    """

    users: list[str]
    items: list[str]
    starts: np.ndarray
    item: np.ndarray
    time: np.ndarray
    row: np.ndarray
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.item)

    def user_of(self) -> np.ndarray:
        """(events,) the user's code of each event."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.starts))


def rows_text(rows) -> str:
    """``row 7`` or ``rows 7, 9, 12 and 40 more``."""
    shown, more = ", ".join(str(int(row)) for row in rows[:_SHOWN]), len(rows) - _SHOWN
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (f" and {more} more" if more > 0 else "")


def read_log(
    path: str | Path,
    *,
    columns: dict[str, str] | None = None,
    items: list[str] | None = None,
    unseen: str = "error",
    order: str = "sort",
) -> Log:
    """Read a log.

    The delimiter is a tab where the header holds one, else a comma. A header cell ``user_id:token`` (RecBole) counts as
    ``user_id``; other columns are ignored. Timestamps are seconds since 1970, whole or with a fraction, or ISO 8601
    (UTC unless it says otherwise).

    Args:
        columns: names for "user", "item", "timestamp" where the common ones do not fit.
        items: the item names a model knows, ``items[0]`` for padding; None: all of the log.
        unseen: what to do with an item outside ``items``: "error", or "skip" the event.
        order: "sort" puts a user's events that are not in the order of time in it, and notes their rows; "strict" makes
            them an error. Events of one user at the same time keep the order of the file.

    Raises:
        BadInput: no such file, a column is missing, or rows cannot be used; the message has row numbers.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read(file, path, columns or {}, items, unseen, order)
    except OSError as error:
        raise BadInput(f"the log cannot be read: {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}.") from None
    except csv.Error as error:
        raise BadInput(f"{path} is no table: {error}.") from None


def _read(file, path: Path, columns: dict[str, str], known: list[str] | None, unseen: str, order: str) -> Log:
    first = file.readline()
    if not first.strip():
        raise BadInput(f"{path} is empty; expected a header with user, item and timestamp.")
    delimiter = "\t" if "\t" in first else ","
    header = [cell.strip().split(":")[0] for cell in next(csv.reader([first], delimiter=delimiter))]
    places = [_place(path, header, kind, columns.get(kind)) for kind in COLUMNS]
    codes: tuple[dict[str, int], dict[str, int]] = ({}, {name: i for i, name in enumerate(known or [""])})
    user, item, time, row = [], [], [], []
    bad: dict[str, list[int]] = {}
    examples: dict[str, str] = {}

    def refuse(what: str, number: int, example: str) -> None:
        bad.setdefault(what, []).append(number)
        examples.setdefault(what, example)

    for number, cells in enumerate(csv.reader(file, delimiter=delimiter), 2):
        if not cells:
            continue
        if len(cells) != len(header):
            refuse("another number of fields than the header", number, f"{len(cells)} for {len(header)}")
            continue
        name, thing, when = (cells[place].strip() for place in places)
        seconds = parse_time(when)
        if not name or not thing:
            refuse("an empty user or item", number, delimiter.join(cells))
        elif seconds is None:
            refuse("a timestamp that cannot be read", number, when)
        elif known is not None and thing not in codes[1]:
            refuse("an item that the model does not know", number, thing)
        else:
            user.append(codes[0].setdefault(name, len(codes[0])))
            item.append(codes[1].setdefault(thing, len(codes[1])))
            time.append(seconds)
            row.append(number)
    notes = []
    strange = bad.pop("an item that the model does not know", []) if unseen == "skip" else []
    if strange:
        notes.append(f"skipped {len(strange)} events with items that the model does not know: {rows_text(strange)}")
    if bad:
        found = "; ".join(f"{rows_text(rows)}: {what}: {examples[what]!r}" for what, rows in bad.items())
        raise BadInput(f"{path}: {found}.")
    if not item:
        raise BadInput(f"{path} holds no events.")
    times = np.array(time, dtype=np.int64 if all(isinstance(t, int) for t in time) else np.float64)
    return _sorted(
        path, list(codes[0]), list(codes[1]), np.array(user), np.array(item), times, np.array(row), order, notes
    )


def _place(path: Path, header: list[str], kind: str, wanted: str | None) -> int:
    names = (wanted,) if wanted else COLUMNS[kind]
    for i, name in enumerate(header):
        if name.lower() in (other.lower() for other in names):
            return i
    raise BadInput(f"{path}: row 1: no {kind} column: got {', '.join(header)}; expected {' or '.join(names)}.")


def parse_time(text: str) -> int | float | None:
    """Seconds since 1970 of a number or an ISO 8601 date; None where it is neither, or not finite."""
    try:
        return _in_range(int(text))
    except ValueError:
        pass
    try:
        number = float(text)
        return _in_range(int(number) if number.is_integer() else number) if math.isfinite(number) else None
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    return int(seconds) if seconds.is_integer() else seconds


def _in_range(seconds: int | float) -> int | float | None:
    return seconds if abs(seconds) < 2**53 else None


def _sorted(path, users, items, user, item, time, row, order: str, notes: list[str]) -> Log:
    together = np.argsort(user, kind="stable")  # by user, in the order of the file
    user, item, time, row = user[together], item[together], time[together], row[together]
    same = user[1:] == user[:-1]
    late = row[1:][same & (time[1:] < time[:-1])]
    if len(late) and order == "strict":
        raise BadInput(f"{path}: {rows_text(np.sort(late))}: earlier than the event before of the same user.")
    if len(late):
        rows = rows_text(np.sort(late))
        notes.append(f"sorted by time: {len(late)} events were earlier than the one before of their user: {rows}")
        by_time = np.lexsort((time, user))  # stable: ties stay in the order of the file
        item, time, row = item[by_time], time[by_time], row[by_time]
    if ties := int((same & (time[1:] == time[:-1])).sum()):
        notes.append(f"{ties} events have the time of the one before of their user; they keep the order of the file")
    starts = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))])
    single = starts[:-1][np.diff(starts) == 1]
    if len(single):
        rows = rows_text(np.sort(row[single]))
        notes.append(f"{len(single)} users have one event and are neither trained on nor evaluated: {rows}")
    return Log(users, items, starts, item.astype(np.int64), time, row, notes)

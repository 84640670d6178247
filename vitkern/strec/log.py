"""Reads an interaction log: CSV or TSV with user, item and timestamp columns, RecBole's ``.inter`` too."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitkern.report import BadInput
from vitkern.strec.rows import Rows, example, rows_text
from vitkern.strec.times import parse_time, unit_note

ORDERS, UNSEEN = ("sort", "strict"), ("error", "skip")
_UNKNOWN = "an item that the model does not know"


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
    ``user_id``; other columns are ignored, but their quotes have to be closed. Timestamps are seconds since 1970, whole
    or with a fraction, or ISO 8601 (UTC unless it says otherwise); a note says where they look like something else.

    Args:
        columns: names for "user", "item", "timestamp" where the common ones do not fit.
        items: the item names a model knows, ``items[0]`` for padding; None: all of the log.
        unseen: what to do with an item outside ``items``: "error", or "skip" the event.
        order: "sort" puts a user's events that are not in the order of time in it, and notes their rows; "strict" makes
            them an error. Events of one user at the same time keep the order of the file.

    Raises:
        BadInput: no such file, a column is missing or there are two for it, rows cannot be used, or an argument is
            unknown; the message has row numbers.
    """
    for name, value, known in (("order", order, ORDERS), ("unseen", unseen, UNSEEN)):
        if value not in known:
            raise BadInput(f"unknown {name} {value!r}; expected {' or '.join(known)}.")
    path = Path(path)
    try:
        file = path.open(newline="", encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: of the name itself
        raise BadInput(f"the log cannot be read: {path}: {getattr(error, 'strerror', None) or error}.") from None
    with file:
        try:
            return _read(file, path, columns or {}, items, unseen, order)
        except OSError as error:
            raise BadInput(f"the log cannot be read: {path}: {error.strerror or error}.") from None
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}.") from None


def _read(file, path: Path, columns: dict[str, str | None], known: list[str] | None, unseen: str, order: str) -> Log:
    table = Rows(file, path, columns)
    codes: tuple[dict[str, int], dict[str, int]] = ({}, {name: i for i, name in enumerate(known or [""])})
    user, item, time, row = [], [], [], []
    bad: dict[str, list[int]] = {}
    examples: dict[str, str] = {}

    def refuse(what: str, number: int, text: str) -> None:
        bad.setdefault(what, []).append(number)
        examples.setdefault(what, example(text))

    for number, cells in table:
        if len(cells) != len(table.header):
            refuse("another number of fields than the header", number, f"{len(cells)} for {len(table.header)}")
            continue
        name, thing, when = (cells[place].strip() for place in table.places)
        seconds = parse_time(when)
        if not name or not thing:
            refuse("an empty user or item", number, table.delimiter.join(cells))
        elif seconds is None:
            refuse("a timestamp that cannot be read", number, when)
        elif known is not None and thing not in codes[1]:
            refuse(_UNKNOWN, number, thing)
        else:
            user.append(codes[0].setdefault(name, len(codes[0])))
            item.append(codes[1].setdefault(thing, len(codes[1])))
            time.append(seconds)
            row.append(number)
    notes = []
    strange = bad.pop(_UNKNOWN, []) if unseen == "skip" else []
    if strange:
        notes.append(f"skipped {len(strange)} events with items that the model does not know: {rows_text(strange)}")
    if bad:
        found = "; ".join(f"{rows_text(rows)}: {what}: {examples[what]}" for what, rows in bad.items())
        raise BadInput(f"{path}: {found}.")
    if not item:
        raise BadInput(f"{path} holds no events.")
    if table.long:
        notes.append(
            f"{len(table.long)} rows have line ends in quotes and go over several lines: {rows_text(table.long)}"
        )
    times = np.array(time, dtype=np.int64 if all(isinstance(t, int) for t in time) else np.float64)
    if units := unit_note(times):
        notes.append(units)
    return _sorted(
        path, list(codes[0]), list(codes[1]), np.array(user), np.array(item), times, np.array(row), order, notes
    )


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

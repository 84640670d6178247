"""Samples of a log: which events are predicted in training, validation and test, and the sequences before them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitkern.report import BadInput
from vitkern.strec.log import Log
from vitkern.strec.rows import rows_text

SPLITS = ("leave-last-out", "ratio")


@dataclass(frozen=True)
class Batch:
    """Right-aligned: the newest event is in the last column.

    seq: (B, N) int64, 0 at padding. timestamps: (B, N) seconds, at padding the newest event's. target: (B,) int64.
    """

    seq: Tensor
    timestamps: Tensor
    target: Tensor

    def to(self, device) -> "Batch":
        return Batch(self.seq.to(device), self.timestamps.to(device), self.target.to(device))


def split(log: Log, how: str = "leave-last-out", ratio: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> dict:
    """The events to predict, for "train", "valid" and "test": numbers of events, ascending. Never a user's first.

    Args:
        how: "leave-last-out": a user's last event is the test, the one before validates, where three or more are there;
            of fewer, all train. "ratio": of each user's predicted events, in the order of time, the first part trains,
            the next validates, the last tests; the counts are rounded down, and training gets the rest.
        ratio: parts of "ratio", in the sum 1.

    Raises:
        BadInput: an unknown split, a ratio that is none, every user has one event, or a part is without events.
    """
    if len(log) == len(log.users):
        raise BadInput(f"every user has one event ({rows_text(np.sort(log.row))}); nothing can be predicted.")
    length = np.diff(log.starts)[log.user_of()]
    place = np.arange(len(log)) - log.starts[log.user_of()]  # 0 for a user's first event
    if how == "leave-last-out":
        test = (place == length - 1) & (length >= 3)
        valid = (place == length - 2) & (length >= 3)
    elif how == "ratio":
        if len(ratio) != 3 or min(ratio) < 0 or not np.isclose(sum(ratio), 1.0):
            raise BadInput(f"the ratio is none: got {ratio}; expected three parts with the sum 1.")
        tests, valids = (np.floor((length - 1) * part + 1e-9).astype(np.int64) for part in (ratio[2], ratio[1]))
        test = place >= length - tests
        valid = (place >= length - tests - valids) & ~test
    else:
        raise BadInput(f"unknown split {how!r}; expected {' or '.join(SPLITS)}.")
    predicted = place > 0
    parts = {"train": predicted & ~valid & ~test, "valid": predicted & valid, "test": predicted & test}
    found = {name: np.flatnonzero(mask) for name, mask in parts.items()}
    for name, events in found.items():
        if not len(events):
            raise BadInput(f"the {how} split leaves no event to {name}; the log's users have too few events.")
    return found


class Samples:
    """Events of a log to predict, each from the up to ``max_len`` events of its user before it.

    Histories are whole: an event that is predicted in validation is history in the test, as it is when serving.
    """

    def __init__(self, log: Log, events: np.ndarray, max_len: int):
        self.item, self.time = torch.from_numpy(log.item), torch.from_numpy(log.time)
        self.events = torch.from_numpy(np.asarray(events, dtype=np.int64))
        self.first = torch.from_numpy(log.starts[log.user_of()[events]])
        self.max_len = max_len

    def __len__(self) -> int:
        return len(self.events)

    def batch(self, which: Tensor) -> Batch:
        """The samples numbered ``which`` (int64); as wide as the longest history among them."""
        event, first = self.events[which, None], self.first[which, None]
        width = int((event - first).clamp(max=self.max_len).max())
        index = event + torch.arange(-width, 0)  # (B, N)
        real = index >= first
        index = torch.where(real, index, event - 1)
        return Batch(self.item[index] * real, self.time[index], self.item[event[:, 0]])


def newest(log: Log, user: int, max_len: int) -> tuple[Tensor, Tensor]:
    """The last ``max_len`` events of a user, all of them history: items (1, N) and times (1, N)."""
    begin, end = int(log.starts[user]), int(log.starts[user + 1])
    begin = max(begin, end - max_len)
    return torch.from_numpy(log.item[begin:end])[None], torch.from_numpy(log.time[begin:end])[None]

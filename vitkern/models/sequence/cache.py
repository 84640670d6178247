"""Keys and values of the tokens that a decoder has seen, so that each step computes its own alone."""

from typing import NamedTuple

from torch import Tensor


class KeyValues:
    """Keys and values (B, M, 2, H, D) of the M tokens so far, for inference: they carry no gradient.

    Room for them doubles when it is full, so that a token is copied twice on average.
    """

    def __init__(self) -> None:
        self.length = 0
        self._room: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """(B, M, 2, H, D).

        Raises:
            ValueError: there are none yet.
        """
        if self._room is None:
            raise ValueError("KeyValues: nothing was kept: got no tokens; expected those of an earlier call.")
        return self._room[:, : self.length]

    def append(self, rows: Tensor) -> Tensor:
        """Keeps ``rows`` (B, N, 2, H, D) of the next tokens -> those of all tokens (B, M + N, 2, H, D)."""
        start, end = self.length, self.length + rows.shape[1]
        if self._room is None or end > self._room.shape[1]:
            size = end if self._room is None else max(end, 2 * self._room.shape[1])
            room = rows.new_empty(rows.shape[0], size, *rows.shape[2:])
            if self._room is not None:
                room[:, :start] = self.rows
            self._room = room
        self._room[:, start:end] = rows.detach()
        self.length = end
        return self.rows

    def select(self, rows: Tensor) -> None:
        """Row ``i`` of the batch becomes what row ``rows[i]`` was: (B',) int64."""
        if self._room is not None:
            self._room = self._room.index_select(0, rows)


class LayerCache(NamedTuple):
    """Of one block: its own tokens, and those of the encoder that it attends to."""

    own: KeyValues
    memory: KeyValues


class Cache:
    """One `LayerCache` for each of ``depth`` blocks; a decoder that is given it sees new tokens alone."""

    def __init__(self, depth: int) -> None:
        self.layers = [LayerCache(KeyValues(), KeyValues()) for _ in range(depth)]

    @property
    def length(self) -> int:
        """Tokens so far."""
        return self.layers[0].own.length if self.layers else 0

    def select(self, rows: Tensor) -> None:
        """Beams are reordered, each within its sentence: what is kept of the encoder is the same for all of them."""
        for layer in self.layers:
            layer.own.select(rows)

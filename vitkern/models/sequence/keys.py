"""Names of parameters here and in other libraries, by a table that is read in both directions.

A line of a table reads ``theirs = ours``. Either names one tensor, or some with " + " between, whose rows follow one
another in the joint tensor. ``{p}`` stands for weight and bias, ``{side}`` for encoder and decoder, ``{i}`` for the
number of a block; ``^T`` for a matrix that they keep as (in, out), as GPT-2 does.
"""

import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.models.names import few

FIELDS = {"p": ("weight", "bias"), "side": ("encoder", "decoder")}


class Row(NamedTuple):
    """Names that are joined, of a line of a table."""

    theirs: str
    ours: str
    transposed: bool


def rows(text: str) -> tuple[Row, ...]:
    """The rows of a table, from its lines."""
    pairs = [line.split(" = ") for line in text.strip().splitlines()]
    return tuple(Row(theirs.removesuffix(" ^T").strip(), ours.strip(), "^T" in theirs) for theirs, ours in pairs)


class Table(NamedTuple):
    """What one class of another library calls our parameters.

    owner: the class. rows: see `Row`. renamed: (pattern, replacement) for keys that come under several names.
    ignored: pattern of keys that hold nothing of ours. copies: pattern of keys whose tensor is that of the key named
    beside it. zero: pattern of keys for which we have no place, so that they have to be 0.
    """

    owner: str
    rows: tuple[Row, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: str = r"(?!)"
    copies: tuple[str, str] = (r"(?!)", "")
    zero: str = r"(?!)"


def convert(tables: Iterable[Table], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict of another library under our names; any other one comes back as it is.

    Args:
        tables: the first that has most of the keys is taken.
        state: as the other library saves it.

    Raises:
        ValueError: keys that the table does not have, tensors that do not join, copies that differ, or values for which
            there is no place.
    """
    for table in tables:
        renamed = {_renamed(key, table): value for key, value in state.items()}
        found = list(_expanded(table, renamed))
        if sum(name in renamed for row in found for name in _names(row.theirs)) > len(renamed) // 2:
            return _converted(table, found, renamed)
    return state


def _converted(table: Table, expanded: list[Row], state: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for row in expanded:
        theirs, ours = _names(row.theirs), _names(row.ours)
        parts = [state.pop(name) for name in theirs if name in state]
        if parts:
            if len(parts) < len(theirs):
                raise ValueError(f"convert: a projection is missing: got some of {few(theirs)}; expected all of them.")
            found.update(zip(ours, _recut(parts, theirs, ours, row.transposed), strict=True))
    pattern, original = table.copies
    kept = next((found[row.ours] for row in expanded if row.theirs == original and row.ours in found), None)
    for key in [key for key in state if re.fullmatch(pattern, key)]:
        if kept is None or not torch.equal(state.pop(key), kept):
            raise ValueError(f"convert: two tensors are one here: got {key} unlike {original}; expected tied weights.")
    for key in [key for key in state if re.fullmatch(table.zero, key)]:
        if state.pop(key).any():
            raise ValueError(f"convert: there is no place for this tensor: got {key} that is not 0; expected zeros.")
    unknown = [key for key in state if not re.fullmatch(table.ignored, key)]
    if unknown:
        raise ValueError(
            f"convert: these are no names of {table.owner}: got {few(unknown)}; expected a state dict of that class."
        )
    return found


def revert(table: Table, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under their names, what `convert` ignores left out.

    Raises:
        ValueError: a parameter that the table does not have.
    """
    found: dict[str, Tensor] = {}
    expanded = [row for row in _expanded(table, state) if state.keys() >= set(_names(row.ours))]
    missing = set(state).difference(*(_names(row.ours) for row in expanded))
    if missing:
        raise ValueError(
            f"revert: {table.owner} has no such parameters: got {few(sorted(missing))}; expected those of its parts."
        )
    for row in expanded:
        theirs, ours = _names(row.theirs), _names(row.ours)
        found.update(zip(theirs, _recut([state[name] for name in ours], ours, theirs, row.transposed), strict=True))
    return found


def _renamed(key: str, table: Table) -> str:
    for pattern, replacement in table.renamed:
        key = re.sub(pattern, replacement, key)
    return key


def _names(joined: str) -> list[str]:
    return joined.split(" + ")


def _share(name: str) -> int:
    """How many projections a tensor holds beside the others of its row: ``kv`` two, ``qkv`` three."""
    leaf = name.split(".")[-2] if "." in name else name
    return len(leaf) if set(leaf) <= set("qkv") else 1


def _recut(parts: list[Tensor], names: list[str], wanted: list[str], transposed: bool) -> list[Tensor]:
    """Tensors of ``names``, one after another, cut into those of ``wanted``."""
    if len({part.dtype for part in parts}) > 1 or len({part.shape[1:] for part in parts}) > 1 or not parts[0].dim():
        got = ", ".join(f"{tuple(part.shape)} {part.dtype}".replace("torch.", "") for part in parts)
        raise ValueError(f"convert: tensors do not join: got {got} for {few(names)}; expected one width and dtype.")
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    whole = whole.mT.contiguous() if transposed else whole
    shares = [_share(name) for name in wanted]
    if len(whole) % sum(shares):
        raise ValueError(
            f"convert: a tensor does not split: got {tuple(whole.shape)} for {few(names)}; expected a multiple of "
            f"{sum(shares)} rows."
        )
    return [part.clone() for part in whole.split([len(whole) // sum(shares) * share for share in shares])]


def _expanded(table: Table, names: Iterable[str]) -> Iterator[Row]:
    """Each row for each block that is numbered in ``names``, and for each part."""
    depth = 1 + max((int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)), default=-1)
    for row in table.rows:
        fields = sorted({field for _, field, _, _ in string.Formatter().parse(row.ours) if field})
        for values in itertools.product(*(FIELDS.get(field, range(depth)) for field in fields)):
            filled = dict(zip(fields, values, strict=True))
            yield Row(row.theirs.format(**filled), row.ours.format(**filled), row.transposed)

"""What a PyTorch file would unpack to, asked before it is unpacked: a few MB can declare any size."""

import codecs
import contextlib
import os
import pickletools
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

_MAGIC = b"PK\x03\x04"
_SLACK = 16 << 20
# Weights, their average and two moments of Adam, all in twice the precision.
_COPIES = 8
_OLD = 5  # pickles of PyTorch's format before 1.6: magic number, version, system, contents, names of storages


def check_archive(path: Path, own_bytes: int | None = None) -> bool:
    """Whether the file is an archive that can be mapped: all is stored as it is, nothing compressed.

    Args:
        own_bytes: of the model that is to be loaded; None: not known.

    Raises:
        ValueError: the archive declares more than its size on disk and more than 8 times the model (or, of a model that
            is not known, 8 times the file), both with 16 MiB to spare; or what is pickled makes more than it holds.
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:  # PyTorch's format before 1.6, whose parts are as long as they say
            file.seek(0)
            _check_pickles(path, file, _OLD)
            return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size, declared = os.path.getsize(path), sum(entry.file_size for entry in entries)
        allowed = _SLACK + _COPIES * (size if own_bytes is None else own_bytes)
        if declared > max(size, allowed):
            of = "of a file" if own_bytes is None else "for this model"
            raise ValueError(
                f"load_weights: the archive unpacks to more than a checkpoint: got {declared:,} bytes out of {size:,} "
                f"in {path.name!r}; expected at most {max(size, allowed):,} {of}. Download it again from a source you "
                "trust."
            )
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                _check_pickles(path, BytesIO(archive.read(entry)), 1)
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _check_pickles(path: Path, file: BinaryIO, count: int) -> None:
    """``weights_only`` lets a few calls through, and two of them make any amount of memory of a few bytes."""
    for _ in range(count):
        for maker in _makers(file):
            raise ValueError(
                f"load_weights: the file makes more than it holds: got a call of {maker} in {path.name!r}; expected "
                "tensors. Download it again from a source you trust."
            )


def _makers(file: BinaryIO) -> Iterator[str]:
    """Of the next one: bytearray(n), and a codec from bytes to bytes, which can be applied to its own result."""
    calls: set[str] = set()
    words: set[str] = set()
    for opcode, argument, _ in pickletools.genops(file):
        if isinstance(argument, str):
            (calls if opcode.name == "GLOBAL" else words).add(argument)
    yield from calls & {"builtins bytearray", "__builtin__ bytearray"}
    if "_codecs encode" in calls:  # of bytes, by a codec of text
        yield from (f"the codec {word}" for word in words if _is_binary(word))


def _is_binary(word: str) -> bool:
    with contextlib.suppress(LookupError, ValueError):
        return not codecs.lookup(word)._is_text_encoding
    return False

"""What a PyTorch file would unpack to, asked before it is unpacked: a few MB can declare any size."""

import os
import zipfile
from pathlib import Path

_MAGIC = b"PK\x03\x04"
_SLACK = 16 << 20
# Weights, their average and two moments of Adam, all in twice the precision.
_COPIES = 8


def check_archive(path: Path, own_bytes: int | None = None) -> bool:
    """Whether the file is an archive that can be mapped: all is stored as it is, nothing compressed.

    Args:
        own_bytes: of the model that is to be loaded; None: not known.

    Raises:
        ValueError: the archive declares more than its size on disk and more than 8 times the model (or, of a model that
            is not known, 8 times the file), both with 16 MiB to spare.
        OSError, zipfile.BadZipFile: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            return False  # PyTorch's format before 1.6, whose parts are as long as they say
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size, declared = os.path.getsize(path), sum(entry.file_size for entry in entries)
    allowed = _SLACK + _COPIES * (size if own_bytes is None else own_bytes)
    if declared > max(size, allowed):
        of = "of a file" if own_bytes is None else "for this model"
        raise ValueError(
            f"load_weights: the archive unpacks to more than a checkpoint: got {declared:,} bytes out of {size:,} in "
            f"{path.name!r}; expected at most {max(size, allowed):,} {of}. Download it again from a source you trust."
        )
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)

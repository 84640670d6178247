"""One run in a folder at a time, by a lock that ends with its process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitkern.report import BadInput, progress

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock; a process that is killed lets go of it. The empty file stays.

    Where the file system has no locks a note says so, and nothing is held.

    Raises:
        BadInput: another process holds it, or the folder cannot be written to.
    """
    try:
        str(folder).encode()  # what reads the weights again takes names in UTF-8 alone
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}.") from None
    try:
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another run is at work in {folder}; wait for it, or give another folder.") from None
        except OSError:
            progress(f"note: {folder} cannot be locked there; see that no other run works in it")
        yield
    finally:
        os.close(descriptor)

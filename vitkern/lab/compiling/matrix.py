"""The launches of all specimens, and the architectures that each is compiled for."""

import functools
import zlib

from vitkern.lab.compiling.layer import Launch
from vitkern.lab.specimens import gathered

ARCHITECTURES = (80, 90, 100, 120, 942)


@functools.cache
def launches() -> dict[str, Launch]:
    """All launches by name.

    Raises:
        ValueError: two have one name.
    """
    found = {}
    for launch in gathered("launches"):
        if launch.name in found:
            raise ValueError(
                f"launches: two have one name: got {launch.name!r} twice; expected one. Rename one of them."
            )
        found[launch.name] = launch
    return found


def archs_of(name: str) -> tuple[int, ...]:
    """Architectures that a launch is compiled for; where that is one of several, a hash of its name says which."""
    launch = launches()[name]
    if launch.alone is not None:
        return (launch.alone,)
    fitting = tuple(arch for arch in ARCHITECTURES if arch not in launch.in_pytorch)
    return fitting if launch.everywhere else (fitting[zlib.crc32((launch.of or name).encode()) % len(fitting)],)

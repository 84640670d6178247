"""Another source in place of a file of kernels/, in this process alone: nothing on disk changes."""

import importlib.machinery
import importlib.util
import linecache
import sys

PACKAGE = "vitkern.kernels"


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, source: str):
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname):
        return self.source_to_code(self._source.encode(), self.path)

    def get_source(self, fullname):
        return self._source


class _Finder:
    def __init__(self, sources: dict[str, str]):
        self._sources = sources

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self._sources:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        source = self._sources[fullname]
        # Triton reads a kernel's source through linecache; without a time of change an entry is never read again.
        linecache.cache[spec.origin] = (len(source), None, source.splitlines(keepends=True), spec.origin)
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=_Loader(fullname, spec.origin, source)
        )


def imported_kernels() -> list[str]:
    """The files of kernels/ that this process has imported already."""
    return sorted(name for name in sys.modules if name.startswith(f"{PACKAGE}."))


def plant(sources: dict[str, str]) -> None:
    """From now on, importing a file of kernels/ (its path there, without .py) takes its source from ``sources``.

    Raises:
        RuntimeError: a kernel is imported already, and would keep its own source.
    """
    if before := imported_kernels():
        raise RuntimeError(f"planting: kernels are imported already: got {before[0]}; expected none.")
    named = {f"{PACKAGE}.{file.replace('/', '.')}": source for file, source in sources.items()}
    sys.meta_path.insert(0, _Finder(named))

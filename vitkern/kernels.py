"""``vitkern.kernels``: the Triton sources, which live in the repository's top-level ``kernels/`` folder.

They are not imported as plain ``kernels`` because that name belongs to another package on PyPI, which transformers
imports.
"""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

_here = Path(__file__).parent  # a wheel packs the sources at vitkern/kernels/
__path__ = [str(_here / "kernels" if (_here / "kernels").is_dir() else _here.parent / "kernels")]

if TYPE_CHECKING:  # no checker finds them there

    def __getattr__(name: str) -> Any: ...


def modules() -> list[ModuleType]:
    """Every file of ``kernels/``, imported."""
    return [importlib.import_module(found.name) for found in pkgutil.walk_packages(__path__, f"{__name__}.")]

"""Makes ``attn_implementation="vitkern"`` known to transformers once that is imported, without importing it.

transformers looks names up in mappings of two of its modules. Where these are imported already they are told at once,
and otherwise, and after `importlib.reload`, when they have been executed.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "vitkern"


def attention_forward(*args: Any, **kwargs: Any) -> Any:
    """`vitkern.interop.transformers.attention_forward`, which takes this one's place with the first call."""
    from vitkern.interop import transformers

    transformers.register()
    return transformers.attention_forward(*args, **kwargs)


def _attention(modeling_utils: Any) -> None:
    if NAME not in modeling_utils.AttentionInterface():
        modeling_utils.AttentionInterface.register(NAME, attention_forward)


def _mask(masking_utils: Any) -> None:
    masking_utils.AttentionMaskInterface.register(NAME, masking_utils.sdpa_mask)


TOLD: dict[str, Callable[[Any], None]] = {
    "transformers.modeling_utils": _attention,
    "transformers.masking_utils": _mask,
}


def announce() -> None:
    """Tell what is imported, and wait for what is not. Done by ``import vitkern``; harmless twice."""
    if not any(type(finder).__qualname__ == Waiting.__qualname__ for finder in sys.meta_path):
        sys.meta_path.insert(0, Waiting())
    for name in TOLD:
        if _is_executed(name):
            _tell(sys.modules[name])


class Waiting:
    """A finder that finds nothing by itself: what the others find for a module of `TOLD` tells it when it was executed.

    The spec and its loader stay what they are; the loader's own ``exec_module`` is covered until it is called.
    """

    def __init__(self) -> None:
        self.late = {name for name in TOLD if name in sys.modules and not _is_executed(name)}  # vitkern came in between

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self.late and name.startswith("transformers."):
            for done in [late for late in self.late if _is_executed(late)]:
                self.late.discard(done)
                _tell(sys.modules[done])
        if name not in TOLD:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, Waiting) else finder.find_spec(name, path, target)
            if spec is not None:
                _cover(spec.loader, name)
                return spec
        return None


def _cover(loader: Any, name: str) -> None:
    execute = getattr(loader, "exec_module", None)
    if execute is None or "exec_module" in getattr(loader, "__dict__", {"exec_module": None}):
        return

    def exec_module(module: ModuleType) -> None:
        if module.__name__ == name:
            vars(loader).pop("exec_module", None)
        execute(module)
        if module.__name__ == name:
            _tell(module)

    loader.exec_module = exec_module


def _is_executed(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False)


def _tell(module: ModuleType) -> None:
    with contextlib.suppress(AttributeError, TypeError):  # a version without these mappings has no such names either
        TOLD[module.__name__](module)

"""Which pointers the kernels have, read from the kernels themselves, and how far the cases of `offsets` took each."""

import ast
import fnmatch
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

from torch import Tensor

from vitkern.lab.specimens import merged

LIMIT = 2**31
BOUNDED = merged("bounded")


def launched_kernels() -> dict[str, object]:
    """Name -> kernel of everything that a launcher in kernels/ starts."""
    from vitkern.kernels.machine import launch

    found = {}
    folder = Path(launch.__file__).parent.parent
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch":
                name = ".".join(path.relative_to(folder).with_suffix("").parts)
                module = importlib.import_module(f"vitkern.kernels.{name}")
                found[node.args[0].id] = getattr(module, node.args[0].id)
    return found


def parameters(kernel) -> list[str]:
    """The parameters of a kernel that are no compile-time constants."""
    every = inspect.signature(kernel.fn).parameters.values()
    return [one.name for one in every if "constexpr" not in str(one.annotation)]


def hooks(kernel) -> list[str]:
    """The functions that may read pointers out of the kernel's tuples of arguments, as "PARAMETER=function"."""
    names = inspect.signature(kernel.fn).parameters
    found = []
    for parameter, first, module in (
        ("EPILOGUE", "acc", "rows.epilogues"), ("SCORE", "s", "loop.scores"), ("SCORE", "s", "loop.locality"),
        ("LOGIT", "s", "loop.logits"), ("START", "head", "loop.starts"), ("WEIGH", "e", "loop.weighing"),
    ):  # fmt: skip
        if parameter in names:
            for name, one in vars(importlib.import_module(f"vitkern.kernels.{module}")).items():
                is_own = hasattr(one, "fn") and one.fn.__module__.endswith(module)
                is_own = is_own and not name.endswith("_backward")
                if is_own and {first, "args"} <= inspect.signature(one.fn).parameters.keys():
                    found.append(f"{parameter}={name}")
    return found


def leaves(name: str, value):
    if isinstance(value, tuple):
        for i, one in enumerate(value):
            yield from leaves(f"{name}[{i}]", one)
    else:
        yield name, value


def _name_in_hook(hook, place: str) -> str:
    """``place`` in a hook's tuple, such as "[2]", by the name that the hook unpacks it to, where it does."""
    unpacked = re.search(r"^ +(\w+(?:, \w+)+) = args$", inspect.getsource(hook.fn), re.MULTILINE)
    if unpacked and place.count("[") == 1:
        return f"{hook.fn.__name__}.{unpacked[1].split(', ')[int(place[1:-1])]}"
    return hook.fn.__name__ + place


def _shown(name: str, constants: dict) -> str:
    """The pointer ``name`` of a launch: an operand by its own name, what a hook takes by the hook's."""
    from vitkern.kernels.loop.problem import HOOKS

    parameter, _, place = name.partition("[")
    if parameter == "args" and "EPILOGUE" in constants:
        return _name_in_hook(constants["EPILOGUE"], f"[{place}")
    if parameter == "args" and "Q_TOKENS" in constants:
        number, _, place = place.partition("]")
        return _name_in_hook(constants[list(HOOKS.values())[int(number)]], place)
    return name if parameter == "args" else name.removesuffix("[0]")


class Coverage:
    """What the cases have shown of each pointer."""

    def __init__(self):
        self.farthest: dict[str, int] = {}  # "kernel.pointer" -> the largest element touched, -1 where it was None
        self.case: dict[str, str] = {}
        self.seen: dict[str, set[str]] = defaultdict(set)  # kernel -> parameters and hooks that a case has given

    def add(self, case, kernel, args: tuple, constants: dict, touched: dict[str, int]) -> None:
        """One launch of ``case``; ``touched``: the farthest element by the name of the tensor."""
        bound = dict(zip(kernel.arg_names, args, strict=False))
        for parameter, value in bound.items():
            self.seen[case.kernel].add(parameter)
            for name, leaf in leaves(parameter, value):
                if leaf is None or isinstance(leaf, Tensor):
                    key, far = f"{case.kernel}.{_shown(name, constants)}", touched.get(name, -1)
                    if far >= self.farthest.get(key, -2):
                        self.farthest[key], self.case[key] = far, case.name
        for parameter in ("EPILOGUE", "SCORE", "LOGIT", "START", "WEIGH"):
            if parameter in constants:
                self.seen[case.kernel].add(f"{parameter}={constants[parameter].fn.__name__}")

    def gaps(self, kernels: dict) -> list[str]:
        """One line for each parameter, hook and pointer of ``kernels`` that no case takes beyond the limit."""
        lines = []
        for name, kernel in kernels.items():
            for part in parameters(kernel) + hooks(kernel):
                if part not in self.seen[name] and reason(f"{name}.{part}") is None:
                    lines.append(f"{name}.{part}: no case gives it")
        for key, far in self.farthest.items():
            if key.split(".")[0] in kernels and far < LIMIT and reason(key) is None:
                shown = "is None in every case" if far < 0 else f"is touched up to element {far}"
                lines.append(f"{key} {shown}; expected beyond {LIMIT}, or a reason in a specimen")
        return lines


def reason(key: str) -> str | None:
    """Why "kernel.pointer" cannot pass the limit."""
    return next((why for pattern, why in BOUNDED.items() if fnmatch.fnmatchcase(key, pattern)), None)

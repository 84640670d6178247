"""What of the process a test has to leave as it found it: a later test would compute, or fail, by what is left."""

import logging
import operator
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import torch

from vitkern import dispatch, faults

OURS = ("vitkern", "benchmarks", "triton.language", "triton.runtime", "timm.layers.config")  # modules, with those below
# pytest's own; how much PyTorch's profiler says; what PEFT's BOFT compiles with
UNCHECKED = {"PYTEST_CURRENT_TEST", "KINETO_LOG_LEVEL", "CC", "CXX"}
MISSING = "<missing>"


def now() -> dict[str, object]:
    """Name -> value, of all that is checked."""
    state = {f"os.environ[{name!r}]": value for name, value in os.environ.items() if name not in UNCHECKED}
    state |= {f"the handler of {s.name}": signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    state |= {f"torch: {name}": value for name, value in _torch().items()}
    state |= {f"vitkern's fault of {where}": reason for where, reason in (faults._reasons | faults._too_large).items()}
    state |= {f"vitkern's warning of {which}": True for which in faults._warned}
    for name in (None, "vitkern"):
        logger = logging.getLogger(name)
        handlers = [handler for handler in logger.handlers if "_pytest" not in type(handler).__module__]
        state[f"logger {logger.name}"] = (logger.level, logger.disabled, logger.propagate, handlers)
    return state | {
        "working directory": os.getcwd(),
        "sys.path": [path for path in sys.path if not path.endswith("setuptools/_vendor")],  # its first import adds it
        "sys.argv": list(sys.argv),
        "threads": {thread for thread in threading.enumerate() if not thread.daemon},
        "backend": dispatch.current_backend(),
    }


def _torch() -> dict[str, object]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "deterministic": (torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory),
        "tf32": (cuda.matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "scaled_dot_product_attention": (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
        ),
        "threads": torch.get_num_threads(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
    }


def differences(before: dict, after: dict) -> Iterator[str]:
    for name in before.keys() | after.keys():
        old, new = before.get(name, MISSING), after.get(name, MISSING)
        if old != new:
            yield f"{name}: {old!r} before, {new!r} after"


class Globals:
    """The globals of ``OURS``, by identity: what a patch that was not taken back has changed."""

    def __init__(self):
        self.modules: dict[str, tuple[ModuleType, dict[str, object]]] = {}
        self.seen = 0

    def changes(self) -> list[str]:
        """Since the last call; what is there for the first time is no change."""
        found = []
        for name, (module, names) in self.modules.items():
            if sys.modules.get(name) is not module:
                found.append(f"sys.modules[{name!r}] is another module or none")
            current = vars(module)
            if len(current) == len(names) and all(map(operator.is_, current.values(), names.values())):
                continue  # as most are, and quickly seen
            changed = [
                key
                for key, value in names.items()
                if current.get(key, MISSING) is not value and not key.startswith("__")  # those are torch.compile's
            ]
            found += [f"{name}.{key}: {names[key]!r} before, {current.get(key, MISSING)!r} after" for key in changed]
            if changed or len(current) != len(names):
                names.clear(), names.update(current)
        if found or len(sys.modules) != self.seen:
            self.seen = len(sys.modules)
            for name, module in sys.modules.copy().items():  # at once: other threads import
                known = self.modules.get(name, (None,))[0] is module
                if name.startswith(OURS) and isinstance(module, ModuleType) and not known:
                    self.modules[name] = module, dict(vars(module))
            for name in self.modules.keys() - sys.modules.keys():
                del self.modules[name]
        return found

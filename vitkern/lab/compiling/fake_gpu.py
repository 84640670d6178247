"""A GPU that is not there: Triton compiles for it as for a real one, loads what it compiled, and starts nothing."""

import itertools
import weakref
from contextlib import contextmanager

from vitkern.lab.compiling.compiled import Target

ARCH = 80
_numbers = itertools.count(1000)


class FakeDriver(Target):
    """What Triton asks a driver for. ``shared``: bytes per program. ``threads``: most that fit, given a program's
    registers. ``load_error``: what loading a binary says. ``start`` receives the arguments of each launch.
    """

    def __init__(self, *, arch=ARCH, shared=166912, threads=1024, load_error=None, start=lambda *args: None):
        super().__init__(arch)
        self.shared, self.threads = shared, threads
        self.load_error, self.start, self.utils = load_error, start, self
        self.number = next(_numbers)  # not id(self), which a later driver may have again: Triton keeps kernels by it

    def get_current_device(self):
        return self.number

    def get_device_properties(self, device):
        return {"max_shared_mem": self.shared}

    def load_binary(self, name, binary, shared, device):
        error = "device kernel image is invalid" if not binary else self.load_error
        if error is not None:
            raise RuntimeError(f"Triton Error [CUDA]: {error}")
        return object(), object(), 32, 0, self.threads

    def unload_module(self, module):
        pass

    def launcher_cls(self, source, metadata):
        before = 7  # grid, stream, function, packed metadata, launch metadata, hooks follow: 3 + 4 + 2
        return lambda *args: self.start(*args[before + 2 :])


@contextmanager
def _unloaded():
    """After the block, what Triton loaded within it is no longer loaded: it would ask a driver that is gone to unload
    it, whenever it is collected."""
    from triton.compiler.compiler import CompiledKernel

    loaded, load = weakref.WeakSet(), CompiledKernel._init_handles

    def noted(kernel):
        loaded.add(kernel)
        return load(kernel)

    CompiledKernel._init_handles = noted
    try:
        yield
    finally:
        CompiledKernel._init_handles = load
        for kernel in loaded:
            kernel.module = None


@contextmanager
def installed(driver):
    """Within the block kernels take CPU tensors and go to ``driver``; None: Triton looks for one itself."""
    from triton.runtime import driver as active

    from vitkern import dispatch
    from vitkern.kernels.machine import architecture

    before = dict(vars(active))
    vars(active).update({name: None for name in before})
    if driver is not None:
        active.set_active(driver)
    try:
        with architecture.forced_arch(ARCH), dispatch.any_device(), _unloaded():
            yield driver
    finally:
        vars(active).clear()
        vars(active).update(before)

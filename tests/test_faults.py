"""What keeps Triton from building or starting a kernel: each fault is injected where it arises, below Triton's own
code, and the operator answers from PyTorch with one warning, or raises where its kernel was asked for."""

import ast
import ctypes
import errno
import gc
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from threads import run_threads
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="the faults are Triton's")
from triton.compiler.compiler import ASTSource
from triton.compiler.errors import CompilationError, CompileTimeAssertionFailure
from triton.runtime import build, cache
from triton.runtime.errors import OutOfResources

import vitkern
from vitkern import dispatch, faults
from vitkern.interop.accelerate import accelerate
from vitkern.interop.report import RECORDED
from vitkern.lab.compiling.fake_gpu import FakeDriver, installed

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = 32


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """No fault is known, and Triton's cache is empty."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    build._find_compiler.cache_clear()
    yield
    faults.forget()
    build._find_compiler.cache_clear()


def problem(rows=6):
    generator = torch.Generator().manual_seed(1)
    shapes = (rows, CHANNELS), (CHANNELS,), (CHANNELS,)
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def layernorm(rows=6):
    """Result and gradients of one small problem."""
    tensors = problem(rows)
    out = vitkern.layernorm(*tensors, 1e-6)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


def expected():
    with vitkern.use_backend("torch"):
        return layernorm()


def write(folder, pattern, content):
    files = [path for path in folder.rglob(pattern) if not path.name.startswith("__grp__")]
    assert files, f"Triton keeps no {pattern} in its cache"
    for path in files:
        path.write_bytes(content)


def without_drivers(patch, **active):
    from triton.backends import backends

    for name, backend in backends.items():
        patch.setattr(backend.driver, "is_active", partial(active.get, name, False))


def real_driver(patch, folder):
    """Triton's own NVIDIA driver, which has to compile its helper first."""
    without_drivers(patch, nvidia=True)
    patch.setenv("TRITON_LIBCUDA_PATH", str(folder))
    from triton.backends.nvidia import driver

    driver.libcuda_dirs.cache_clear()
    driver.library_dirs.cache_clear()


def no_driver(patch, folder):
    without_drivers(patch)


def two_drivers(patch, folder):
    without_drivers(patch, nvidia=True, amd=True)


def no_libcuda(patch, folder):
    real_driver(patch, folder)
    patch.delenv("TRITON_LIBCUDA_PATH")
    patch.delenv("LD_LIBRARY_PATH", raising=False)
    patch.setattr(subprocess, "check_output", lambda *args, **options: b"")


def no_compiler(patch, folder):
    real_driver(patch, folder)
    patch.delenv("CC", raising=False)
    patch.setenv("PATH", str(folder))


def compiler_of_another_name(patch, folder):
    real_driver(patch, folder)
    patch.setenv("CC", str(folder / "no-such-compiler"))


def compiler_fails(patch, folder):
    real_driver(patch, folder)
    patch.setenv("CC", "/bin/false")


def cache_below_a_file(patch, folder):
    (folder / "file").touch()
    patch.setenv("TRITON_CACHE_DIR", str(folder / "file" / "cache"))
    return FakeDriver()


def disk_full(patch, folder):
    def refuse(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    patch.setattr(cache.os, "replace", refuse)
    return FakeDriver()


def filled_cache(folder):
    with installed(FakeDriver()), vitkern.use_backend("triton"):
        layernorm()
    return folder / "cache"


def empty_binary(patch, folder):
    write(filled_cache(folder), "*.cubin", b"")
    return FakeDriver()


def damaged_json(patch, folder):
    write(filled_cache(folder), "*.json", b'{"target": {"backend"')
    return FakeDriver()


def incomplete_json(patch, folder):
    write(filled_cache(folder), "*.json", json.dumps({"name": "_layernorm_fwd"}).encode())
    return FakeDriver()


def binary_text(patch, folder):
    write(filled_cache(folder), "*.ttir", b"\xff\xfe\x00")
    return FakeDriver()


def too_little_shared_memory(patch, folder):
    return FakeDriver(shared=16)


def too_many_registers(patch, folder):
    return FakeDriver(threads=16)


def assembler_fails(patch, folder):
    script = folder / "ptxas"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "release 12.8, V12.8.61" && exit 0\nexit 1\n')
    script.chmod(0o755)
    patch.setenv("TRITON_PTXAS_PATH", str(script))
    return FakeDriver()


def architecture_of_tomorrow(patch, folder):
    return FakeDriver(load_error="no kernel image is available for execution on the device")


def architecture_of_another_maker(patch, folder):
    driver = FakeDriver()
    driver.target = type(driver.target)("other", 1, 32)
    return driver


def language_has_changed(patch, folder):
    def refuse(*args):
        raise CompilationError("x = tl.load(p)", ast.parse("x").body[0], "load() got an unexpected keyword argument")

    patch.setattr(ASTSource, "make_ir", refuse)
    return FakeDriver()


def compiler_pass_fails(patch, folder):
    def refuse(*args):
        raise RuntimeError("PassManager::run failed")

    patch.setattr(ASTSource, "make_ir", refuse)
    return FakeDriver()


FAULTS = {
    no_driver: (faults.DRIVER, "0 active drivers"),
    two_drivers: (faults.DRIVER, "2 active drivers"),
    no_libcuda: (faults.DRIVER, "libcuda"),
    no_compiler: (faults.COMPILER, "Failed to find C compiler"),
    compiler_of_another_name: (faults.COMPILER, "no-such-compiler"),
    compiler_fails: (faults.COMPILER, "/bin/false"),
    cache_below_a_file: (faults.CACHE, "Not a directory"),
    disk_full: (faults.CACHE, "No space left"),
    empty_binary: (faults.DAMAGED, "kernel image is invalid"),
    damaged_json: (faults.DAMAGED, "delimiter"),
    incomplete_json: (faults.DAMAGED, "target"),
    binary_text: (faults.DAMAGED, "decode"),
    too_little_shared_memory: (faults.RESOURCES, "shared memory"),
    too_many_registers: (faults.RESOURCES, "threads"),
    assembler_fails: (faults.BUILD, "ptxas"),
    architecture_of_tomorrow: (faults.ARCHITECTURE, "no kernel image"),
    architecture_of_another_maker: (faults.ARCHITECTURE, "compatible backends"),
    language_has_changed: (faults.BUILD, "unexpected keyword"),
    compiler_pass_fails: (faults.BUILD, "PassManager"),
}


@contextmanager
def caught():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


@pytest.fixture
def _collected(fault):
    """A kernel that Triton gave up half-made complains when it is collected: here, not at worst in ast.parse."""
    yield
    if FAULTS[fault][0] == faults.DAMAGED:
        gc.collect()


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore:Exception ignored in.*CompiledKernel.__del__")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_falls_back_with_one_warning_or_raises_where_a_kernel_was_asked_for(fault, monkeypatch, tmp_path, capfd):
    cause, words = FAULTS[fault]
    wanted = expected()
    with installed(fault(monkeypatch, tmp_path)):
        with vitkern.use_backend("triton"), caught() as found, pytest.raises(NotImplementedError) as raised:
            layernorm()
        message = str(raised.value)
        assert message.startswith("layernorm: the kernel was asked for (backend='triton') and cannot run: ")
        assert cause in message and words in message and raised.value.__cause__ is not None
        assert faults.REMEDIES[cause] in message and not found
        assert dispatch.why_not([torch.zeros(1)], op="layernorm") == [], "a kernel that was asked for leaves no trace"

        with caught() as found:
            results = layernorm()
        (warning,) = found
        assert warning.category is faults.FallbackWarning
        for part in ("layernorm: ", cause, words, "PyTorch runs instead", faults.REMEDIES[cause], "_layernorm_fwd"):
            assert part in str(warning.message)
        assert len(str(warning.message)) < 700 and "\n" not in str(warning.message)
        ((op, reason),) = faults.faulted(torch.device("cpu"))
        assert op == "layernorm" and cause in reason and "cpu" in reason
        if cause != faults.RESOURCES:
            assert dispatch.why_not([torch.zeros(1)], op="layernorm") == [reason]

        with monkeypatch.context() as patch, caught() as found:
            patch.setattr(
                "vitkern.kernels.rows.layernorm.launch", lambda *args, **options: pytest.fail("started again")
            )
            again = layernorm()
        assert not found
        with vitkern.use_backend("triton"), pytest.raises(NotImplementedError, match="cannot run"):
            layernorm()
    for result in (results, again):
        for actual, reference in zip(result, wanted, strict=True):
            torch.testing.assert_close(actual, reference)


NO_FAULTS = {
    "a wrong value": ValueError("layernorm: x has the wrong shape"),
    "a wrong type": TypeError("an integer is required"),
    "an index": IndexError("list index out of range"),
    "a missing key": KeyError("BLOCK_M"),
    "a failed check": AssertionError("block of 48 is no power of two"),
    "a static assertion of the kernel": CompileTimeAssertionFailure(None, ast.parse("x").body[0], "BLOCK_M < 16"),
    "a CUDA error of an earlier kernel": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "a CUDA error at the launch": RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    "a sticky error": RuntimeError("Triton Error [CUDA]: misaligned address"),
    "memory": torch.OutOfMemoryError("CUDA out of memory."),
    "host memory": MemoryError(),
    "a loop": RecursionError("maximum recursion depth exceeded"),
    "a changed global": RuntimeError("Global variable TILE has changed since we compiled this kernel"),
    "Ctrl-C": KeyboardInterrupt(),
    "exit": SystemExit(3),
}


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    """Triton's cache of the tests that fail after it: they build one kernel once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", NO_FAULTS)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_other_errors_are_raised_as_they_came(name, backend, monkeypatch, shared_cache):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(shared_cache))
    error = NO_FAULTS[name]

    def start(*args):
        raise error

    with installed(FakeDriver(start=start)), vitkern.use_backend(backend), caught() as found:
        with pytest.raises(type(error)) as raised:
            layernorm()
        assert raised.value is error and not found
        assert dispatch.why_not([torch.zeros(1)], op="layernorm") == []


def test_an_error_outside_a_launch_is_no_fault():
    """The same classes, from code around the kernels: a file that the caller's code misses, say."""
    for error in (OSError("no such file"), OutOfResources(2, 1, "shared memory"), RuntimeError("0 active drivers")):
        assert faults.fault_of(error) is None
        error.kernel_of_launch = "_k"
        assert faults.fault_of(error) is not None


def test_one_warning_for_each_operator_and_cause(monkeypatch, tmp_path):
    q = torch.randn(1, 2, 20, 16)
    with caught() as found:
        with installed(no_driver(monkeypatch, tmp_path)):
            layernorm(), vitkern.attention(q, q, q)
        faults._reasons.clear()  # as on another GPU
        with installed(no_driver(monkeypatch, tmp_path)):
            layernorm(), vitkern.attention(q, q, q)
        faults._reasons.clear()
        with installed(too_many_registers(monkeypatch, tmp_path)):
            layernorm()
    assert [str(w.message).split(":")[0] for w in found] == ["layernorm", "attention", "layernorm"]
    faults.forget()
    with installed(no_driver(monkeypatch, tmp_path)), caught() as found:
        layernorm()
    assert len(found) == 1, "forgotten faults are tried again"


def test_a_warning_made_an_error_leaves_the_fallback_in_place(monkeypatch, tmp_path):
    with installed(no_driver(monkeypatch, tmp_path)), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(faults.FallbackWarning):
            layernorm()
        torch.testing.assert_close(layernorm()[0], expected()[0])


def test_info_and_the_report_of_accelerate_show_it(monkeypatch, tmp_path, capsys):
    from vitkern.commands import info

    timm = pytest.importorskip("timm", reason="the model is timm's")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2, img_size=16, patch_size=8)
    with installed(no_driver(monkeypatch, tmp_path)):
        report = accelerate(model)
        assert "runs on Triton kernels here (cpu, float32)" in str(report) and RECORDED in str(report)
        with caught():
            model(torch.zeros(1, 3, 16, 16))
        shown = str(report)
        assert (
            f"but attention_qkvpacked runs in PyTorch on cpu: the kernel could not be started on cpu: {faults.DRIVER}"
            in shown
        )
        with caught():
            layernorm()
        info.run(None)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("layernorm ")).split() == ["layernorm", "PyTorch"]
    assert next(line for line in lines if line.startswith("window_attention ")).split() == [
        "window_attention",
        "Triton",
    ]
    assert any(line.startswith("layernorm: PyTorch on cpu: the kernel could not be started") for line in lines)


def run_python(code, *path, **environment):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("words", ["Triton is not installed", "the GPU is sm_70"])
def test_a_gpu_that_nothing_installed_can_use(words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0) if "sm_70" in words else (9, 0))
    if "sm_70" not in words:
        monkeypatch.setattr(dispatch, "HAS_TRITON", False)
        monkeypatch.setattr(dispatch, "_NO_TRITON", words)
    dispatch._device_reasons.cache_clear()
    try:
        with FakeTensorMode(), caught() as found:
            x = torch.empty(3, CHANNELS, device="cuda:0")
            for _ in range(2):
                assert vitkern.layernorm(x, None, None, 1e-6).device == x.device
            with vitkern.use_backend("triton"), pytest.raises(NotImplementedError, match=words):
                vitkern.layernorm(x, None, None, 1e-6)
            assert any(words in reason for reason in dispatch.why_not([x]))
    finally:
        dispatch._device_reasons.cache_clear()
    (warning,) = found
    assert warning.category is faults.FallbackWarning
    assert re.match(f"layernorm: the kernel cannot run on cuda:0: {words}.*PyTorch runs instead", str(warning.message))


def test_a_triton_that_does_not_import(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('libtriton.so: undefined symbol')")
    shown = run_python(
        """
import torch, vitkern
from vitkern import dispatch
x = torch.randn(3, 32, requires_grad=True)
vitkern.layernorm(x, None, None, 1e-6).sum().backward()
assert not dispatch.HAS_TRITON and x.grad is not None
print(dispatch.why_not([x])[0])
""",
        tmp_path,
    )
    assert shown.strip() == "Triton does not import: ImportError: libtriton.so: undefined symbol"


def test_eight_threads():
    """Launches have no state of their own: each thread finds its own rows in what its launch wrote."""
    wrong = []

    def rows(pointer):
        address = pointer if isinstance(pointer, int) else pointer.data_ptr()  # a tape hands over addresses
        return np.ctypeslib.as_array((ctypes.c_float * (6 * CHANNELS)).from_address(address))

    def start(x, residual, weight, bias, base, layer_scale, row_scale, y, *rest):
        rows(y)[:] = 2 * rows(x)

    def work(number):
        for turn in range(200):
            x = torch.full((6, CHANNELS), float(200 * number + turn))
            if not torch.equal(vitkern.layernorm(x, None, None, 1e-6), x * 2):
                wrong.append((number, turn))

    with installed(FakeDriver(start=start)), vitkern.use_backend("triton"):
        work(9)  # compiles
        run_threads(work)
    assert not wrong


def test_eight_threads_meet_a_fault(monkeypatch, tmp_path):
    wanted, barrier, inputs = expected(), threading.Barrier(8), problem()

    def work(number):
        barrier.wait()
        for turn in range(200):
            with torch.set_grad_enabled(turn % 20 == 0):
                results = layernorm() if turn % 20 == 0 else [vitkern.layernorm(*inputs, 1e-6)]
            for actual, reference in zip(results, wanted, strict=False):
                assert torch.equal(actual, reference)

    with installed(no_driver(monkeypatch, tmp_path)), caught() as found:
        run_threads(work)
    assert [w.category for w in found] == [faults.FallbackWarning]


def test_threads_leave_their_backends_in_any_order():
    inside, first_left = threading.Barrier(2), threading.Event()

    def work(number):
        with vitkern.use_backend(("triton", "interpreter")[number]):
            inside.wait()
            if number:
                first_left.wait()
        first_left.set()

    before = dispatch.current_backend()
    run_threads(work, 2)
    assert dispatch.current_backend() == before
    with pytest.raises(ValueError, match="backend: unknown name"), vitkern.use_backend("cuda"):
        pass
    assert dispatch.current_backend() == before


def test_fork_after_import():
    run_python(
        """
import os, sys, threading, warnings
import torch, vitkern
from vitkern import dispatch, faults
sys.path.insert(0, "tests")
from vitkern.lab.compiling.fake_gpu import FakeDriver, installed
def run():
    x = torch.ones(4, 32, requires_grad=True)
    q = torch.randn(1, 2, 20, 16, requires_grad=True)
    (vitkern.layernorm(x, None, None, 1e-6).sum() + vitkern.attention(q, q, q).sum()).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(q.grad).all()
torch.set_num_threads(1)
run()
threads = [threading.Thread(target=run) for _ in range(2)]
[t.start() for t in threads]
child = os.fork()
if child == 0:
    try:
        run()
        with installed(FakeDriver(threads=16)), warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run(), run()
        assert [str(w.message).split(":")[0] for w in found] == ["layernorm", "attention"], found
        os._exit(7)
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)
[t.join() for t in threads]
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7, status
run()
""".replace('"tests"', repr(str(ROOT / "tests")))
    )


class Device:
    """torch.cuda of a machine with two GPUs, the current one and what ran on which."""

    def __init__(self, patch):
        self.current, self.launched = 0, []
        patch.setattr(torch.cuda, "current_device", lambda: self.current)
        patch.setattr(torch.cuda, "device", self.guard)

    @contextmanager
    def guard(self, device):
        before, self.current = self.current, torch.device(device).index
        try:
            yield
        finally:
            self.current = before


class OnGPU(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @staticmethod
    def __new__(cls, index):
        return torch.Tensor._make_wrapper_subclass(cls, (2, 3), device=f"cuda:{index}")

    def __init__(self, index):
        pass

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} of a tensor without memory")


@pytest.mark.parametrize("index", [0, 1])
def test_launches_happen_on_the_device_of_the_tensors(index, monkeypatch):
    from vitkern import register

    machine = Device(monkeypatch)

    def launch(x, scale):
        machine.launched.append(machine.current)
        if scale < 0:
            raise ValueError("no")
        if scale > 1:
            error = OutOfResources(2, 1, "shared memory")
            error.kernel_of_launch = "_k"
            raise error
        return x

    run = register._with_fallback(
        "some_op", register._on_device(launch, None), lambda *a: torch.empty(1), lambda *a: torch.ones(1), slice(None)
    )
    x = OnGPU(index)
    assert run(x, 1.0) is x and machine.launched == [index] and machine.current == 0
    with pytest.raises(ValueError, match="no"):
        run(x, -1.0)
    assert machine.launched == [index, index] and machine.current == 0
    with caught() as found:
        assert run(x, 2.0).item() == 1.0
    assert len(found) == 1 and f"on cuda:{index}" in str(found[0].message)
    assert faults.reasons_of_sizes("some_op", x.device, [x])
    assert not faults.reasons_of_sizes("some_op", torch.device("cuda", 1 - index), [x])
    assert run(OnGPU(1 - index), 1.0) is not None, "another GPU is not affected"


def test_no_launch_has_more_programs_than_a_gpu_counts():
    from vitkern.kernels.machine.launch import launch

    def kernel():
        raise AssertionError("launched")

    with pytest.raises(ValueError, match=r"^kernel: .* got 2147483648 programs; .* Split the batch"):
        launch(kernel, (2**20, 2**11), num_warps=4, num_stages=1)


def test_importing_everything_touches_no_device_and_no_network():
    """All modules but the adapters and commands that name another library, not only the lazy top level."""
    modules = run_python("""
import socket, sys
def refuse(*args, **options): raise AssertionError("a socket at import")
socket.socket.__init__ = socket.create_connection = refuse
import torch
def initialised(*args): raise AssertionError("CUDA initialised at import")
torch.cuda._lazy_init = torch._C._cuda_init = initialised
import ctypes
load = ctypes.CDLL.__init__
def no_cuda(self, name, *args, **options):
    assert "libcuda.so" not in str(name), "the GPU's driver was loaded at import"
    return load(self, name, *args, **options)
ctypes.CDLL.__init__ = no_cuda
import importlib, pkgutil, vitkern
names = [m.name for m in pkgutil.walk_packages(vitkern.__path__, "vitkern.")]
others = ("timm", "transformers", "torchvision")
names = [n for n in names if not any(o in n for o in others) and "__main__" not in n]
for name in names:
    importlib.import_module(name)
from triton.runtime import driver
assert driver._active is None and driver._default is None, "Triton's driver was touched at import"
assert not torch.cuda.is_initialized()
found = [name for name in others if name in sys.modules]
assert not found, found
print(len(names))
""")
    assert int(modules) > 50

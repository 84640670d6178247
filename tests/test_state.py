"""tests/state.py sees what a test leaves behind."""

import logging
import os
import sys
import threading

import pytest
import state
import torch

from vitkern import dispatch, faults


def leave_a_variable():
    os.environ["VITKERN_LEFT"] = "1"
    return lambda: os.environ.pop("VITKERN_LEFT")


def leave_a_folder():
    before = os.getcwd()
    os.chdir("/")
    return lambda: os.chdir(before)


def leave_a_path():
    sys.path.append("/left")
    return lambda: sys.path.remove("/left")


def leave_a_dtype():
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


def leave_grad_off():
    torch.set_grad_enabled(False)
    return lambda: torch.set_grad_enabled(True)


def leave_tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    return lambda: torch.set_float32_matmul_precision(before)


def leave_determinism():
    torch.use_deterministic_algorithms(False)
    return lambda: torch.use_deterministic_algorithms(True, warn_only=True)


def leave_a_backend():
    block = dispatch.use_backend("torch")
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


def leave_a_fault():
    faults._reasons["layernorm cpu"] = "the kernel could not be started"
    return faults.forget


def leave_a_level():
    logging.getLogger("vitkern").setLevel(logging.DEBUG)
    return lambda: logging.getLogger("vitkern").setLevel(logging.NOTSET)


def leave_a_thread():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    return lambda: (end.set(), thread.join())


LEFT = {
    leave_a_variable: "VITKERN_LEFT",
    leave_a_folder: "working directory",
    leave_a_path: "sys.path",
    leave_a_dtype: "default dtype",
    leave_grad_off: "grad mode",
    leave_tf32: "tf32",
    leave_determinism: "deterministic",
    leave_a_backend: "backend",
    leave_a_fault: "layernorm cpu",
    leave_a_level: "logger vitkern",
    leave_a_thread: "threads",
}


@pytest.mark.parametrize("leave", LEFT, ids=lambda leave: leave.__name__)
def test_what_is_left_is_named(leave):
    before = state.now()
    undo = leave()
    try:
        (difference,) = state.differences(before, state.now())
    finally:
        undo()
    assert LEFT[leave] in difference
    assert not list(state.differences(before, state.now()))


def test_a_patch_is_named_once(monkeypatch):
    seen = state.Globals()
    assert seen.changes() == []
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "why_not", None)
        (change,) = seen.changes()
        assert change.startswith("vitkern.dispatch.why_not: <function") and change.endswith("None after")
        assert seen.changes() == [], "what the test before left is not this one's"
    seen.changes()
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "vitkern.faults")
        assert seen.changes() == ["sys.modules['vitkern.faults'] is another module or none"]
        assert seen.changes() == []

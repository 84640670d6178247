"""Every registered operator in PyTorch's hands: compiled, exported, mapped, checkpointed, and checked by opcheck. The
kernels run, in the interpreter."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import integration
from integration import CASES, CHECKS, TRANSFORMS

import vitkern
from vitkern.lab.differentiating.gradient_check import operators

pytestmark = pytest.mark.interpreter


OPERATORS = {op.name: op for op in operators()}


def test_every_registered_operator_has_a_case_and_flop_formulas():
    assert set(OPERATORS) == set(CASES)
    for op in OPERATORS.values():
        for overload in (op.overload, op.backward_overload):
            assert overload.overloadpacket in flop_registry, f"{overload}: no FLOP formula"


@pytest.mark.walk(6)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_operator(name, check):
    with vitkern.use_backend("interpreter"):
        if check not in TRANSFORMS:
            check(CASES[name])
            return
        with pytest.raises(NotImplementedError, match="PyTorch's own operators only"):
            check(CASES[name])
    check(CASES[name])


class Recorded(TorchDispatchMode):
    """The arguments of each operator of this package, as it is called."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "vitkern":
            self.calls[function] = args
        return function(*args, **(kwargs or {}))


@pytest.mark.walk(6)
@pytest.mark.parametrize("layout", [integration.permuted, integration.expanded], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, layout):
    """Schema, fake, autograd registration and tracing, of the forward and the backward operator."""
    case, op = CASES[name], OPERATORS[name]
    tensors = [layout(t.detach()).requires_grad_() for t in case.tensors()]
    with vitkern.use_backend("interpreter"):
        with Recorded() as recorded:
            integration.gradients(case.function, tensors)
        assert set(recorded.calls) == {op.overload, op.backward_overload}
        args = list(recorded.calls[op.overload])
        for slot in op.slots:
            args[slot] = args[slot] if args[slot] is None else args[slot].detach().requires_grad_()
        quick = ("test_schema", "test_faketensor", "test_autograd_registration")
        every = (*quick, "test_aot_dispatch_dynamic")
        torch.library.opcheck(op.overload, tuple(args), test_utils=every if layout is integration.permuted else quick)
        torch.library.opcheck(
            op.backward_overload, recorded.calls[op.backward_overload], test_utils=("test_schema", "test_faketensor")
        )

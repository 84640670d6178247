"""Makes a ``torch.library`` operator out of a pair of kernel launchers: schema, fake, autograd, device guard, and the
way out when Triton cannot build or start a kernel.

The operator is opaque to torch.compile and torch.export. Its fake *is* the launcher's allocation function, so the two
cannot drift apart.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitkern import dispatch, faults
from vitkern.plans import Plan, dispatched
from vitkern.tape import launched
from vitkern.twice import Gradients

operators: list["KernelOp"] = []  # every registered one
_library = torch.library.Library("vitkern", "FRAGMENT")


class KernelOp:
    """A registered operator; call it like the function it came from. Made by `kernel_op`."""

    def __init__(
        self,
        launch: Callable,
        outputs: Callable,
        differentiable: Sequence[str],
        graded: int,
        fallback: Callable | None,
    ) -> None:
        self.name = launch.__name__.removesuffix("_forward")
        self.graded = graded
        self.differentiable = tuple(differentiable)
        self.planned: type[Planned]
        self.arguments = tuple(inspect.signature(launch).parameters)
        self.slots = [self.arguments.index(name) for name in self.differentiable]
        self.fallback = fallback
        self.implementation, self.overload = self._define(self.name, launch, outputs, fallback, slice(None))
        operators.append(self)

    def __call__(self, *args: Any) -> Any:
        return self.overload(*args)

    def backward(self, gradients: Callable) -> Callable[[Callable], "KernelOp"]:
        """Decorator for the backward launcher ``f(grad, *outputs, *inputs, needs)``, ``needs`` being one bool per
        differentiable input.

        It returns one tensor per differentiable input, in order; anything of any shape where ``needs`` is false.
        ``gradients`` allocates them, with the same arguments. Only the first ``graded`` outputs have a gradient; with
        more than one, f begins with one per such output, each None where that output was not used.
        """

        def attach(launch: Callable) -> "KernelOp":
            fallback = None if self.fallback is None else partial(self._gradients_in_pytorch, self.fallback)
            inputs = slice(-1 - len(self.arguments), -1)
            self.backward_implementation, self.backward_overload = self._define(
                launch.__name__, launch, gradients, fallback, inputs
            )
            torch.library.register_autograd(
                f"vitkern::{self.name}", self.differentiate, setup_context=self._save, lib=_library
            )
            self.planned = type(f"vitkern_{self.name}", (Planned,), {"operator": self})
            return self

        return attach

    def _save(self, ctx: Any, inputs: Sequence, output: Any) -> None:
        self.save(ctx, inputs, output, _Layout.of(inputs))

    def save(self, ctx: Any, inputs: Sequence, output: Any, layout: "_Layout") -> None:
        """What `differentiate` needs, in the context of a forward."""
        outputs = output if isinstance(output, tuple) else (output,)
        ctx.layout, ctx.output_count = layout, len(outputs)
        ctx.save_for_backward(*outputs, *[inputs[i] for i in layout.tensors])
        if len(outputs) > self.graded:
            ctx.mark_non_differentiable(*outputs[self.graded :])
        ctx.set_materialize_grads(False)

    def differentiate(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of all inputs, from those of all outputs."""
        grads, layout = grads[: self.graded], ctx.layout
        if all([grad is None for grad in grads]):
            return (None,) * len(layout.values)
        saved = ctx.saved_tensors  # once: a checkpoint unpacks it a single time
        outputs, inputs = saved[: ctx.output_count], list(layout.values)
        for slot, tensor in zip(layout.tensors, saved[ctx.output_count :], strict=True):
            inputs[slot] = tensor
        asked = ctx.needs_input_grad
        needs = [inputs[slot] is not None and asked[slot] for slot in self.slots]
        computed = self._gradients(grads, outputs, inputs, needs, saved, getattr(ctx, "plan", None))
        result: list[Tensor | None] = [None] * len(inputs)
        for slot, needed, value in zip(self.slots, needs, computed, strict=True):
            if needed:
                result[slot] = value
        return tuple(result)

    def _gradients(
        self,
        grads: Sequence[Tensor | None],
        outputs: Sequence[Tensor],
        inputs: Sequence,
        needs: list[bool],
        saved: Sequence[Tensor],
        plan: Plan | None,
    ) -> tuple[Tensor | None, ...]:
        """By the kernel; where they are to be differentiated in turn, with a graph of the formula."""
        args = (*grads, *outputs, *inputs)
        if self.fallback is not None and any([grad is not None and dispatch.is_batched(grad) for grad in grads]):
            found = self._gradients_in_pytorch(self.fallback, *args, needs)
        elif self.fallback is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            counts = len(grads), len(outputs)
            found = Gradients.apply(self.backward_overload, self.fallback, self.slots, needs, counts, *args)
        elif plan is not None:
            found = plan.differentiate(self, grads, saved, (*args, needs))
        else:
            found = self.backward_overload(*args, needs)
        return found if isinstance(found, tuple) else (found,)

    def _define(
        self, name: str, launch: Callable, allocate: Callable, fallback: Callable | None, inputs: slice
    ) -> tuple[Callable, Callable]:
        """What runs, and the operator of torch.library that it is registered as. ``inputs``: which of the arguments of
        ``launch`` are the operator's."""
        run = _on_device(launch, allocate)
        if fallback is not None:
            run = _with_fallback(self.name, run, allocate, fallback, inputs)
        _library.define(name + torch.library.infer_schema(launch, mutates_args=()))
        _library.impl(name, lambda *args: dispatched(name, run, args), "CompositeExplicitAutograd")
        torch.library.register_fake(f"vitkern::{name}", allocate, lib=_library)
        return run, getattr(torch.ops.vitkern, name).default

    def _gradients_in_pytorch(self, fallback: Callable, *args: Any) -> tuple[Tensor | None, ...]:
        """What the backward launcher returns, by differentiating ``fallback``; None where no gradient is needed."""
        inputs, needs = args[-1 - len(self.arguments) : -1], args[-1]
        wanted = [slot for slot, needed in zip(self.slots, needs, strict=True) if needed]

        def graded(*values: Tensor) -> tuple[Tensor, ...]:
            inner = list(inputs)
            for slot, value in zip(wanted, values, strict=True):
                inner[slot] = value
            results = fallback(*inner)
            return results[: self.graded] if isinstance(results, tuple) else (results,)

        # not autograd: within an operator it is switched off
        outputs, pull = torch.func.vjp(graded, *(inputs[slot] for slot in wanted))[:2]
        grads = zip(args[: self.graded], outputs, strict=True)
        pulled = pull(tuple(torch.zeros_like(out) if grad is None else grad.to(out.dtype) for grad, out in grads))
        found = dict(zip(wanted, pulled, strict=True))
        return tuple(found.get(slot) for slot in self.slots)


class _Layout(NamedTuple):
    """Which arguments of an operator are tensors, and the others, None for each tensor."""

    tensors: list[int]
    values: list

    @classmethod
    def of(cls, args: Sequence) -> "_Layout":
        tensors = [i for i, value in enumerate(args) if isinstance(value, Tensor)]
        return cls(tensors, [None if isinstance(value, Tensor) else value for value in args])


class Planned(torch.autograd.Function):
    """An operator that is called past the dispatcher; ``operator`` is set by each subclass, and the last argument is
    the plan."""

    operator: KernelOp

    @classmethod
    def forward(cls, ctx: Any, *args: Any) -> Any:
        operator, plan, inputs = cls.operator, args[-1], args[:-1]
        output = plan.played(operator, operator.implementation, inputs)
        if operator not in plan.layouts:
            plan.layouts[operator] = _Layout.of(inputs)
        operator.save(ctx, inputs, output, plan.layouts[operator])
        ctx.operator, ctx.plan = operator, plan
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *ctx.operator.differentiate(ctx, *grads), None


def kernel_op(
    outputs: Callable, differentiable: Sequence[str], graded: int = 1, fallback: Callable | None = None
) -> Callable[[Callable], KernelOp]:
    """Decorator that registers a launcher as the operator ``vitkern::<its name>``.

    The schema is read from the annotations. ``outputs`` allocates the results and takes the same arguments; the
    launcher calls it too. Outputs never alias inputs. ``differentiable`` names the inputs that get a gradient; the
    first ``graded`` outputs have one.

    ``fallback`` computes the same from the same arguments in PyTorch, where the environment keeps Triton from building
    or starting a kernel (`vitkern.faults`): a tensor or a tuple, None for an output that only the backward kernel
    reads. It is differentiated with torch.func, and autocast is off in it.
    """
    return lambda launch: KernelOp(launch, outputs, differentiable, graded, fallback)


def _with_fallback(op: str, run: Callable, allocate: Callable, fallback: Callable, inputs: slice) -> Callable:
    """``run``, and where that meets a fault ``fallback``: straight away where it met one before. A kernel that was
    asked for raises instead.

    A fault of certain sizes is known by the operator's ``inputs``: where the forward ran in PyTorch the backward must
    too, for it left nothing that the kernel reads.
    """

    def attempt(*args: Any) -> Any:
        device = next(value.device for value in args if isinstance(value, Tensor))
        stopped = faults.reasons(op, device) or faults.reasons_of_sizes(op, device, args[inputs])
        if dispatch.is_forced() or not stopped:
            try:
                return run(*args)
            except Exception as error:
                fault = faults.fault_of(error)
                if fault is None:
                    raise
                if dispatch.is_forced():
                    raise dispatch.forced_in_vain(op, [str(fault)], fault.remedy) from error
                faults.record(op, device, fault, args[inputs])
        with torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
            found = fallback(*args)
        return _as_allocated(found, allocate(*args))

    return attempt


def _as_allocated(found: Any, like: Any) -> Any:
    """``found`` with the dtypes and strides that the fake promises; NaN where it has nothing, as no one reads that."""
    if isinstance(like, Tensor):
        return like.copy_(found)
    filled = list(found) if isinstance(found, tuple) else [found]
    filled += [None] * (len(like) - len(filled))
    return tuple(
        slot.fill_(math.nan) if value is None else slot.copy_(value) for slot, value in zip(like, filled, strict=True)
    )


def _on_device(launch: Callable, allocate: Callable) -> Callable:
    """Triton launches on the *current* device, which need not be the tensors'."""

    def run(*args: Any) -> Any:
        device = next(value.device for value in args if isinstance(value, Tensor))
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return launched(launch, args)
        if dispatch.INTERPRETED and device.type == "cpu":
            return launched(partial(_interpret, launch, allocate), args)
        return launched(launch, args)

    return run


def _interpret(launch: Callable, allocate: Callable, *args: Any) -> Any:
    """The stock interpreter computes bfloat16 as raw 16-bit integers, silently: give it float32 and round what comes
    back."""
    if dispatch.interpreter_is_repaired or not any(
        value is torch.bfloat16 or getattr(value, "dtype", None) == torch.bfloat16 for value in args
    ):
        return launch(*args)
    wide = [value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value for value in args]
    wide = [torch.float32 if value is torch.bfloat16 else value for value in wide]
    results, like = launch(*wide), allocate(*args)
    if isinstance(results, Tensor):
        return results.to(like.dtype)
    return tuple(result.to(kept.dtype) for result, kept in zip(results, like, strict=True))

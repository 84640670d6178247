"""Makes a ``torch.library`` operator out of a pair of kernel launchers: schema, fake, autograd, device guard.

The operator is opaque to torch.compile and torch.export. Its fake *is* the launcher's allocation function, so the two
cannot drift apart.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitkern.dispatch import INTERPRETED

interpreter_is_repaired = False  # set by `vitkern.lab.interpreter`: bfloat16 needs no detour then
_library = torch.library.Library("vitkern", "FRAGMENT")


class KernelOp:
    """A registered operator; call it like the function it came from. Made by `kernel_op`."""

    def __init__(self, launch: Callable, outputs: Callable, differentiable: Sequence[str], graded: int):
        self.name = launch.__name__.removesuffix("_forward")
        self.graded = graded
        self.differentiable = tuple(differentiable)
        self.arguments = tuple(inspect.signature(launch).parameters)
        self.overload = _define(self.name, launch, outputs)

    def __call__(self, *args):
        return self.overload(*args)

    def backward(self, gradients: Callable) -> Callable:
        """Decorator for the backward launcher ``f(grad, *outputs, *inputs, needs)``, ``needs`` being one bool per
        differentiable input.

        It returns one tensor per differentiable input, in order; anything of any shape where ``needs`` is false.
        ``gradients`` allocates them, with the same arguments. Only the first ``graded`` outputs have a gradient; with
        more than one, f begins with one per such output, each None where that output was not used.
        """

        def attach(launch: Callable) -> "KernelOp":
            backward = _define(launch.__name__, launch, gradients)
            slots = [self.arguments.index(name) for name in self.differentiable]

            def setup_context(ctx, inputs, output):
                outputs = output if isinstance(output, tuple) else (output,)
                ctx.tensor_slots = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
                ctx.values = [None if isinstance(value, Tensor) else value for value in inputs]
                ctx.save_for_backward(*outputs, *(inputs[i] for i in ctx.tensor_slots))
                ctx.output_count = len(outputs)
                ctx.mark_non_differentiable(*outputs[self.graded :])
                ctx.set_materialize_grads(False)

            def run(ctx, *grads):
                grads = grads[: self.graded]
                if all(grad is None for grad in grads):
                    return (None,) * len(ctx.values)
                saved = ctx.saved_tensors  # once: a checkpoint unpacks it a single time
                outputs, tensors = saved[: ctx.output_count], saved[ctx.output_count :]
                inputs = list(ctx.values)
                for slot, tensor in zip(ctx.tensor_slots, tensors, strict=True):
                    inputs[slot] = tensor
                needs = [inputs[slot] is not None and ctx.needs_input_grad[slot] for slot in slots]
                computed = backward(*grads, *outputs, *inputs, needs)
                computed = computed if isinstance(computed, tuple) else (computed,)
                result = [None] * len(inputs)
                for slot, needed, value in zip(slots, needs, computed, strict=True):
                    result[slot] = value if needed else None
                return tuple(result)

            torch.library.register_autograd(f"vitkern::{self.name}", run, setup_context=setup_context, lib=_library)
            self.backward_overload = backward
            return self

        return attach


def kernel_op(outputs: Callable, differentiable: Sequence[str], graded: int = 1) -> Callable[[Callable], KernelOp]:
    """Decorator that registers a launcher as the operator ``vitkern::<its name>``.

    The schema is read from the annotations. ``outputs`` allocates the results and takes the same arguments; the
    launcher calls it too. Outputs never alias inputs. ``differentiable`` names the inputs that get a gradient; the
    first ``graded`` outputs have one.
    """
    return lambda launch: KernelOp(launch, outputs, differentiable, graded)


def _define(name: str, launch: Callable, allocate: Callable):
    _library.define(name + torch.library.infer_schema(launch, mutates_args=()))
    _library.impl(name, _on_device(launch, allocate), "CompositeExplicitAutograd")
    torch.library.register_fake(f"vitkern::{name}", allocate, lib=_library)
    return getattr(torch.ops.vitkern, name).default


def _on_device(launch: Callable, allocate: Callable) -> Callable:
    """Triton launches on the *current* device, which need not be the tensors'."""

    def run(*args):
        device = next(value.device for value in args if isinstance(value, Tensor))
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                return launch(*args)
        if INTERPRETED and device.type == "cpu":
            return _interpret(launch, allocate, args)
        return launch(*args)

    return run


def _interpret(launch: Callable, allocate: Callable, args: tuple):
    """The stock interpreter computes bfloat16 as raw 16-bit integers, silently: give it float32 and round what comes
    back."""
    if interpreter_is_repaired or not any(
        value is torch.bfloat16 or getattr(value, "dtype", None) == torch.bfloat16 for value in args
    ):
        return launch(*args)
    wide = [value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value for value in args]
    wide = [torch.float32 if value is torch.bfloat16 else value for value in wide]
    results, like = launch(*wide), allocate(*args)
    if isinstance(results, Tensor):
        return results.to(like.dtype)
    return tuple(result.to(kept.dtype) for result, kept in zip(results, like, strict=True))

"""A second derivative of operators whose first is a kernel: by autograd on the formula in PyTorch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


class Gradients(torch.autograd.Function):
    """``backward(*grads, *outputs, *inputs, needs)``, which a kernel computes, with a derivative of its own.

    ``formula(*inputs)`` computes in PyTorch what the operator does: the ``len(grads)`` first of its results are those
    that ``grads`` are of, each None for a zero. ``needs``: which of the inputs at ``slots`` get a gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backward: Callable,
        formula: Callable,
        slots: Sequence[int],
        needs: list[bool],
        counts: tuple[int, int],
        *args: Any,
    ) -> tuple[Tensor, ...]:
        ctx.formula, ctx.slots, ctx.needs, (ctx.grads, ctx.outputs) = formula, slots, needs, counts
        ctx.is_tensor = [isinstance(value, Tensor) for value in args]
        ctx.values = [None if is_tensor else value for value, is_tensor in zip(args, ctx.is_tensor, strict=True)]
        ctx.save_for_backward(*(value for value in args if isinstance(value, Tensor)))
        ctx.set_materialize_grads(False)
        found = backward(*args, needs)
        return found if isinstance(found, tuple) else (found,)

    @staticmethod
    def backward(ctx: Any, *second: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, again = iter(ctx.saved_tensors), torch.is_grad_enabled()
        args = [
            next(tensors) if is_tensor else value for value, is_tensor in zip(ctx.values, ctx.is_tensor, strict=True)
        ]
        with torch.enable_grad():  # one tensor may be two arguments, or what another one was made of
            args = [value.view_as(value) if isinstance(value, Tensor) else value for value in args]
        grads, inputs = args[: ctx.grads], args[ctx.grads + ctx.outputs :]
        wanted = [slot for slot, needed in zip(ctx.slots, ctx.needs, strict=True) if needed]
        pairs = [
            (slot, grad) for slot, grad in zip(ctx.slots, second, strict=True) if grad is not None and slot in wanted
        ]
        found: list[Tensor | None] = [None] * len(args)
        if pairs:
            # the fused kernels of scaled_dot_product_attention have no second derivative
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _no_autocast(inputs):
                first = _first(ctx.formula, inputs, grads, [slot for slot, _ in pairs])
                leaves = [i for i, value in enumerate(args) if ctx.needs_input_grad[5 + i]]
                reached = [(one, grad) for one, (_, grad) in zip(first, pairs, strict=True) if one.requires_grad]
                if reached and leaves:
                    results = torch.autograd.grad(
                        [one for one, _ in reached], [args[i] for i in leaves], [grad for _, grad in reached],
                        create_graph=again, allow_unused=True,
                    )  # fmt: skip
                    for i, value in zip(leaves, results, strict=True):
                        found[i] = value
        return (None,) * 5 + tuple(found)


def _first(formula: Callable, inputs: list, grads: list[Tensor | None], slots: list[int]) -> Sequence[Tensor]:
    """The gradients of the inputs at ``slots``, with a graph."""
    outputs = formula(*inputs)
    outputs = outputs[: len(grads)] if isinstance(outputs, tuple) else (outputs,)
    given = [(out, grad.to(out.dtype)) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
    return torch.autograd.grad(
        [out for out, _ in given], [inputs[slot] for slot in slots], [grad for _, grad in given],
        create_graph=True, materialize_grads=True,
    )  # fmt: skip


def _no_autocast(inputs: list) -> torch.autocast:
    device = next(value.device.type for value in inputs if isinstance(value, Tensor))
    return torch.autocast("cpu" if device == "meta" else device, enabled=False)

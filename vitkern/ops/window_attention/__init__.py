"""Self-attention within (shifted) windows of an image: Swin (arXiv 2103.14030) and Swin V2 (arXiv 2111.09883)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops.checks import check_probability, check_same, check_shape, check_tensor
from vitkern.ops.projection import projected
from vitkern.ops.sizes import fixed
from vitkern.ops.window_attention.checks import check_windows
from vitkern.ops.window_attention.softmax import image_softmax, windows_in_pytorch
from vitkern.ops.window_attention.steps import Scores
from vitkern.ops.window_attention.windows import padded_size
from vitkern.plans import Plan, plan_of
from vitkern.register import kernel_op

MAX_LOGIT_SCALE = math.log(100.0)
MAX_TOKENS = 1024  # per window: the bias table is expanded to (H, N, N)

if HAS_TRITON:
    from vitkern.kernels import window_attention as kernels

    @kernel_op(
        kernels.window_attention_outputs,
        differentiable=("qkv", "table", "padding", "head_scale"),
        fallback=windows_in_pytorch,
    )
    def window_attention_forward(
        qkv: Tensor,
        table: Tensor | None,
        padding: Tensor | None,
        head_scale: Tensor | None,
        num_heads: int,
        window: list[int],
        shift: list[int],
        wrap: list[int],
        scale: float,
        mask_value: float,
    ) -> tuple[Tensor, Tensor]:
        return kernels.window_attention_forward(
            qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value
        )

    @window_attention_forward.backward(kernels.window_attention_gradients)
    def window_attention_backward(
        grad: Tensor,
        out: Tensor,
        lse: Tensor,
        qkv: Tensor,
        table: Tensor | None,
        padding: Tensor | None,
        head_scale: Tensor | None,
        num_heads: int,
        window: list[int],
        shift: list[int],
        wrap: list[int],
        scale: float,
        mask_value: float,
        needs: list[bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return kernels.window_attention_backward(
            grad, out, lse, qkv, table, padding, head_scale, num_heads, window, shift, wrap, scale, mask_value, needs
        )

    def _products(qkv_shape: Sequence[int], window: Sequence[int]) -> int:
        """FLOPs of one matrix product of all windows."""
        batch, img_h, img_w, packed = qkv_shape
        tokens = batch * padded_size(img_h, window[0]) * padded_size(img_w, window[1])
        return 2 * tokens * window[0] * window[1] * packed // 3

    @register_flop_formula(torch.ops.vitkern.window_attention)
    def _forward_flops(
        qkv_shape: Sequence[int],
        table: Any,
        padding: Any,
        head_scale: Any,
        num_heads: int,
        window: Sequence[int],
        *args: Any,
        **kwargs: Any,
    ) -> int:
        return 2 * _products(qkv_shape, window)

    @register_flop_formula(torch.ops.vitkern.window_attention_backward)
    def _backward_flops(grad: Any, out: Any, lse: Any, *inputs: Any, **kwargs: Any) -> int:
        return _forward_flops(*inputs) * 5 // 2


def _is_padded(image: Tensor, window: tuple[int, int]) -> bool:
    return bool(image.shape[1] % window[0] or image.shape[2] % window[1])


def _reasons(image: Tensor, window: tuple[int, int], shift: tuple[int, int], wrap: str) -> list[str]:
    """Why the kernel cannot run, beside the tensors themselves."""
    reasons = []
    if window[0] * window[1] > MAX_TOKENS:
        reasons.append(f"the window {window} holds more than {MAX_TOKENS} tokens")
    if wrap == "image" and (shift[0] >= image.shape[1] or shift[1] >= image.shape[2]):
        reasons.append(f"the shift {shift} reaches beyond the image {tuple(image.shape[1:3])}")
    return reasons


def _head_scale(logit_scale: Tensor | None) -> Tensor | None:
    """(H,) factor of cosine scores, at most 100; no gradient above the clamp."""
    if logit_scale is None:
        return None
    wide = logit_scale if logit_scale.dtype == torch.float64 else logit_scale.float()
    return wide.reshape(-1).clamp(max=MAX_LOGIT_SCALE).exp()


def _run_kernel(
    call: Plan,
    qkv: Tensor,
    table: Tensor | None,
    padding: Tensor | None,
    logit_scale: Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    wrap: str,
    scale: float | None,
    mask_value: float | None,
) -> Tensor:
    size = [fixed(n) for n in qkv.shape[1:3]]
    modulus = size if wrap == "image" else [padded_size(*axis) for axis in zip(size, window, strict=True)]
    return call.run(
        window_attention_forward,
        qkv,
        None if table is None else table.float(),
        padding,
        _head_scale(logit_scale),
        num_heads,
        list(window),
        list(shift),
        modulus,
        (qkv.shape[-1] // 3 // num_heads) ** -0.5 if scale is None else float(scale),
        -math.inf if mask_value is None else float(mask_value),
    )[0]


def window_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    table: Tensor | None = None,
    padding: Tensor | None = None,
    wrap: str = "image",
    mask_value: float | None = -100.0,
    scale: float | None = None,
    logit_scale: Tensor | None = None,
) -> Tensor:
    """Softmax attention within the windows of a cyclically shifted image; differentiable in every tensor.

    Swin (arXiv 2103.14030, section 3.2 and equation 4); with ``logit_scale`` Swin V2 (arXiv 2111.09883, equation 2).

    Args:
        qkv: (B, img_h, img_w, 3 * C) in natural token order, the channels split as (3, H, D); float16, bfloat16,
            float32; float64 in PyTorch.
        num_heads: H, divides C.
        window: (window_h, window_w) in tokens.
        shift: (shift_h, shift_w) in tokens, each smaller than its window.
        table: ((2 window_h - 1) (2 window_w - 1), H) relative-position biases, added to the scores in float32. Row (dh
            + window_h - 1) * (2 window_w - 1) + dw + window_w - 1 belongs to the offset (dh, dw) of the query from the
            key.
        padding: (3 * C,) what ``qkv`` is on padded tokens, as a rule the bias of its projection: they are attended to.
            Needed where the window does not divide the image.
        wrap: "image" rolls the image and then pads it (timm), "padded" pads and then rolls (transformers, torchvision).
        mask_value: added to the score of two tokens that the roll brought together; None is -inf.
        scale: factor of the scores; D ** -0.5 by default.
        logit_scale: (H,) or (H, 1, 1): scores are cosines of q and k times exp(min(logit_scale, ln 100)).

    Returns:
        (B, img_h, img_w, C), contiguous, in the dtype of ``qkv`` (under autocast: the autocast dtype).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "window_attention"
    options = num_heads, window, shift, wrap, mask_value, scale
    call = plan_of(op, (qkv, table, padding, logit_scale), options)
    if not call.known:
        check_tensor(op, "qkv", qkv, ndim=4)
        if qkv.shape[-1] % 3:
            raise ValueError(
                f"{op}: qkv does not hold q, k and v: got {qkv.shape[-1]} channels; expected a multiple of 3."
            )
        window, shift = check_windows(op, qkv, qkv.shape[-1] // 3, *options, table, logit_scale)
        _check_padding(op, qkv, padding, window)
    if call.casts:
        qkv, padding = autocast(qkv, padding)
    if not call.known:
        check_same(op, qkv=qkv, padding=padding)

    if call.known or call.runs_kernel((qkv, table, padding, logit_scale), _reasons(qkv, window, shift, wrap)):
        return _run_kernel(call, qkv, table, padding, logit_scale, num_heads, window, shift, wrap, scale, mask_value)
    scores = Scores(num_heads, window, table, mask_value, scale, _head_scale(logit_scale))
    return image_softmax(qkv, None, padding, shift, wrap, scores)


def _check_padding(op: str, qkv: Tensor, padding: Tensor | None, window: tuple[int, int]) -> None:
    if padding is not None:
        check_tensor(op, "padding", padding)
        check_shape(op, "padding", padding, (qkv.shape[-1],), f"(3 C,) = ({qkv.shape[-1]},)")
    elif _is_padded(qkv, window):
        raise ValueError(
            f"{op}: the window does not divide the image: got image {tuple(qkv.shape[1:3])}, window {window}; "
            "expected padding, the value of qkv on padded tokens. Pass the bias of the qkv projection (zeros where it "
            "has none)."
        )


def projected_window_attention(
    x: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
    table: Tensor | None = None,
    wrap: str = "image",
    mask_value: float | None = -100.0,
    scale: float | None = None,
    logit_scale: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """`window_attention` of ``project(x)``, with ``project`` called where that is cheapest; padded tokens are zeros
    before it.

    Args:
        x: (B, img_h, img_w, C_in) in natural token order.
        project: maps (..., C_in) to (..., 3 * C), each token by itself: the qkv projection, called as a module so that
            hooks and adapters count. The kernel path calls it on the image, and on (1, C_in) zeros where padding is
            needed; the PyTorch path on tokens in window order, (tokens, C_in): without gradients on a few of them at a
            time. Anything but a plain linear layer without hooks is called once, with all rows, (tokens, C_in).
        dropout_p: probability of dropping an attention weight, 0 <= p < 1. Above 0 the PyTorch path runs.

    The other arguments, the result and the errors are those of `window_attention`.
    """
    op = "projected_window_attention"
    options = num_heads, window, shift, wrap, mask_value, scale
    call = plan_of(op, (x, table, logit_scale), (*options, dropout_p))
    if not call.known:
        check_tensor(op, "x", x, ndim=4)
    if not callable(project):
        raise TypeError(
            f"{op}: project is not callable: got {type(project).__name__}; "
            "expected a map from (..., C_in) to (..., 3 C)."
        )
    if not call.known:
        window, shift = check_windows(op, x, num_heads, *options, table, logit_scale)
        check_probability(op, "dropout_p", dropout_p)
    reasons = _reasons(x, window, shift, wrap) + ["the kernel does not drop attention weights"] * (dropout_p > 0.0)
    if call.known or call.runs_kernel((*autocast(x), table, logit_scale), reasons, operator="window_attention"):
        qkv, padding = projected(op, x, project, num_heads, _is_padded(x, window))
        return window_attention(
            qkv, num_heads=num_heads, window=window, shift=shift, table=table, padding=padding, wrap=wrap,
            mask_value=mask_value, scale=scale, logit_scale=logit_scale,
        )  # fmt: skip
    scores = Scores(num_heads, window, table, mask_value, scale, _head_scale(logit_scale), dropout_p)
    return image_softmax(x, project, None, shift, wrap, scores)

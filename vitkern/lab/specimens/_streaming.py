"""The kernels of the streaming loop and of the tile, which attention, windows and local attention share, and how each
is started for a case of `vitkern.lab.addressing`."""

from collections.abc import Callable

# kernel -> launcher, as `start` knows it
STREAMING = {
    "_stream_fwd": "stream_forward",
    "_stream_bwd_dq": "stream_dq",
    "_stream_bwd_dkdv": "stream_dkdv",
    "_stream_bwd_bias": "stream_bias",
}
SHORT = {"_short_fwd": "short_forward", "_short_bwd": "short_backward"}


def stride(axis: int, count: int) -> Callable:
    """Strides of 4-D tensors of ``count`` elements, apart from ``axis``, which steps by the size."""
    return lambda s: tuple(s if i == axis else n for i, n in enumerate((count, count, 16, 1)))


def start(
    launcher: str, problem, q, k, v, *, out, lse, grad, delta, found, lse_grad=None, per_group=False, short=None
) -> None:
    """Call ``launcher`` on the `Problem` and `Rows` of `vitkern.kernels.loop.problem`, and nothing else.

    lse: `Rows`; delta, lse_grad: (groups, H, N) float32, or over an image. found: `Rows` for dq, dk and dv. per_group:
    of the gradient of a bias, which is one per head. short: arguments that the launchers of the tile alone have.
    """
    from vitkern.kernels.loop import stream, stream_backward, stream_bias, stream_hopper
    from vitkern.kernels.tile import short_attention, short_attention_backward

    loop, tile, operands = (stream, stream_backward), (short_attention, short_attention_backward), (q, k, v)
    {
        "stream_forward": lambda: loop[0].stream_forward(problem, *operands, out, lse),
        "stream_hopper_forward": lambda: stream_hopper.stream_hopper_forward(problem, *operands, out, lse),
        "stream_dq": lambda: loop[1].stream_dq(problem, *operands, out, grad, lse, delta, found[0], lse_grad),
        "stream_dkdv": lambda: loop[1].stream_dkdv(problem, *operands, grad, lse, delta, *found[1:]),
        "stream_bias": lambda: stream_bias.stream_bias_gradient(
            problem, *operands, grad, lse, delta, per_group=per_group, per_head=True
        ),
        "short_forward": lambda: tile[0].run_forward(problem, *operands, out, **short or {}),
        "short_backward": lambda: tile[1].run_backward(problem, grad, *operands, *found, **short or {}),
    }[launcher]()

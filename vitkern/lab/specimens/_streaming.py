"""The kernels of the streaming loop and of the tile, which attention, windows and local attention share, and how each
is started for a case of `vitkern.lab.addressing`."""

from collections.abc import Callable, Mapping

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

    dq, dk, dv = found
    {
        "stream_forward": lambda: stream.stream_forward(problem, q, k, v, out, lse),
        "stream_hopper_forward": lambda: stream_hopper.stream_hopper_forward(problem, q, k, v, out, lse),
        "stream_dq": lambda: stream_backward.stream_dq(problem, q, k, v, out, grad, lse, delta, dq, lse_grad),
        "stream_dkdv": lambda: stream_backward.stream_dkdv(problem, q, k, v, grad, lse, delta, dk, dv),
        "stream_bias": lambda: stream_bias.stream_bias_gradient(
            problem, q, k, v, grad, lse, delta, per_group=per_group, per_head=True
        ),
        "short_forward": lambda: short_attention.run_forward(problem, q, k, v, out, **short or {}),
        "short_backward": lambda: short_attention_backward.run_backward(
            problem, grad, q, k, v, dq, dk, dv, **short or {}
        ),
    }[launcher]()


def _halved(turns: int, a: Mapping) -> float:
    """A causal block sees half of the others at least; where there are splits, each walks a share."""
    return turns / (2 if a["CAUSAL"] else 1) / (a["split"][1] if a.get("split") else 1)


def _keys(a: Mapping, programs: int) -> float:
    return _halved(-(-a["M"] // a["BLOCK_N"]), a)


def _members(a: Mapping, programs: int) -> float:
    planes = (a["groups"] if a["PER_GROUP"] else 1) * (a["heads"] if a["PER_HEAD"] else 1)
    return a["groups"] * a["heads"] / planes / a["splits"]


# see `vitkern.lab.specimen.Specimen`
TURNS = {
    "_stream_fwd": _keys,
    "_stream_hopper_fwd": lambda a, programs: -(-a["M"] // a["BLOCK_N"]),
    "_stream_bwd_dq": _keys,
    "_stream_bwd_dkdv": lambda a, programs: _halved(a["KV_SHARE"] * -(-a["N"] // a["BLOCK_M"]), a),
    "_stream_bwd_bias": _members,
    "_combine_softmax": lambda a, programs: a["splits"],
    "_add_parts": lambda a, programs: a["splits"],
    "_short_fwd": lambda a, programs: min(a["chunk"], a["groups"]),
    "_short_bwd": lambda a, programs: min(a["chunk"], a["groups"]) * a["ROW_BLOCKS"],
}

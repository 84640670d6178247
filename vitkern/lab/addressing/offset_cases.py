"""The cases of `offsets`: every kernel."""

import torch

from vitkern.lab.addressing.offset_attention import attention_cases, hopper_cases
from vitkern.lab.addressing.offset_case import HALF, Case, scaled
from vitkern.lab.addressing.offset_local import local_cases
from vitkern.lab.addressing.offset_sparse import sparse_cases


def _norm(tensors, size, *, channels):
    from vitkern.kernels.rows import layernorm

    x, residual, base, y, total = (tensors(lambda s: (s, channels)) for _ in range(5))
    vectors = [tensors(lambda s: (channels,)) for _ in range(3)]
    mean, rstd, row_scale = (tensors(lambda s: (s,), torch.float32) for _ in range(3))
    layernorm.normalise_rows(
        x, *vectors[:2], 1e-6, residual=residual, base=base, layer_scale=vectors[2], row_scale=row_scale, y=y,
        total=total, mean=mean, rstd=rstd,
    )  # fmt: skip


def _norm_backward(tensors, size, *, channels):
    from vitkern.kernels.rows import layernorm

    dy, s, dtotal, dx, normed = (tensors(lambda s: (s, channels)) for _ in range(5))
    weight, bias = (tensors(lambda s: (channels,)) for _ in range(2))
    mean, rstd, row_scale = (tensors(lambda s: (s,), torch.float32) for _ in range(3))
    layernorm.normalise_rows_backward(
        dy, s, mean, rstd, weight, dtotal=dtotal, bias=bias, row_scale=row_scale, dx=dx, normed=normed
    )


def _mlp(tensors, size, *, plan):
    from vitkern.kernels import layernorm_mlp as mlp

    x, row_scale = tensors(lambda s: (s, 16)), tensors(lambda s: (s,), torch.float32)
    norm = [tensors(lambda s: (16,)) for _ in range(2)]
    fc1, fc2 = (tensors(lambda s: (16, 16)) for _ in range(2))
    biases, layer_scale = [tensors(lambda s: (16,)) for _ in range(2)], tensors(lambda s: (16,))
    mlp.layernorm_mlp_forward(
        x, *norm, fc1, biases[0], fc2, biases[1], layer_scale, row_scale, 1e-6, "gelu", False, plan, plan == "two"
    )


def _product(tensors, size, *, epilogue, rows, cols, inner=16, b_strides=None, own=True):
    """A product with an epilogue, or the epilogue alone. ``rows`` and ``cols``: functions of the size."""
    from vitkern.kernels.rows import epilogues, matmul

    def matrix(dtype=HALF):
        return tensors(lambda s: (rows(s), cols(s)), dtype)

    bias, layer_scale = (tensors(lambda s: (cols(s),)) for _ in range(2))
    row_scale, width = tensors(lambda s: (rows(s),), torch.float32), cols(size)
    args = {
        "store": lambda: (bias, matrix()),
        "activate_and_store": lambda: (bias, matrix(), matrix()),
        "add_residual": lambda: (bias, layer_scale, row_scale, matrix(), width, 1, matrix()),
        "activation_backward": lambda: (matrix(), matrix(), matrix(), matrix(torch.float32)),
        "scale_gradient": lambda: (bias, row_scale, matrix(), width, 1, matrix(torch.float32)),
    }[epilogue]()
    hook = getattr(epilogues, epilogue)
    if not own:
        matmul.pointwise(matrix(), hook, args)
        return
    a = tensors(lambda s: (rows(s), inner))
    b = tensors(lambda s: (cols(s), inner)).t() if b_strides is None else tensors(
        lambda s: (inner, cols(s)), strides=b_strides
    )  # fmt: skip
    matmul.multiply(a, b, hook, args, own=True)


def _expand(tensors, size, *, heads, strides=None):
    from vitkern.kernels.tile import relative_table

    relative_table.expand_table(tensors(lambda s: (9, heads(s)), strides=strides), (2, 2), 16, 64)


def _reduce(tensors, size):
    from vitkern.kernels.tile import relative_table

    relative_table.reduce_table(tensors(lambda s: (s, 16, 64), torch.float32), (2, 2))


def all_cases() -> list[Case]:
    from vitkern.kernels.machine.blocks import Config

    row = Config(1, 64, 4, 1)
    one_row = {"matmul_config": lambda *_, **__: (row, 64), "pointwise_config": lambda *_: row}
    cases = []
    for kernel, launcher in (
        ("_short_fwd", "short_forward"), ("_short_bwd", "short_backward"), ("_stream_fwd", "stream_forward"),
        ("_stream_bwd_dq", "stream_dq"), ("_stream_bwd_dkdv", "stream_dkdv"),
        ("_stream_bwd_bias", "stream_bias"),
    ):  # fmt: skip
        cases += attention_cases(kernel, launcher)
        cases += local_cases(kernel, launcher) if launcher.startswith("stream") else []
    cases += local_cases("_stream_bwd_axes", "stream_axes")
    cases += [
        scaled("_layernorm_fwd", "rows", _norm, 5, 2**27, channels=16),
        scaled("_layernorm_bwd", "rows, each with partial sums of its own", _norm_backward, 5, 2**20, channels=2048,
              blocks={"layernorm_programs": lambda arch: 2**40}),
        scaled("_mlp_fwd", "rows", _mlp, 5, 2**27, plan="one"),
        scaled("_norm_linear_fwd", "rows", _mlp, 5, 2**27, plan="two"),
    ]  # fmt: skip
    for epilogue in ("store", "activate_and_store", "add_residual", "activation_backward", "scale_gradient"):
        for kernel, own in (("_matmul", True), ("_pointwise", False)):
            sides = dict(rows=lambda s: s, cols=lambda s: 16)
            cases.append(
                scaled(kernel, f"rows, {epilogue}", _product, 5, 2**27, one_row, epilogue=epilogue, own=own, **sides)
            )
    sides = dict(epilogue="store", rows=lambda s: 20)
    cases += [
        scaled("_matmul", "columns", _product, 5, 2**27, cols=lambda s: s, **sides),
        scaled("_matmul", "stride of the inner dimension", _product, 16, 2**25, cols=lambda s: 16, inner=80,
              b_strides=lambda s: (s, 1), **sides),
        scaled("_pointwise", "columns", _product, 5, 2**27, cols=lambda s: s, own=False, **sides),
        scaled("_expand_table", "heads", _expand, 3, 2**21, heads=lambda s: s),
        scaled("_expand_table", "entry stride", _expand, 16, 2**28, heads=lambda s: 3, strides=lambda s: (s, 1)),
        scaled("_expand_table", "head stride", _expand, 16, 2**30, heads=lambda s: 3, strides=lambda s: (1, s)),
        scaled("_reduce_table", "heads", _reduce, 3, 2**21),
    ]  # fmt: skip
    return cases + hopper_cases() + sparse_cases()

"""The kernels of rows/: products with an epilogue, and epilogues alone."""

from collections.abc import Callable

import torch

from vitkern.lab.addressing.offset_case import HALF, Case, scaled
from vitkern.lab.breaking.survivor import Survivor

EPILOGUES = ("store", "activate_and_store", "add_residual", "activation_backward", "scale_gradient")
_ROWS = "one element a row, and rows are counted in 31 bits"
BOUNDED = {
    "*.mean": _ROWS,
    "*.rstd": _ROWS,
    "*row_scale": _ROWS,
    "_matmul.*.bias": "one element a column, and columns are counted in 31 bits",
    "_pointwise.*.bias": "one element a column, and columns are counted in 31 bits",
}
TURNS = {"_matmul": lambda a, programs: -(-a["inner"] // a["BLOCK_K"])}
SURVIVORS = {
    "epilogues.add_residual:drop-other:1": Survivor(
        "tl.load(row_scale + row // sample_rows, mask=row < rows, other=0.0) -> tl.load(row_scale + row // "
        "sample_rows, mask=row < rows)",
        "masked lanes are rows past the last, which the store at the end leaves out",
    ),
    "matmul.load_columns:drop-float32:1": Survivor(
        "tl.load(pointer + col, mask=col < cols, other=0.0).to(tl.float32) -> tl.load(pointer + col, "
        "mask=col < cols, other=0.0)",
        "every caller adds the values to, or multiplies them with, a float32 accumulator, which widens them just so",
    ),
    "matmul.load_columns:narrow-accumulator:1": Survivor(
        "tl.float32 -> tl.float16",
        "the default is 0 or 1, exact in float16, and is only combined with float32 accumulators, which "
        "keeps them float32",
    ),
    "matmul.load_columns:wrong-constant:1": Survivor(
        "0.0 -> 1.0",
        "values past the last column reach stores that mask those columns, or are multiplied by a gradient "
        "that is zero there",
    ),
}


def _product(tensors, size, *, epilogue: str, rows: Callable, cols: Callable, inner=16, b_strides=None, own=True):
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
    if b_strides is None:
        b = tensors(lambda s: (cols(s), inner)).t()
    else:
        b = tensors(lambda s: (inner, cols(s)), strides=b_strides)
    matmul.multiply(a, b, hook, args, own=True)


def offsets() -> list[Case]:
    from vitkern.kernels.machine.blocks import Config

    row = Config(1, 64, 4, 1)
    one_row = {"matmul_config": lambda *_, **__: (row, 64), "pointwise_config": lambda *_: row}
    tall = dict(rows=lambda s: s, cols=lambda s: 16)
    cases = []
    for epilogue in EPILOGUES:
        for kernel, own in (("_matmul", True), ("_pointwise", False)):
            options = dict(epilogue=epilogue, own=own, **tall)
            cases.append(scaled(kernel, f"rows, {epilogue}", _product, 5, 2**27, one_row, **options))
    flat = dict(epilogue="store", rows=lambda s: 20, cols=lambda s: s)
    deep = dict(epilogue="store", rows=lambda s: 20, cols=lambda s: 16, inner=80, b_strides=lambda s: (s, 1))
    return [
        *cases,
        scaled("_matmul", "columns", _product, 5, 2**27, **flat),
        scaled("_matmul", "stride of the inner dimension", _product, 16, 2**25, **deep),
        scaled("_pointwise", "columns", _product, 5, 2**27, own=False, **flat),
    ]

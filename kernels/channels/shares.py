"""Images of many tokens: sums of shares of them, the D x D matrix out of all shares, then what it mixes."""

import triton
import triton.language as tl

from ..machine.launch import launch
from .matrix import factor_of, slopes_of, weights_of
from .tokens import mix, mix_backward, summed


@triton.jit
def _tile(HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets of a D x D matrix, and which of them are in it."""
    d = tl.arange(0, BLOCK_D)
    return d[:, None] * HEAD_DIM + d[None, :], (d < HEAD_DIM)[:, None] & (d < HEAD_DIM)[None, :]


@triton.jit
def _channel_sum(
    left, right, sums, left_strides, right_strides, heads, N, shares,
    SQUARES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums (B, H, S, D, D), or with SQUARES (B, H, S, D + 2, D): two rows of squares of left's and right's channels."""
    head, share = tl.program_id(0) % heads, tl.program_id(0) // heads % shares
    image = tl.program_id(0) // heads // shares
    length = tl.cdiv(N, shares)
    last = tl.minimum((share + 1) * length, N)
    total, left_squares, right_squares = summed(
        left, right, left_strides, right_strides, image, head, share * length, last,
        SQUARES, HEAD_DIM, BLOCK_M, BLOCK_D, ALIGN, PRECISION,
    )  # fmt: skip
    ROWS: tl.constexpr = HEAD_DIM + 2 if SQUARES else HEAD_DIM
    row = ((image.to(tl.int64) * heads + head) * shares + share) * ROWS
    offsets, inside = _tile(HEAD_DIM, BLOCK_D)
    tl.store(sums + row * HEAD_DIM + offsets, total, mask=inside)
    if SQUARES:
        d = tl.arange(0, BLOCK_D)
        tl.store(sums + (row + HEAD_DIM) * HEAD_DIM + d, left_squares, mask=d < HEAD_DIM)
        tl.store(sums + (row + HEAD_DIM + 1) * HEAD_DIM + d, right_squares, mask=d < HEAD_DIM)


@triton.jit
def _all_shares(sums, matrix, shares, SQUARES: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """`summed` of all tokens of the image and head ``matrix``."""
    ROWS: tl.constexpr = HEAD_DIM + 2 if SQUARES else HEAD_DIM
    offsets, inside = _tile(HEAD_DIM, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
    left_squares, right_squares = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for share in tl.range(0, shares):
        row = (matrix.to(tl.int64) * shares + share) * ROWS
        total += tl.load(sums + row * HEAD_DIM + offsets, mask=inside, other=0.0)
        if SQUARES:
            left_squares += tl.load(sums + (row + HEAD_DIM) * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
            right_squares += tl.load(sums + (row + HEAD_DIM + 1) * HEAD_DIM + d, mask=d < HEAD_DIM, other=0.0)
    return total, left_squares, right_squares


@triton.jit
def _channel_weights(
    sums, weights, temperature, heads, shares, scale, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """weights (B, H, D, D)."""
    matrix = tl.program_id(0)
    UNIT: tl.constexpr = temperature is not None
    total, left_squares, right_squares = _all_shares(sums, matrix, shares, UNIT, HEAD_DIM, BLOCK_D)
    factor = factor_of(temperature, matrix % heads, scale)
    tile = weights_of(total, left_squares, right_squares, factor, UNIT, HEAD_DIM, BLOCK_D)
    offsets, inside = _tile(HEAD_DIM, BLOCK_D)
    place = matrix.to(tl.int64) * (HEAD_DIM * HEAD_DIM)
    tl.store(weights + place + offsets, tile.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def _channel_slopes(
    sums, dsums, matrices, vectors, temperature, dtemperature, heads, shares, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """matrices (B, H, 3, D, D) and vectors (B, H, 2 or 4, D): see `slopes_of`."""
    matrix = tl.program_id(0)
    UNIT: tl.constexpr = temperature is not None
    total, left_squares, right_squares = _all_shares(sums, matrix, shares, UNIT, HEAD_DIM, BLOCK_D)
    dweights = _all_shares(dsums, matrix, shares, False, HEAD_DIM, BLOCK_D)[0]
    factor = factor_of(temperature, matrix % heads, scale)
    of_matrix, of_vectors, dfactor = slopes_of(
        total, left_squares, right_squares, dweights, factor, UNIT, matrices.dtype.element_ty, HEAD_DIM, BLOCK_D
    )
    if UNIT:
        tl.store(dtemperature + matrix, dfactor)
    offsets, inside = _tile(HEAD_DIM, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    place = matrices + matrix.to(tl.int64) * (3 * HEAD_DIM * HEAD_DIM) + offsets
    for part in tl.static_range(3):
        tl.store(place + part * HEAD_DIM * HEAD_DIM, of_matrix[part], mask=inside)
    VECTORS: tl.constexpr = 4 if UNIT else 2
    place = vectors + matrix.to(tl.int64) * (VECTORS * HEAD_DIM) + d
    for part in tl.static_range(VECTORS):
        tl.store(place + part * HEAD_DIM, of_vectors[part], mask=d < HEAD_DIM)


@triton.jit
def _channel_mix_fwd(
    carried, out, weights, strides, out_strides, heads, N, blocks,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, block = tl.program_id(0) % heads, tl.program_id(0) // heads % blocks
    image = tl.program_id(0) // heads // blocks
    offsets, inside = _tile(HEAD_DIM, BLOCK_D)
    place = (image.to(tl.int64) * heads + head) * (HEAD_DIM * HEAD_DIM)
    tile = tl.load(weights + place + offsets, mask=inside, other=0.0)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    mix(carried, out, tile, strides, out_strides, image, head, i, N, HEAD_DIM, BLOCK_D, ALIGN, PRECISION)


@triton.jit
def _channel_mix_bwd(
    left, right, grad, dleft, dright, dcarried, matrices, vectors, strides, grad_strides, gradient_strides,
    heads, N, blocks, UNIT: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head, block = tl.program_id(0) % heads, tl.program_id(0) // heads % blocks
    image = tl.program_id(0) // heads // blocks
    matrix = image.to(tl.int64) * heads + head
    offsets, inside = _tile(HEAD_DIM, BLOCK_D)
    d = tl.arange(0, BLOCK_D)
    place = matrices + matrix * (3 * HEAD_DIM * HEAD_DIM) + offsets
    of_matrix, of_vectors = (), ()
    for part in tl.static_range(3):
        of_matrix += (tl.load(place + part * HEAD_DIM * HEAD_DIM, mask=inside, other=0.0),)
    VECTORS: tl.constexpr = 4 if UNIT else 2
    place = vectors + matrix * (VECTORS * HEAD_DIM) + d
    for part in tl.static_range(VECTORS):
        of_vectors += (tl.load(place + part * HEAD_DIM, mask=d < HEAD_DIM, other=0.0),)
    i = block * BLOCK_M + tl.arange(0, BLOCK_M)
    mix_backward(
        left, right, grad, dleft, dright, dcarried, of_matrix, of_vectors, strides, grad_strides, gradient_strides,
        image, head, i, N, UNIT, HEAD_DIM, BLOCK_D, ALIGN, PRECISION,
    )  # fmt: skip


def sum_shares(problem, left, right, sums, squares):
    """Fills ``sums`` (B, H, S, D, D), or (B, H, S, D + 2, D) with ``squares``."""
    shares = sums.shape[2]
    launch(
        _channel_sum, (problem.matrices * shares,),
        left.tensor, right.tensor, sums, *problem.strides(left, right), problem.heads, problem.tokens, shares,
        SQUARES=squares, **problem.constants,
    )  # fmt: skip


def weigh(problem, sums, weights):
    """Fills ``weights`` (B, H, D, D)."""
    launch(
        _channel_weights, (problem.matrices,),
        sums, weights, problem.temperature, problem.heads, sums.shape[2], problem.scale, **problem.matrix_constants,
    )  # fmt: skip


def mix_tokens(problem, carried, out, weights):
    """Fills ``out``."""
    blocks = triton.cdiv(problem.tokens, problem.constants["BLOCK_M"])
    launch(
        _channel_mix_fwd, (problem.matrices * blocks,),
        carried.tensor, out.tensor, weights, *problem.strides(carried, out), problem.heads, problem.tokens, blocks,
        **problem.constants,
    )  # fmt: skip


def slope(problem, sums, dsums, matrices, vectors, dtemperature):
    """Fills ``matrices`` (B, H, 3, D, D), ``vectors`` (B, H, 2, D), or 4 of unit columns, and ``dtemperature`` of
    these."""
    launch(
        _channel_slopes, (problem.matrices,),
        sums, dsums, matrices, vectors, problem.temperature, dtemperature, problem.heads, sums.shape[2], problem.scale,
        **problem.matrix_constants,
    )  # fmt: skip


def mix_tokens_backward(problem, left, right, grad, dleft, dright, dcarried, matrices, vectors):
    """Fills the gradients of tokens."""
    blocks = triton.cdiv(problem.tokens, problem.constants["BLOCK_M"])
    operands = (left, right, grad, dleft, dright, dcarried)
    launch(
        _channel_mix_bwd, (problem.matrices * blocks,),
        *(rows.tensor for rows in operands), matrices, vectors, *problem.strides(left, grad, dleft),
        problem.heads, problem.tokens, blocks, UNIT=problem.temperature is not None, **problem.constants,
    )  # fmt: skip

"""Maps of dense attention: its weights, or what of a gradient goes through each of them, added up over heads as they
are made, so that no map of a single head is in memory unless it is asked for.

    map = P or max(0, P dP)    P = exp(scale q k^T + terms - lse)    dP = grad v^T        (B, 1 or H, N, M) float32

One launch of the map kernel of the loop (loop/stream_bias.py, reductions.py): a program owns a tile of a map and walks
the heads; where tiles are few, shares of the heads, which a second launch adds in their order. Bytes: the map is
written once, the floor, and where it is in shares once for each; q and grad are read M / BLOCK_N times, k and v
N / BLOCK_M times, all but the first time from the second-level cache.

Compiled for sm_90 in bfloat16, D = 64, tiles of 64 x 64: 128 registers and 286 instructions a head for weights, 180 and
445 for relevance; nothing spills there, nor in float32 or for the other four architectures.
"""

from torch import Tensor

from .attention import Terms, _problem
from .loop import reductions
from .loop.problem import dense_rows, per_token, unit_last
from .loop.stream_bias import stream_bias_gradient


def attention_map(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    grad: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    key_mask: Tensor | None,
    lse: Tensor,
    scale: float,
    causal: bool,
    per_head: bool,
) -> Tensor:
    """q (B, H, N, D), k (B, Hk, M, D), lse (B, H, N) of the forward -> weights, or with v (B, Hk, M, Dv) and the
    gradient of the output (B, H, N, Dv) their relevance; of each head, or the sum over heads (B, 1, N, M)."""
    q, k = unit_last(q), unit_last(k)
    v = k if v is None else unit_last(v)
    problem = _problem(q, k, v, Terms(bias, mask, key_mask, None, None, scale, causal, 0.0, 0.0))
    operands, log = (dense_rows(q), dense_rows(k), dense_rows(v)), per_token(lse)
    options = dict(per_group=True, per_head=per_head)
    if grad is None:
        return stream_bias_gradient(problem, *operands, None, log, None, reduce=reductions.weights, **options)
    rows = dense_rows(unit_last(grad))
    # lse stands where delta is read: relevance has no use for it
    return stream_bias_gradient(problem, *operands, rows, log, lse, reduce=reductions.relevance, **options)

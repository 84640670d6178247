"""An attention problem and the place of its operands: what the launchers of all attention kernels are given."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..machine.blocks import alignment
from ..machine.numbers import disguised
from . import logits, norms, reductions, scores, starts, tokens, weighing


class Rows(NamedTuple):
    """One operand: its tensor, the stride between heads and the strides of its TOKENS hook, in elements."""

    tensor: Tensor
    head: int
    strides: tuple[int, ...]

    def over(self, align: int) -> tuple:
        """As kernels of the loop take it: (tensor, stride of heads, strides of TOKENS)."""
        return self.tensor, *self.strides_over(align)

    def strides_over(self, align: int) -> tuple:
        """(stride of heads, strides of TOKENS) in units of ``align`` elements. Those of an image follow its size and
        travel in disguise, see `numbers`."""
        strides = tuple(stride // align for stride in self.strides)
        return self.head // align, tuple(map(disguised, strides)) if len(strides) > 2 else strides


class Pair(NamedTuple):
    """A hook, and that of its gradient."""

    forward: Callable
    backward: Callable


PLAIN_LOGIT = Pair(logits.plain, logits.plain_backward)
CAPPED_LOGIT = Pair(logits.capped, logits.capped_backward)
PLAIN_ROWS = Pair(norms.plain, norms.plain_backward)
UNIT_ROWS = Pair(norms.unit, norms.unit_backward)


class HookArgs(NamedTuple):
    """What hooks are given, as kernels take it: read in place, since what is assigned to a name, or taken apart, is no
    constant any more."""

    q: tuple
    k: tuple
    score: tuple
    logit: tuple
    start: tuple
    weigh: tuple


class Problem(NamedTuple):
    """What forward and backward agree on.

    ``n`` query and ``m`` key tokens of each group. ``padding`` (3, H, D), contiguous: rows of q, k and v of the tokens
    that a hook says have none; ``ragged``: there are such tokens, and theirs are zeros. ``multiple``: n and m follow
    the size of an image and are multiples of this, which is all that kernels know; 0 where they are constants.
    ``head_scale`` (H,) float32 is the factor of each head instead of ``scale``. ``value_dim``: that of v where it is
    another than that of q and k.
    """

    groups: int
    heads: int
    kv_heads: int
    n: int
    m: int
    head_dim: int
    scale: float
    q_tokens: Callable = tokens.dense
    k_tokens: Callable = tokens.dense
    q_args: tuple = ()
    k_args: tuple = ()
    score: Callable = scores.plain
    score_args: tuple = ()
    prepare: Callable = scores.unprepared
    causal: bool = False
    padding: Tensor | None = None
    ragged: bool = False
    multiple: int = 0
    head_scale: Tensor | None = None
    value_dim: int | None = None
    norm: Pair = PLAIN_ROWS
    logit: Pair = PLAIN_LOGIT
    logit_args: tuple = ()
    start: Callable = starts.empty
    start_args: tuple = ()
    weigh: Callable = weighing.plain
    weigh_args: tuple = ()

    @property
    def args(self) -> "HookArgs":
        return HookArgs(self.q_args, self.k_args, self.score_args, self.logit_args, self.start_args, self.weigh_args)


HOOKS = dict(q="Q_TOKENS", k="K_TOKENS", score="SCORE", logit="LOGIT", start="START", weigh="WEIGH")
USUAL = dict(NORM=norms.plain, LOGIT=logits.plain, START=starts.empty, WEIGH=weighing.plain, REDUCE=reductions.slopes)


def aligned(*operands: Rows) -> int:
    """The ALIGN that all operands share."""
    strides = [stride for rows in operands for stride in (rows.head, *rows.strides)]
    return alignment(operands[0].tensor.element_size(), *strides)


def _strides(tensor: Tensor) -> list[int]:
    """Those of ``tensor``. That of a dimension of size 1 or 0 is arbitrary: 0 spoils no alignment, and beside a head
    stride of 1 Triton 3.6 loses another 1.
    """
    return [0 if size <= 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]


def dense_rows(tensor: Tensor) -> Rows:
    """(B, H, N, D) with a last stride of 1."""
    batch, head, token, _ = _strides(tensor)
    return Rows(tensor, head, (batch, token))


def image_rows(packed: Tensor, head_dim: int, parts: int) -> list[Rows]:
    """Each of ``parts`` consecutive slices of the channels of (B, img_h, img_w, parts * H * D). See `_strides`."""
    return [Rows(x, head_dim if x.shape[3] > head_dim else 0, x.stride()[:3]) for x in packed.chunk(parts, -1)]


def per_token(tensor: Tensor) -> Rows:
    """(B, H, tokens) or (B, H, img_h, img_w): one number for each token and head."""
    batch, head, *token = _strides(tensor)
    return Rows(tensor, head, (batch, *token))


def unit_last(tensor: Tensor) -> Tensor:
    """``tensor`` with a last stride of 1: itself, or a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()

"""Self-attention on the output of a joint projection, for kernels that have a loop of their own over the rows of heads:
how many programs there are, and what each is given."""

from typing import NamedTuple

import triton
from torch import Tensor

from ..machine.architecture import arch_of
from ..machine.blocks import Config
from .constants import Head, loop_of
from .heads import head_parts
from .problem import Problem, Rows, aligned, dense_rows


class Packed(NamedTuple):
    """Of qkv (B, N, 3, H, D)."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    scale: float

    @classmethod
    def of(cls, qkv: Tensor, scale: float) -> "Packed":
        batch, tokens, _, heads, head_dim = qkv.shape
        return cls(batch, heads, tokens, head_dim, scale)

    def programs(self, block: int) -> int:
        return triton.cdiv(self.tokens, block) * self.batch * self.heads

    def started(self, config: Config, operands: tuple[Rows, ...], others: tuple[Rows, ...]) -> tuple[dict, list]:
        """Constants of a kernel, and q, k, v and then the output and gradients, as it takes them."""
        align, out_align = aligned(*operands), aligned(*others)
        head = Head(self.head_dim, *head_parts(self.head_dim, arch_of(operands[0].tensor), True))
        of = Problem(self.batch, self.heads, self.heads, self.tokens, self.tokens, self.head_dim, self.scale)
        loop = loop_of(of, operands[0], config, (head, head), align, out_align)
        places = [*(rows.over(align) for rows in operands), *(rows.over(out_align) for rows in others)]
        return dict(LOOP=loop, num_warps=config.num_warps, num_stages=config.num_stages), places


def head_rows(x: Tensor) -> Rows:
    """(B, N, H, D)."""
    return dense_rows(x.transpose(1, 2))

"""CvT of transformers: attention whose queries, keys and values are convolved first."""

import torch
from torch import Tensor

from vitkern.interop.transformers_eager import Eager
from vitkern.nn.grid import as_image
from vitkern.ops.attention import attention


class CvtSelfAttention(Eager):
    """`transformers.models.cvt.modeling_cvt.CvtSelfAttention`."""

    def forward(self, hidden_state: Tensor, height: int, width: int) -> Tensor:
        if self.closed(hidden_state):
            return super().forward(hidden_state, height, width)
        first, tokens = hidden_state.tensor_split([1 if self.with_cls_token else 0], 1)
        image = as_image("CvtSelfAttention", tokens, (height, width))
        key = self._heads(self.convolution_projection_key(image), first, self.projection_key)
        query = self._heads(self.convolution_projection_query(image), first, self.projection_query)
        value = self._heads(self.convolution_projection_value(image), first, self.projection_value)
        return attention(query, key, value, scale=self.scale).transpose(1, 2).flatten(2)

    def _heads(self, tokens: Tensor, first: Tensor, linear: torch.nn.Module) -> Tensor:
        """(B, N, C), with the class token in front of it -> (B, H, N, D)."""
        return linear(torch.cat((first, tokens), 1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

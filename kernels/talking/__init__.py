"""Attention whose heads are mixed before and after the softmax: lanes of heads, and the kernels on them."""

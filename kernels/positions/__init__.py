"""Attention by position on a grid: a softmax along each axis, and what the product of the two mixes."""

"""Local attention without a kernel of its own: softmax, or SDPA, on groups of queries with copies of their keys."""

from collections.abc import Callable

import torch.nn.functional as F

from vitkern.lab.compiling.layer import Layer


def grouped(case: Layer) -> Callable:
    """The formula, step by step."""

    def run(**tensors):
        of = case.groups(**tensors)
        scale = of.q.shape[-1] ** -0.5 if case.scale is None else case.scale
        scores = of.q * scale @ of.k.transpose(-2, -1) + of.added()
        return of.image(scores.softmax(-1) @ of.v)

    return run


def grouped_fused(case: Layer) -> Callable:
    def run(**tensors):
        of = case.groups(**tensors)
        return of.image(F.scaled_dot_product_attention(of.q, of.k, of.v, attn_mask=of.added(), scale=case.scale))

    return run

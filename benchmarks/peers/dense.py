"""Attention, LayerNorm and MLP as models write them, each a function of the tensors of a case by name."""

import torch.nn.functional as F


def attention(q, k, v, bias=None, key_padding_mask=None):
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None, None, :], float("-inf"))
    return (scores if bias is None else scores + bias).softmax(-1) @ v


def attention_fused(q, k, v, bias=None, key_padding_mask=None):
    mask = bias if key_padding_mask is None else key_padding_mask[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _gates(query_gate, key_gate, strength):
    """(B, 1, K, M): 0 between open gates, -strength between closed ones."""
    return None if query_gate is None else (query_gate[:, None, :, None] * key_gate[:, None, None, :] - 1) * strength


def _rows(q, index):
    """The queries that attend."""
    if index is None:
        return q
    return q.gather(2, index[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))


def sampled(q, k, v, index=None, query_gate=None, key_gate=None, strength=1e8):
    scores = _rows(q, index) @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    gates = _gates(query_gate, key_gate, strength)
    return (scores if gates is None else scores + gates).softmax(-1) @ v


def sampled_fused(q, k, v, index=None, query_gate=None, key_gate=None, strength=1e8):
    mask = _gates(query_gate, key_gate, strength)
    return F.scaled_dot_product_attention(_rows(q, index), k, v, attn_mask=mask)


def layernorm(x, weight, bias, eps, residual=None):
    if residual is None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    total = x + residual
    return F.layer_norm(total, weight.shape, weight, bias, eps), total


def mlp(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, post_norm=False):
    y = x if post_norm else F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps)
    y = F.linear(F.gelu(F.linear(y, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
    return x + (F.layer_norm(y, norm_weight.shape, norm_weight, norm_bias, eps) if post_norm else y)

"""Layer-wise relevance of a ViT (Chefer et al., arXiv 2012.09838), through every layer, in plain PyTorch: it holds the
weights of every head."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitkern.dispatch import no_autocast, use_backend
from vitkern.explaining import lrp_rules as rules
from vitkern.explaining.capture import as_for_inference
from vitkern.explaining.logits import checked_target, logits_of
from vitkern.explaining.tokens import grid_of
from vitkern.explaining.vit import Block, Vit, vit_of


class Relevance(NamedTuple):
    """Of one logit of one image. Of each block: the ``weights`` of attention (1, H, N, N), their ``grads``, the
    relevance of the weights and of the values (1, H, N, D). ``embedded`` (1, N, C) is what the first block is given,
    ``tokens`` its relevance; ``start`` (N,): equal parts for the tokens that the logit is made of."""

    weights: list[Tensor]
    grads: list[Tensor]
    of_weights: list[Tensor]
    of_values: list[Tensor]
    embedded: Tensor
    tokens: Tensor
    start: Tensor


class _Ran(NamedTuple):
    """A block, and what its layers were given: ``x`` the block, ``normed`` qkv, ``mixed`` proj, ``between`` the second
    half, ``normed2`` fc1, ``hidden`` fc2; ``branch`` and ``branch2`` are what was added."""

    block: Block
    x: Tensor
    normed: Tensor
    qkv: tuple[Tensor, Tensor, Tensor]  # (1, H, N, D) each
    weights: Tensor
    mixed: Tensor
    branch: Tensor
    between: Tensor
    normed2: Tensor
    hidden: Tensor
    branch2: Tensor


def explained(model: nn.Module, image: Tensor, target: int | None) -> tuple[Tensor, Tensor, int]:
    """Of one image (1, 3, height, width): heat (grid_h, grid_w), logits (1, classes), target."""
    with no_autocast(image), torch.no_grad():
        found, logits, target = relevance(model, image, target)
        row = attribution(found)
        height, width = grid_of(model, image, row.shape[0])
        return row[row.shape[0] - height * width :].view(height, width).float(), logits, target


def attribution(found: Relevance, start_layer: int = 0) -> Tensor:
    """(N,): what the logit takes from each token, r <- r (I + E) through the layers, the last one first, E the mean
    over heads of max(0, gradients of the weights times their relevance) (section 3.3)."""
    row = found.start
    for grad, own in reversed(list(zip(found.grads, found.of_weights, strict=True))[start_layer:]):
        row = row + row @ (grad * own)[0].clamp(min=0).mean(0)
    return row


def relevance(model: nn.Module, image: Tensor, target: int | None) -> tuple[Relevance, Tensor, int]:
    """`Relevance`, logits (1, classes) and target of one image (1, 3, height, width).

    Raises:
        NotImplementedError: the model is not made of the blocks that the rules are for, or computes in half precision.
    """
    vit = vit_of(model)
    with as_for_inference(model), use_backend("torch"), torch.compiler.set_stance("force_eager"):
        tokens, given = _embedded(model, vit, image)
        if tokens.element_size() < 4:  # relevances cancel, and the comparison of logits below says nothing
            raise NotImplementedError(
                f'explain: method="lrp" is not defined in {tokens.dtype}: got a model that computes in it; expected '
                "float32 or float64. Explain model.float(), with such an image."
            )
        x, ran = tokens.clone().requires_grad_(), []
        for block in vit.blocks:
            x, kept = _forward(block, x)
            ran.append(kept)
        pooled = [_pooled(vit.norm(x), token, vit) for token, _ in vit.heads]
        logits = torch.stack([head(one) for one, (_, head) in zip(pooled, vit.heads, strict=True)]).mean(0)
        tolerance = 100 * torch.finfo(logits.dtype).eps ** 0.75  # 5e-4 in float32
        if (logits - given).abs().max() > tolerance * given.abs().max():
            raise NotImplementedError(
                f'explain: method="lrp" is not defined for this model: got a {type(model).__name__} that computes more '
                'than attention and an MLP in each block; expected a plain ViT. method="relevance" takes others.'
            )
        target = checked_target(target, logits)
        grads = torch.autograd.grad(logits[0, target], [kept.weights for kept in ran])
    with torch.no_grad():
        return _backward(vit, x.detach(), ran, list(grads), pooled, target), given.detach(), target


def _embedded(model: nn.Module, vit: Vit, image: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that the first block is given, and the logits of the model itself."""
    seen: list[Tensor] = []
    handle = vit.first.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    try:
        with torch.no_grad():
            given = logits_of(model(image))
    finally:
        handle.remove()
    return seen[0], given


def _forward(block: Block, x: Tensor) -> tuple[Tensor, _Ran]:
    normed = block.norm1(x)
    joint = torch.cat([linear(normed) for linear in block.qkv], -1)
    q, k, v = joint.unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = block.q_norm(q), block.k_norm(k)
    weights = (q @ k.mT * block.scale).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    branch = block.ls1(block.proj(mixed))
    between = x + branch
    normed2 = block.norm2(between)
    hidden = block.act(block.fc1(normed2))
    branch2 = block.ls2(block.fc2(hidden))
    return between + branch2, _Ran(
        block, x, normed, (q, k, v), weights, mixed, branch, between, normed2, hidden, branch2
    )


def _pooled(x: Tensor, token: int | None, vit: Vit) -> Tensor:
    """(1, C): what a head is given."""
    return vit.fc_norm(x[:, token] if token is not None else x[:, vit.prefix :].mean(1))


def _backward(
    vit: Vit, x: Tensor, ran: list[_Ran], grads: list[Tensor], pooled: list[Tensor], target: int
) -> Relevance:
    r, start = _of_heads(vit, x, pooled, target)
    of_weights: list[Tensor] = []
    of_values: list[Tensor] = []
    for kept in reversed(ran):
        block = kept.block
        r1, r2 = rules.added(kept.between, kept.branch2, r)
        r2 = rules.linear(kept.normed2, block.fc1.weight, rules.linear(kept.hidden, block.fc2.weight, r2))
        r = rules.copied(kept.between, r1, r2)
        r1, r2 = rules.added(kept.x, kept.branch, r)
        r2, own, values = _of_attention(kept, r2)
        of_weights.insert(0, own)
        of_values.insert(0, values)
        r = rules.copied(kept.x, r1, r2)
    return Relevance([kept.weights.detach() for kept in ran], grads, of_weights, of_values, ran[0].x.detach(), r, start)


def _of_heads(vit: Vit, x: Tensor, pooled: list[Tensor], target: int) -> tuple[Tensor, Tensor]:
    """Relevance (1, N, C) of the last block's output, and `Relevance.start`."""
    heads = [head for _, head in vit.heads]
    r = [x.new_zeros(1, head.out_features).index_fill(1, torch.tensor(target, device=x.device), 1.0) for head in heads]
    if len(heads) == 2:  # their mean is a sum
        ones = [head(one)[:, target] for head, one in zip(heads, pooled, strict=True)]
        r = [full * own for full, own in zip(r, rules.added(ones[0], ones[1], ones[0].new_ones(1)), strict=True)]
    normed, total, start = vit.norm(x), torch.zeros_like(x), x.new_zeros(x.shape[1])
    for (token, head), one, own in zip(vit.heads, pooled, r, strict=True):
        back = rules.linear(one, head.weight, own)  # (1, C)
        rows = slice(vit.prefix, None) if token is None else slice(token, token + 1)
        (part,) = rules.proportional(lambda t: t.mean(1), (normed[:, rows],), back)
        total[:, rows] += part
        start[rows] += 1.0
    return total, start / start.sum()


def _of_attention(kept: _Ran, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Relevance of the input of qkv, of the weights and of the values."""
    block, (q, k, v) = kept.block, kept.qkv
    r = rules.linear(kept.mixed, block.proj.weight, r)
    r = r.unflatten(-1, (block.heads, -1)).transpose(1, 2)  # (1, H, N, D)
    own, values = (one / 2 for one in rules.proportional(torch.matmul, (kept.weights, v), r))
    queries, keys = (one / 2 for one in rules.proportional(lambda q, k: q @ k.mT, (q, k), own))
    joint = torch.stack([queries, keys, values], 2).permute(0, 3, 2, 1, 4).flatten(2)  # (1, N, 3 C)
    weight = torch.cat([linear.weight for linear in block.qkv])
    return rules.linear(kept.normed, weight, joint), own, values

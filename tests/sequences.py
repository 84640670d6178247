"""What tests of sequence models share: random weights that hide nothing, gradients under another library's names."""

import re

import torch

from vitkern.models.sequence import keys


def randomise(model, seed=0):
    """Norms of one and biases of zero would hide bugs: nothing keeps its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.dim() > 1:
                p.copy_(noise / p.shape[-1] ** 0.5)
            else:
                p.copy_(0.3 * noise + float("norm" in name.lower() or "ln_" in name) * name.endswith("weight"))
    return model


def assert_gradients_agree(table, ours, theirs, rtol=1e-5):
    """Every parameter of ``theirs`` got the gradient that ours got, and some of it is not 0."""
    found = keys.revert(table, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    peers = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad and p.grad is not None}
    assert peers.keys() == found.keys()
    for name, peer in peers.items():
        # What is added to all keys alike changes no weight: the gradient of their bias is 0, and rounding.
        like = peers[re.sub(r"key|k_proj", lambda m: m[0].replace("key", "query").replace("k_", "q_"), name)]
        largest = like.abs().max().item()
        assert largest > 0, f"no signal in {name}"
        torch.testing.assert_close(
            found[name], peer, rtol=rtol, atol=rtol * largest, msg=lambda m, name=name: f"{name}: {m}"
        )

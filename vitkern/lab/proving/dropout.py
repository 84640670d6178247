"""The check of attention's dropout, which has no formula to compare with until its random mask is known."""

import torch

P, TOKENS, DIM = 0.3, 40, 64


def check_dropout(device: torch.device) -> list[str]:
    """Problems found: none if attention's dropout is reproducible, rightly scaled, and the same in the backward pass.

    With one-hot values the output *is* the dropped probability matrix; its zeros are the mask. By that, another call
    with the same seed is then computed in float64.
    """
    from vitkern.ops.attention import attention

    def seeded(seed, *tensors):
        torch.manual_seed(seed)
        return attention(*tensors, dropout_p=P)

    generator = torch.Generator().manual_seed(1)
    q, k, v, grad = (torch.randn(2, 2, TOKENS, DIM, generator=generator).to(device).requires_grad_() for _ in range(4))
    one_hot = torch.eye(TOKENS, DIM, device=device).expand(2, 2, TOKENS, DIM)
    dropped = seeded(0, q, k, one_hot).detach()[..., :TOKENS]
    problems = []
    if not torch.equal(dropped, seeded(0, q, k, one_hot).detach()[..., :TOKENS]):
        problems.append("attention: dropout differs between two calls with one seed")
    if torch.equal(dropped, seeded(1, q, k, one_hot).detach()[..., :TOKENS]):
        problems.append("attention: dropout is the same with two seeds")
    kept = dropped != 0
    if abs(kept.double().mean().item() - (1 - P)) > 0.05:
        problems.append(f"attention: dropout with p={P} keeps {kept.double().mean().item():.3f} of the probabilities")
    results = []
    for wide in (False, True):
        inputs = [t.detach().to(torch.float64 if wide else t.dtype).requires_grad_() for t in (q, k, v)]
        if wide:
            probabilities = (inputs[0] @ inputs[1].transpose(-1, -2) * DIM**-0.5).softmax(-1) * kept / (1 - P)
            out = probabilities @ inputs[2]
        else:
            out = seeded(0, *inputs)
        results.append((out, *torch.autograd.grad(out, inputs, grad.detach().to(out.dtype))))
    for name, actual, reference in zip(("out", "dq", "dk", "dv"), *results, strict=True):
        error = (actual.double() - reference).abs().max().item()
        if not error <= 1e-5 * (1 + reference.abs().max().item()):
            problems.append(f"attention: dropout: {name} is {error:.1e} off the same mask in float64")
    return problems

"""Your own attention layer beside vitkern's: the same numbers, then times in turn in one run.

python examples/benchmark_attention.py [--tiny]
"""

import argparse
import statistics

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.benchmark import Timer

import vitkern


def yours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Put your layer here. q, k, v: (B, H, N, D). bias: (H, N, N), learnable."""
    return scaled_dot_product_attention(q, k, v, attn_mask=bias)


def ours(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return vitkern.attention(q, k, v, bias=bias)


def step(function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = function(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()

    batch, heads, tokens, dim = (1, 2, 17, 8) if arguments.tiny else (8, 6, 197, 64)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    shapes = [(batch, heads, tokens, dim)] * 3 + [(heads, tokens, tokens)]
    inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    grad = torch.randn_like(inputs[0])

    exact = step(yours, [t.detach().double().requires_grad_() for t in inputs], grad.double())
    for name, function in (("yours", yours), ("vitkern", ours)):
        found = step(function, inputs, grad)
        errors = [((a - e).abs().max() / e.abs().max()).item() for a, e in zip(found, exact, strict=True)]
        labelled = zip(("out", "dq", "dk", "dv", "dbias"), errors, strict=True)
        print(f"{name}, from float64: " + ", ".join(f"{what} {error:.1e}" for what, error in labelled))

    timers = {
        name: Timer("step(f, inputs, grad)", globals=dict(step=step, f=f, inputs=inputs, grad=grad))
        for name, f in (("yours", yours), ("vitkern", ours))
    }
    times = {name: [] for name in timers}
    for _ in range(3 if arguments.tiny else 15):  # in turn, so that both meet the same machine
        for name, timer in timers.items():
            times[name].append(timer.timeit(3).mean)
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds) * 1e3:.2f} ms forward and backward on {device}")


if __name__ == "__main__":
    main()

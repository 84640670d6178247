"""What PyTorch may do with an operator, as checks that run on whichever path the process takes: kernels in Triton's
interpreter, or PyTorch."""

import io
import warnings

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitkern.lab.proving.integration import LENGTH, Module
from vitkern.lab.specimens import merged

LENGTHS = LENGTH, 6
CASES = merged("integration")  # registered operator -> `Integration`
WITHOUT_OPERATOR = {  # modules of vitkern.nn that no specimen is about
    "DropPath": Module((4, 5, 32), dict(drop_prob=0.3)),
    "LayerScale": Module((2, 5, 32), dict(dim=32, init_values=0.1)),
    "PatchEmbed": Module((2, 3, 16, 16), dict(img_size=16, patch_size=4, in_chans=3, embed_dim=32, norm_eps=1e-6)),
    "PatchMerging": Module((2, 5, 6, 32), dict(dim=32)),
}
MODULES = WITHOUT_OPERATOR | merged("modules")  # public name in vitkern.nn -> `Module`


def tuple_of(out):
    return out if isinstance(out, tuple) else (out,)


def weights_of(output):
    return torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)


def gradients(function, tensors):
    """Outputs, then the gradient of each tensor that wants one."""
    outputs = tuple_of(function(*tensors))
    wanting = [t for t in tensors if t.requires_grad]
    weights = [weights_of(o) for o in outputs]
    return [o.detach() for o in outputs] + list(torch.autograd.grad(outputs, wanting, weights))


def agree(actual, expected, rtol=1e-4, atol=1e-4):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol * max(1.0, other.abs().max().item()))


def same_kind(one, other):
    """Dtype, shape and strides; those of a dimension of 1 say nothing."""
    strides = [[s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1] for t in (one, other)]
    assert (one.dtype, one.shape, strides[0]) == (other.dtype, other.shape, strides[1])


def compiles_whole_with_changing_lengths(case):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.function, fullgraph=True, dynamic=True, backend=counter)
    first = None
    for n in LENGTHS:
        tensors = case.tensors(n)
        agree(gradients(compiled, tensors), gradients(case.function, tensors))
        first = counter.frame_count if n == LENGTHS[0] else first
    assert counter.frame_count == first, f"compiled again for one of the lengths {LENGTHS}"


def exports(case):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return case.function(*tensors)

    tensors = tuple(case.tensors())
    program = torch.export.export(Module(), tensors)
    agree(gradients(program.module(), tensors), gradients(case.function, tensors))


def traces_for_other_batches(case):
    """torch.jit.trace, saved and loaded: the graph holds for twice as many samples, and gradients go through it."""
    tensors = case.tensors()
    longer = [torch.cat([t, -t.detach()]) if i in case.batched else t for i, t in enumerate(tensors)]
    expected = [(inputs, tuple_of(case.function(*inputs))) for inputs in (tensors, longer)]
    for grad in (False, True):
        with torch.set_grad_enabled(grad), warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # sizes are looked at, and that is no secret
            traced = torch.jit.trace(case.function, tuple(tensors), check_trace=False)
            stored = io.BytesIO()
            torch.jit.save(traced, stored)
            stored.seek(0)
            loaded = torch.jit.load(stored)
            for inputs, outputs in expected:
                agree(tuple_of(loaded(*inputs)), outputs)
    agree(gradients(loaded, longer), gradients(case.function, longer))


def follows_autocast(case):
    """The autocast dtype for the products, float32 for what they are added to, gradients in the leaves' dtype."""
    tensors = case.tensors()
    expected = gradients(case.function, tensors)
    for dtype in (torch.bfloat16, torch.float16):

        def function(*inner, dtype=dtype):
            with torch.autocast("cpu", dtype):
                return case.function(*inner)

        actual = gradients(function, tensors)
        kinds = [o.dtype for o in actual[: len(case.under_autocast)]]
        assert kinds == [kept or dtype for kept in case.under_autocast]
        for i, kept in enumerate(case.under_autocast):
            if i and kept:  # a sum, beside what the products give, is none of them
                torch.testing.assert_close(actual[i], expected[i])
        assert all(g.dtype == torch.float32 for g in actual[len(kinds) :])
        assert not torch.equal(actual[0].float(), expected[0]), "autocast changed nothing"
        agree([t.float() for t in actual], expected, rtol=0.05, atol=0.05)


def maps_over_a_batch(case):
    """torch.vmap of the function, over one more dimension of each tensor that has a batch."""
    single = case.tensors()
    many = [
        torch.stack([t.detach() * f for f in (1.0, 0.5, -1.0)]) if i in case.batched else t.detach()
        for i, t in enumerate(single)
    ]
    dims = tuple(0 if i in case.batched else None for i in range(len(single)))
    mapped = tuple_of(torch.vmap(case.function, in_dims=dims)(*many))
    for i in range(3):
        one = tuple_of(case.function(*(t[i] if d == 0 else t for t, d in zip(many, dims, strict=True))))
        agree([t[i] for t in mapped], one)


def transforms_to_gradients(case):
    """torch.func.grad and per-sample gradients, which are vmap of grad."""
    tensors = [t.detach() for t in case.tensors()]

    def loss(*inner):
        return sum(o.square().sum() for o in tuple_of(case.function(*inner)))

    every = tuple(range(len(tensors)))
    actual = torch.func.grad(loss, argnums=every)(*tensors)
    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    agree(actual, expected)


def knows_shapes_without_data(case):
    """Fake and meta tensors: what would come out, without computing it."""
    tensors = [t.detach() for t in case.tensors()]
    real = tuple_of(case.function(*tensors))
    with FakeTensorMode() as mode:
        fake = tuple_of(case.function(*(mode.from_tensor(t) for t in tensors)))
    meta = tuple_of(case.function(*(t.to("meta") for t in tensors)))
    for found in (fake, meta):
        for one, other in zip(found, real, strict=True):
            same_kind(one, other)
    assert all(t.is_meta for t in meta)


def runs_without_gradients(case):
    tensors = case.tensors()
    expected = [o.detach() for o in tuple_of(case.function(*tensors))]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            results = tuple_of(case.function(*tensors))
            agree(results, expected)
        assert not any(o.requires_grad for o in results)
        assert all(o.is_inference() == (mode is torch.inference_mode) for o in results)
    with torch.inference_mode():
        inside = [t.detach().clone() for t in tensors]
        agree(tuple_of(case.function(*inside)), expected)


def checkpoints(case):
    tensors = case.tensors()
    expected = gradients(case.function, tensors)
    for reentrant in (False, True):
        again = [t.detach().clone().requires_grad_() for t in tensors]
        outputs = tuple_of(checkpoint(case.function, *again, use_reentrant=reentrant))
        weights = [weights_of(o) for o in outputs]
        torch.autograd.backward(outputs, weights)
        agree([o.detach() for o in outputs] + [t.grad for t in again], expected)


def permuted(tensor):
    """The same values, dense, with the last two dimensions swapped in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2) if tensor.dim() > 1 else tensor


def expanded(tensor):
    """The first entry of the first dimension for all, with a stride of 0."""
    return tensor[:1].expand_as(tensor)


def sliced(tensor):
    """Every second element of twice as many."""
    return torch.stack([tensor, torch.full_like(tensor, float("nan"))], -1)[..., 0]


LAYOUTS = permuted, expanded, sliced


def takes_any_layout(case):
    """Values and gradients of non-contiguous operands, and of a non-contiguous gradient of the result."""
    for layout in LAYOUTS:
        inner = [layout(t.detach()) for t in case.tensors()]
        strided = [t.detach().requires_grad_() for t in inner]
        plain = [t.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for t in inner]
        assert any(not t.is_contiguous() for t in strided)
        outputs = tuple_of(case.function(*plain))
        weights = [weights_of(o) for o in outputs]
        expected = torch.autograd.grad(outputs, plain, weights, retain_graph=True)
        agree(gradients(case.function, strided), [*(o.detach() for o in outputs), *expected])
        agree(torch.autograd.grad(outputs, plain, [permuted(w) for w in weights]), expected)


def counts_flops(case):
    """Matrix products only, as PyTorch counts its own: those of the formula, whatever path runs."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.function(*case.tensors())
    assert counter.get_total_flops() == case.products


TRANSFORMS = maps_over_a_batch, transforms_to_gradients
CHECKS = (
    compiles_whole_with_changing_lengths,
    exports,
    traces_for_other_batches,
    follows_autocast,
    maps_over_a_batch,
    transforms_to_gradients,
    knows_shapes_without_data,
    runs_without_gradients,
    checkpoints,
    takes_any_layout,
    counts_flops,
)

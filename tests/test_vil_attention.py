"""ViL's attention: against the results of its authors' code, against the definition token by token, by properties."""

import copy
import pickle

import pytest
import stored
import torch
from torch import nn

from vitkern.nn.vil_attention import AROUND, ViLAttention
from vitkern.nn.vil_dense_attention import ViLDenseAttention

MODES = {1: "exact", 0: "zero", -1: "cyclic"}
NEIGHBORS = {0: "all", 1: "one", -1: "none"}


def randomised(module):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module.double()


@stored.each("vil_attn_*")
def test_against_the_authors_code(path):
    config, tensors = stored.read(path)
    module = ViLAttention(
        config["dim"], config["num_heads"], config["w"], num_global=config["nglo"], mode=MODES[config["exact"]],
        neighbors=NEIGHBORS[config["mode"]], share_weights=config["sharew"], only_global=config["only_glo"],
        rel_pos=config["rpe"],
    )  # fmt: skip
    if "forced_neighbour" in config:
        module.draw_neighbor = lambda: AROUND[config["forced_neighbour"] - 1]
    stored.assert_stored(module, tensors, lambda x: module(x, (config["nx"], config["ny"])))


@stored.each("vil_fullattn_*")
def test_dense_against_the_authors_code(path):
    config, tensors = stored.read(path)
    size = config["wx"], config["wy"]
    module = ViLDenseAttention(
        config["dim"], config["num_heads"], size, num_global=config["nglo"], rel_pos=config["rpe"]
    )
    stored.assert_stored(module, tensors)


def keys_of(module, size, y, x, neighbor):
    """(flat key or None for a zero one, dy, dx of the query from it) of all local keys of a query."""
    (height, width), w = size, module.window
    if module.mode == "exact":
        for ky in range(max(0, y - w), min(height, y + w + 1)):
            for kx in range(max(0, x - w), min(width, x + w + 1)):
                yield ky * width + kx, y - ky, x - kx
        return
    rows, cols = -(-height // w), -(-width // w)
    chunks = [(0, 0)] + {"all": list(AROUND), "none": [], "one": list(AROUND)}[module.neighbors]
    for chunk in chunks if neighbor is None else [(0, 0), neighbor]:
        row, col = y // w + chunk[0], x // w + chunk[1]
        inside = 0 <= row < rows, 0 <= col < cols
        if module.mode == "zero" and not all(inside):
            continue
        for i in range(w):
            for j in range(w):
                dy, dx = y - (row * w + i), x - (col * w + j)
                ky, kx = row % rows * w + i, col % cols * w + j
                if (inside[0] and ky >= height) or (inside[1] and kx >= width):
                    continue
                yield (None if ky >= height or kx >= width else ky * width + kx), dy, dx


def definition(module, x, size, neighbor=None):
    """Section 3.2 of arXiv 2103.15358, one query after another."""
    heads, tokens, scale, w = module.num_heads, module.num_global, module.scale, module.window
    q, kv = module.query(x), module.kv(x)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, -1)))  # (B, H, N, D)
    rows = []
    for place in range(size[0] * size[1]):
        local = list(keys_of(module, size, place // size[1], place % size[1], neighbor))
        where = [*range(tokens), *(-1 if key is None else tokens + key for key, _, _ in local)]
        exists = torch.tensor([n >= 0 for n in where]).view(-1, 1)
        keys, values = (torch.where(exists, t[:, :, where], 0.0) for t in (k, v))
        scores = torch.einsum("bhd,bhkd->bhk", q[:, :, tokens + place], keys) * scale
        if module.rel_pos:
            offsets = [(dy + 2 * w - 1) * (4 * w - 1) + dx + 2 * w - 1 for _, dy, dx in local]
            bias = module.local_relative_position_bias_table[offsets].t()
            if tokens:
                bias = torch.cat([module.g2l_relative_position_bias[1], bias], 1)
            scores = scores + bias
        rows.append(torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), values).flatten(1))
    out = module.proj(torch.stack(rows, 1))
    if not tokens:
        return out
    q, kv = module.query_global(x[:, :tokens]), module.kv_global(x)
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, *kv.chunk(2, -1)))
    scores = q @ k.mT * scale
    if module.rel_pos:
        to_local = module.g2l_relative_position_bias[0][:, :, None].expand(-1, -1, size[0] * size[1])
        scores = scores + torch.cat([module.g2g_relative_position_bias, to_local], -1)
    first = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return torch.cat([module.proj_global(first), out], 1)


CASES = {
    "exact, rectangular": ((3, 7), dict(window=2, mode="exact", num_global=2)),
    "exact, wider than the image": ((2, 3), dict(window=4, mode="exact", share_weights=False)),
    "zero, no global tokens": ((5, 4), dict(window=2, num_global=0)),
    "zero, filled up": ((5, 7), dict(window=3, num_global=3, rel_pos=False)),
    "zero, no bias of the projections": ((4, 4), dict(window=2, qkv_bias=False, qk_scale=0.9)),
    "zero, own chunk": ((4, 5), dict(window=2, neighbors="none")),
    "cyclic": ((6, 4), dict(window=2, mode="cyclic", share_weights=False)),
    "cyclic, filled up": ((5, 7), dict(window=2, mode="cyclic")),
    "cyclic, filled up along one axis, no table": ((4, 5), dict(window=2, mode="cyclic", rel_pos=False)),
    "cyclic, less than a chunk": ((2, 1), dict(window=3, mode="cyclic")),
    "cyclic, own chunk": ((3, 5), dict(window=2, mode="cyclic", neighbors="none")),
    "chunks of a token": ((3, 3), dict(window=1, mode="cyclic")),
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition_with_every_gradient(name):
    size, options = CASES[name]
    module = randomised(ViLAttention(12, 3, **options))
    x = torch.randn(2, module.num_global + size[0] * size[1], 12, dtype=torch.double, requires_grad=True)
    results = []
    for out in (definition(module, x, size), module(x, size)):
        results.append((out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])))
    for ideal, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, ideal, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode, size", [("zero", (5, 4)), ("cyclic", (4, 6)), ("cyclic", (5, 5))])
def test_one_random_neighbour(mode, size):
    module = randomised(ViLAttention(8, 2, 2, mode=mode, neighbors="one"))
    x = torch.randn(1, 1 + size[0] * size[1], 8, dtype=torch.double)
    torch.testing.assert_close(module.eval()(x, size), definition(module, x, size))
    module.train()
    for neighbor in AROUND:
        module.draw_neighbor = lambda neighbor=neighbor: neighbor
        torch.testing.assert_close(module(x, size), definition(module, x, size, neighbor))


def test_the_neighbour_is_drawn_from_torchs_generator():
    module = ViLAttention(8, 2, 2, neighbors="one")
    torch.manual_seed(0)
    drawn = [module.draw_neighbor() for _ in range(200)]
    assert set(drawn) == set(AROUND)
    torch.manual_seed(0)
    assert drawn == [module.draw_neighbor() for _ in range(200)]
    assert module.eval().draw_neighbor() is None
    assert ViLAttention(8, 2, 2).draw_neighbor() is None


def test_a_chunk_as_large_as_the_image_is_dense_attention():
    size = 3, 4
    chunked = randomised(ViLAttention(8, 2, 4, num_global=2))
    dense = ViLDenseAttention(8, 2, size, num_global=2).double()
    weights = chunked.state_dict()
    table = weights["local_relative_position_bias_table"].view(15, 15, 2)[5:10, 4:11].flatten(0, 1)
    dense.load_state_dict({
        "qkv.weight": torch.cat([weights["query.weight"], weights["kv.weight"]]),
        "qkv.bias": torch.cat([weights["query.bias"], weights["kv.bias"]]),
        "local_relative_position_bias_table": table,
        **{name: t for name, t in weights.items() if name.startswith(("g2", "proj.")) and "global" not in name},
    })  # fmt: skip
    x = torch.randn(2, 14, 8, dtype=torch.double)
    torch.testing.assert_close(chunked(x, size), dense(x))


def test_without_biases_dense_attention_takes_any_size():
    module = randomised(ViLDenseAttention(8, 2, (3, 4), rel_pos=False))
    assert module(torch.randn(2, 31, 8, dtype=torch.double), (5, 6)).shape == (2, 31, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["exact", "zero", "cyclic"])
def test_half_precision(mode, dtype):
    module, size = randomised(ViLAttention(16, 2, 3, mode=mode)).to(dtype), (7, 8)
    x = torch.randn(2, 57, 16).to(dtype)
    out, exact = module(x, size), copy.deepcopy(module).double()(x.double(), size)
    assert out.dtype == dtype
    limit = 8 * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=limit)


def test_autocast():
    module, size = randomised(ViLAttention(16, 2, 3)).float(), (5, 5)
    x = torch.randn(2, 26, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, size)
    exact = module(x, size)
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.05 * exact.abs().max().item())


def test_views_copies_and_hooks():
    module, size = randomised(ViLAttention(8, 2, 2, share_weights=False)), (4, 6)
    wide = torch.randn(2, 25, 20, dtype=torch.double)
    expected = module(wide[..., 5:13].contiguous(), size)
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        stored = {**module.state_dict(), "relative_position_index": torch.zeros(4, 36, dtype=torch.long)}
        other.load_state_dict(stored, strict=True)
        torch.testing.assert_close(other(wide[..., 5:13], size), expected)
    seen = []
    module.kv.register_forward_hook(lambda *call: seen.append(call[-1].shape))
    torch.testing.assert_close(module(wide[..., 5:13], size), expected)
    assert seen == [(2, 25, 16)]
    assert module(wide[:0, ..., 5:13], size).shape == (0, 25, 8)


def test_an_adapted_projection_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    module, size = randomised(ViLAttention(8, 2, 2)), (3, 3)
    x = torch.randn(1, 10, 8, dtype=torch.double)
    expected = module(x, size)
    wrapped = Doubled(8, 8).double()
    wrapped.load_state_dict({name: value / 2 for name, value in module.query.state_dict().items()})
    module.query = module.query_global = wrapped
    torch.testing.assert_close(module(x, size), expected)


BAD = {
    "heads": (dict(num_heads=3), "channels do not split into heads: got dim=8, num_heads=3"),
    "window": (dict(window=0), "a chunk has no tokens"),
    "mode": (dict(mode="round"), "unknown pattern: got mode='round'"),
    "neighbours": (dict(neighbors="some"), "unknown pattern.*neighbors='some'"),
    "exact neighbours": (dict(mode="exact", neighbors="one"), "the exact window is no set of chunks"),
    "nothing": (dict(num_global=0, only_global=True), "nothing to attend to"),
    "negative": (dict(num_global=-1), "no number of tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=f"ViLAttention: {message}"):
        ViLAttention(**dict(dim=8, num_heads=2, window=2) | changes)


@pytest.mark.parametrize("module", [ViLAttention(8, 2, 2), ViLDenseAttention(8, 2, (3, 4))], ids=["chunks", "dense"])
def test_another_number_of_tokens(module):
    message = r"tokens do not fit the image: got x \(1, 12, 8\), size \(3, 4\).*Put the global tokens first"
    with pytest.raises(ValueError, match=message):
        module(torch.zeros(1, 12, 8), (3, 4))


@pytest.mark.parametrize("part", ["query", "kv"])
def test_a_bias_of_one_projection_alone_counts(part):
    module, x = randomised(ViLAttention(16, 2, 4, qkv_bias=False)), torch.randn(2, 1 + 8 * 8, 16, dtype=torch.float64)
    projection = getattr(module, part)
    projection.bias = nn.Parameter(torch.randn(projection.out_features, dtype=torch.float64))
    called = copy.deepcopy(module)
    called.query.register_forward_hook(lambda *call: None)  # then no weight is read
    torch.testing.assert_close(module(x, (8, 8)), called(x, (8, 8)))

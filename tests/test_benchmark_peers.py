"""The benchmarks' peers compute what the operators compute: a faster peer of something else would prove nothing."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from benchmarks import measure, peers, timers
from benchmarks.cases import CASES, KINDS
from benchmarks.peers import flex, installed
from benchmarks.rows import OURS
from benchmarks.runs import results_of, tensors_of

CPU = torch.device("cpu")


def layer(op, *sizes, **options):
    """One of no model."""
    return KINDS[op]("", *sizes, **options)


SMALL = (
    layer("attention", 2, 20, 16),
    layer("attention", 2, 20, 16, bias=True),
    layer("attention", 2, 30, 16, masked=True),
    layer("attention", 2, 20, 16, keys=7),
    layer("window_attention", 14, 32, 2, 7),
    layer("window_attention", 14, 32, 2, 7, 3),
    layer("window_attention", 10, 32, 2, 7),
    layer("window_attention", 16, 32, 2, 8, 4, cosine=True),
    layer("window_attention", 14, 32, 2, 7, table=False),
    layer("window_attention", 14, 32, 2, 7, 3, table=False),
    layer("neighborhood_attention", 9, 32, 2, 3),
    layer("neighborhood_attention", 14, 32, 2, 3, 4),
    layer("halo_attention", 8, 32, 2, block=4, halo=1),
    layer("halo_attention", 8, 32, 2, block=4, halo=4),
    layer("standalone_attention", 6, 32, 2, kernel=3),
    layer("decomposed_attention", 10, 32, 2, 4),
    layer("decomposed_attention", 6, 32, 2),
    layer("local_attention", 12, 32, 2, 4),
    layer("vil_attention", 9, 32, 2, 3, 2),
    layer("sparse_attention", 2, 20, 16),
    layer("sparse_attention", 2, 20, 16, 5),
    layer("layernorm", 5, 64),
    layer("layernorm", 5, 64, residual=True),
    layer("layernorm_mlp", 5, 32),
    layer("layernorm_mlp", 5, 32, post_norm=True),
)
FLEX = [case for case in SMALL if case.op not in ("sparse_attention", "layernorm", "layernorm_mlp")]


def ids(case):
    return f"{case.op}:{case}"


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    monkeypatch.setattr(timers, "samples_in_turn", lambda runs, device, quick: {name: [1.0, 1.0] for name in runs})
    monkeypatch.setattr(measure, "peak_memory", lambda run, device: None)
    monkeypatch.setattr(measure, "PEER_TOLERANCE", 1e-4)


@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_peers_compute_the_same(case):
    found = measure.measure(case, torch.float32, CPU, batch=2, modes=("forward", "training"), compiled=False)
    assert [row.note for row in found if row.contender in (OURS, peers.EAGER)] == [""] * 4
    assert not any(row.is_wrong for row in found), [row.note for row in found]
    fused = {row.contender for row in found if row.counts} - {OURS, peers.EAGER}
    has_fused = case.op not in ("layernorm", "layernorm_mlp") and not getattr(case, "cosine", False)
    assert ("SDPA math" in fused) == has_fused


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", FLEX, ids=ids)
def test_flex_attention_computes_the_same(case, monkeypatch):
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    problem = case.problem(2)
    tensors = {name: tensor.detach() for name, tensor in tensors_of(problem, torch.float32, CPU).items()}
    with torch.no_grad():
        expected = problem.run(**tensors, **problem.options)
        actual = flex.peers_of(case, problem.options, CPU)["FlexAttention"](**tensors)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_flex_attention_is_a_peer_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(flex, "peers_of", lambda case, options, device: {"FlexAttention": None})
    names = set(peers.peers_of(SMALL[0], {}, torch.device("cuda"), compiled=True))
    assert names == {"eager", *peers.BACKENDS, "torch.compile", "FlexAttention"}
    assert set(peers.peers_of(SMALL[0], {}, torch.device("cuda"), compiled=False)) == {"eager", *peers.BACKENDS}
    assert set(peers.peers_of(SMALL[0], {}, CPU, compiled=True)) == {"eager", *peers.BACKENDS, "torch.compile"}


def test_cudnn_is_marked_where_its_backward_is_known_to_be_wrong():
    masked = next(case for case in CASES if case.op == "attention" and case.masked)
    assert masked.tokens % 128 == 64
    for mode in ("backward", "training"):
        assert "pytorch issue 196678" in peers.known_fault("SDPA cuDNN", masked, mode)
    assert not peers.known_fault("SDPA cuDNN", masked, "forward")
    assert not peers.known_fault("SDPA flash", masked, "backward")
    assert not peers.known_fault("SDPA cuDNN", layer("attention", 2, 576, 64), "backward")
    assert not peers.known_fault("SDPA cuDNN", layer("attention", 2, 577, 64, bias=True), "backward")
    assert peers.known_fault("SDPA cuDNN", layer("attention", 2, 10, 64, keys=192, bias=True), "backward")
    assert peers.known_fault("SDPA cuDNN", layer("window_attention", 16, 32, 2, 8), "backward")
    assert peers.known_fault("SDPA cuDNN", layer("neighborhood_attention", 56, 64, 2, 7), "backward")


def test_a_known_fault_is_marked_although_the_result_agrees(monkeypatch):
    monkeypatch.setattr(peers, "known_fault", lambda name, case, mode: "known: it is wrong" * (name == "SDPA math"))
    found = measure.measure(SMALL[0], torch.float32, CPU, batch=2, compiled=False)
    marked = [row for row in found if row.is_wrong]
    assert [row.contender for row in marked] == ["SDPA math"]
    assert marked[0].seconds == 1.0 and marked[0].note == "WRONG: known: it is wrong" and not marked[0].counts


@pytest.fixture
def other_packages(monkeypatch):
    """Stand-ins with the layouts of the other packages: (B, N, H, D), and (B, img_h, img_w, H, D)."""

    def by_rows(q, k, v, attn_bias=None):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias).transpose(1, 2)

    def na2d(q, k, v, kernel_size, dilation):
        from vitkern.reference.neighborhood_attention import neighborhood_attention

        qkv = torch.stack((q, k, v), 3).flatten(3)
        out = neighborhood_attention(qkv, num_heads=q.shape[3], kernel=kernel_size, dilation=dilation)
        return out.unflatten(-1, (q.shape[3], -1))

    class LigerLayerNormFunction:
        @staticmethod
        def apply(x, weight, bias, eps):
            return F.layer_norm(x, weight.shape, weight, bias, eps)

    contents = {
        "flash_attn": dict(flash_attn_func=by_rows),
        "xformers": {},
        "xformers.ops": dict(memory_efficient_attention=by_rows),
        "natten": dict(na2d=na2d),
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.layer_norm": dict(LigerLayerNormFunction=LigerLayerNormFunction),
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(installed, "is_installed", lambda name: True)


@pytest.mark.parametrize(
    "case, names",
    (
        (SMALL[0], {"flash-attn", "xFormers"}),
        (SMALL[1], {"xFormers"}),
        (SMALL[2], set()),
        (layer("layernorm", 5, 64), {"Liger"}),
        (layer("layernorm", 5, 64, residual=True), set()),
        (layer("layernorm_mlp", 5, 32), set()),
    ),
    ids=str,
)
def test_installed_packages_are_peers(case, names, other_packages):
    problem = case.problem(2)
    tensors = tensors_of(problem, torch.float32, CPU)
    found = installed.peers_of(case, problem.options)
    assert set(found) == names
    expected = problem.run(**tensors, **problem.options)
    for peer in found.values():
        torch.testing.assert_close(peer(**tensors), expected, rtol=1e-4, atol=1e-4)


def test_natten_is_marked_because_it_has_no_table(other_packages):
    case = layer("neighborhood_attention", 9, 32, 2, 3)
    found = {row.contender: row for row in measure.measure(case, torch.float32, CPU, batch=2, compiled=False)}
    assert found["NATTEN"].is_wrong
    problem = case.problem(2)
    tensors = tensors_of(problem, torch.float32, CPU)
    peer = installed.peers_of(case, problem.options)["NATTEN"]
    expected = problem.run(tensors["qkv"], **problem.options)
    torch.testing.assert_close(peer(**tensors), expected, rtol=1e-4, atol=1e-4)
    assert len(results_of(lambda: peer(**tensors), list(tensors.values()), "training")) == 3


def test_what_is_not_installed_is_no_peer():
    names = set(installed.PACKAGES)
    for case in SMALL:
        assert set(installed.peers_of(case, case.problem(1).options)) <= {n for n in names if installed.is_installed(n)}

"""`accelerate(model, cuda_graph=True)` without a GPU: what is captured, replayed, dropped, and left to run plain. A
graph is stood in for by what PyTorch's tracer records of a call, and replayed from the same memory."""

import copy
import inspect
import io
import math
import pickle
import warnings
from contextlib import contextmanager

import pytest
import torch
from threads import run_threads
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import vitkern
from vitkern.interop import graphed
from vitkern.interop.graphs import LIMIT, Graphs, GraphWarning, Refused


class Recorder:
    """A backend on the CPU. As with a GPU, no Python runs in a replay, and reading a value ends a capture."""

    device_type = "cpu"

    def __init__(self):
        self.settled = 0

    def warm(self, run, device):
        run()
        return run()

    def capture(self, run, device):
        results = []

        def tensors():
            results.append(run())
            return [leaf for leaf in tree_leaves(results[0]) if isinstance(leaf, torch.Tensor)]

        graph = make_fx(tensors, _error_on_data_dependent_ops=True)()
        held = graph()
        leaves, structure = tree_flatten(results[0])
        memory = iter(held)
        results = tree_unflatten(
            [next(memory) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure
        )

        def replay():
            with torch.inference_mode():  # memory knows no modes
                for old, new in zip(held, graph(), strict=True):
                    old.copy_(new)

        return results, replay

    @contextmanager
    def ordered(self, device):
        yield

    def settle(self, device):
        self.settled += 1


class Net(nn.Module):
    """Calls count what Python ran."""

    def __init__(self, forward=None):
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)
        self.register_buffer("shift", torch.ones(3))
        self.own, self.calls = forward, 0

    def forward(self, x, *, scale=1.0, more=None):
        """Its own."""
        self.calls += 1
        if self.own is not None:
            return self.own(self, x)
        y = self.drop(self.linear(x)) * scale + self.shift
        return y if more is None else y + more[0]


def replaying(forward=None, **options):
    """(model, its graphs) in evaluation, with a backend for the CPU."""
    model = Net(forward).eval()
    report = vitkern.accelerate(model, cuda_graph=True)
    report.graphs.backend = Recorder()
    for name, value in options.items():
        setattr(report.graphs, name, value)
    return model, report.graphs


def plain(model, *args, **kwargs):
    return Net.forward(copy.deepcopy(model), *args, **kwargs)


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


def test_a_call_of_a_known_kind_is_replayed():
    model, graphs = replaying()
    x = torch.randn(2, 4)
    assert torch.equal(model(x), plain(model, x))
    calls = model.calls
    for _ in range(3):
        x = torch.randn(2, 4)
        torch.testing.assert_close(model(x), plain(model, x))
    assert model.calls == calls and (graphs.captures, graphs.replays) == (1, 4) and not graphs.plain
    assert "1 captured, 1 kept (at most 8), 4 replays" in str(graphs)


def test_weights_are_cast_within_the_graph():
    """A cast that autocast keeps for the caller's block is freed when that ends, and the graph would read it still."""
    seen = []

    def forward(self, x):
        seen.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return self.linear(x)

    model, graphs = replaying(forward)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.zeros(2, 4)).dtype == torch.bfloat16
    assert graphs.captures == 1 and set(seen) == {(True, False)}


def test_results_are_the_callers_own():
    model, _ = replaying()
    first = model(torch.zeros(2, 4))
    before = first.clone()
    second = model(torch.ones(2, 4))
    assert torch.equal(first, before) and not torch.equal(first, second)
    second.fill_(7.0)
    assert not torch.equal(model(torch.ones(2, 4)), second)


KINDS = {
    "shape": lambda model: model(torch.zeros(3, 4)),
    "strides": lambda model: model(torch.zeros(4, 2).t()),
    "a number": lambda model: model(torch.zeros(2, 4), scale=2.0),
    "a nested tensor": lambda model: model(torch.zeros(2, 4), more=[torch.ones(2, 3)]),
    "another nest": lambda model: model(torch.zeros(2, 4), more=(torch.ones(2, 3),)),
    "autocast": lambda model: autocast(model),
    "the backend": lambda model: on_torch(model),
    "deterministic algorithms": lambda model: deterministic(model),
}


def autocast(model):
    with torch.autocast("cpu", torch.bfloat16):
        return model(torch.zeros(2, 4))


def on_torch(model):
    with vitkern.use_backend("torch"):
        return model(torch.zeros(2, 4))


def deterministic(model):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(not before, warn_only=True)
    try:
        return model(torch.zeros(2, 4))
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_call_has_a_graph(name):
    model, graphs = replaying()
    model(torch.zeros(2, 4))
    for _ in range(2):
        KINDS[name](model)
    assert (graphs.captures, graphs.replays) == (2, 3), graphs.plain
    model(torch.zeros(2, 4))
    assert graphs.captures == 2


@pytest.mark.parametrize(
    "first, second, captures", [(1, 1.0, 2), (0.0, -0.0, 2), (True, 1, 2), (math.nan, -math.nan, 1)]
)
def test_numbers_that_are_equal_may_differ(first, second, captures):
    model, graphs = replaying()
    for number in (first, second):
        model(torch.ones(2, 4), scale=number)
    assert graphs.captures == captures


def test_the_graph_that_was_used_longest_ago_is_dropped():
    model, graphs = replaying(limit=2)
    for rows in (1, 2, 1, 3):
        model(torch.zeros(rows, 4))
    assert (graphs.captures, len(graphs)) == (3, 2) and graphs.backend.settled == 1
    model(torch.zeros(1, 4))
    assert graphs.captures == 3
    model(torch.zeros(2, 4))
    assert graphs.captures == 4
    assert LIMIT == 8


def test_values_that_change_in_place_are_seen():
    model, graphs = replaying()
    x = torch.randn(2, 4)
    model(x)
    model.linear.weight.mul_(3.0)
    model.load_state_dict({name: value + 1.0 for name, value in model.state_dict().items()})
    torch.testing.assert_close(model(x), plain(model, x))
    assert graphs.captures == 1


def replace_parameter(model):
    model.linear.weight = nn.Parameter(model.linear.weight * 2.0)


def replace_data(model):
    model.linear.weight.data = model.linear.weight.data * 2.0


def replace_buffer(model):
    model.shift = torch.full((3,), 5.0)


def replace_module(model):
    model.linear = nn.Linear(4, 3).eval()


def replace_class(model):
    model.linear.__class__ = type("Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})


def replace_forward(model):
    model.linear.forward = lambda x: nn.functional.linear(x, model.linear.weight)


def assign_state(model):
    model.load_state_dict({name: value * 2.0 for name, value in model.state_dict().items()}, assign=True)


def transpose_in_place(model):
    square = nn.Linear(4, 4, bias=False).eval()
    model.linear, model.shift = square, torch.ones(4)
    model(torch.zeros(2, 4))
    square.weight.data = square.weight.data.t()


def read_otherwise(model):
    model.shift.data = model.shift.data.view(torch.int32)


REPLACED = (
    replace_parameter, replace_data, replace_buffer, replace_module, replace_class, replace_forward, assign_state,
    transpose_in_place, read_otherwise,
)  # fmt: skip


@pytest.mark.parametrize("change", REPLACED, ids=lambda change: change.__name__)
def test_what_is_replaced_is_captured_again(change):
    model, graphs = replaying()
    x = torch.randn(2, 4)
    model(x)
    change(model)
    before = graphs.captures
    torch.testing.assert_close(model(x), plain(model, x))
    assert graphs.captures == before + 1 and len(graphs) == 1 and graphs.backend.settled


def test_double_is_captured_again():
    model, graphs = replaying()
    model(torch.zeros(2, 4))
    assert model.double()(torch.zeros(2, 4).double()).dtype == torch.float64
    assert (graphs.captures, len(graphs)) == (2, 1)


def with_gradients(model):
    with torch.enable_grad():
        assert model(torch.zeros(2, 4)).requires_grad


def in_training(model):
    model.drop.train()
    model(torch.zeros(2, 4))


def hooked(model):
    seen = []
    model.linear.register_forward_hook(lambda *args: seen.append(args))
    model(torch.zeros(2, 4))
    assert len(seen) == 1


def watched_by_all(model):
    with nn.modules.module.register_module_forward_hook(lambda *args: None):
        model(torch.zeros(2, 4))


def transformed(model):
    torch.func.vmap(model)(torch.zeros(2, 4))


def traced(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(2, 4), check_trace=False)


def given_an_object(model):
    model(torch.zeros(2, 4), more={"a": object(), 0: torch.ones(2, 3)})


def given_a_sparse_tensor(model):
    model(torch.zeros(2, 4), more=[torch.ones(2, 3).to_sparse()])


def elsewhere(model):
    model.to("meta")(torch.zeros(2, 4, device="meta"))


def of_a_subclass(model):
    class Own(nn.Parameter):
        pass

    model.linear.weight = Own(model.linear.weight)
    model(torch.zeros(2, 4))


PLAIN = {
    with_gradients: "gradients are enabled",
    in_training: "in training mode",
    hooked: "has a forward hook",
    watched_by_all: "watched by somebody",
    transformed: "transformed",
    traced: "traced",
    given_an_object: "an argument is a dict",
    given_a_sparse_tensor: "an argument is a Tensor, not a dense tensor",
    elsewhere: "tensors are on meta: CUDA graphs need all on a GPU",
    of_a_subclass: "parameters or buffers are of type Own",
}


@pytest.mark.parametrize("call", PLAIN, ids=lambda call: call.__name__)
def test_what_cannot_be_replayed_runs_plain_and_is_counted(call):
    model, graphs = replaying()
    model(torch.zeros(2, 4))
    calls = model.calls
    call(model)
    assert model.calls > calls and sum(graphs.plain.values()) == model.calls - calls
    assert PLAIN[call] in str(graphs) and "ran plain" in str(graphs)


def test_devices_that_differ_are_named():
    with pytest.raises(Refused, match="on several devices: cuda:0, cuda:1"):
        Graphs()._check_device({torch.device("cuda:1"), torch.device("cuda:0")})


def test_training_and_back_keeps_the_graph():
    model, graphs = replaying()
    model(torch.zeros(2, 4))
    model.train()
    model.eval()
    model(torch.zeros(2, 4))
    assert graphs.captures == 1


def test_without_a_gpu_calls_run_plain():
    model = Net().eval()
    report = vitkern.accelerate(model, cuda_graph=True)
    assert torch.equal(model(torch.ones(2, 4)), plain(model, torch.ones(2, 4)))
    assert "1 ran plain: tensors are on cpu: CUDA graphs need all on a GPU" in str(report)


def test_hooks_of_the_model_itself_run_at_each_call():
    model, graphs = replaying()
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.register_forward_hook(lambda module, args, out: out + 1)
    x = torch.randn(2, 4)
    for _ in range(3):
        torch.testing.assert_close(model(x), plain(model, x) + 1)
    assert len(seen) == 3 and graphs.replays == 3


def branches(self, x):
    return x if bool(x.sum() > 0) else -x


def overwrites(self, x):
    return x.add_(1.0)


class Result:
    pass


GIVEN_UP = {
    "control flow on values": (branches, "a call could not be captured"),
    "an argument written to": (overwrites, "its forward writes into an argument"),
    "a result of its own class": (lambda self, x: Result(), "its result holds a Result"),
}


@pytest.mark.parametrize("name", GIVEN_UP)
def test_what_cannot_be_captured_runs_plain_from_then_on(name):
    forward, reason = GIVEN_UP[name]
    model, graphs = replaying(forward)
    with pytest.warns(GraphWarning, match=reason) as found:
        first = model(torch.full((2, 4), -2.0))
    assert len(found) == 1 and found[0].filename == __file__
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, forward(model, torch.full((2, 4), -2.0)))
    calls = model.calls
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.ones(5, 4))
    assert model.calls == calls + 1 and reason in str(graphs) and "no CUDA graphs" in str(graphs)
    graphs.forget()
    assert graphs.failed is None


def test_an_error_of_the_model_comes_as_it_is():
    model, graphs = replaying()
    with pytest.raises(RuntimeError, match=r"mat1 and mat2|size"):
        model(torch.zeros(2, 5))
    model(torch.zeros(2, 4))
    assert graphs.failed is None and graphs.captures == 1


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: (x + 1, [x * 2, None], 3),
        lambda self, x: {"a": self.linear(x), "b": {"c": self.shift}},
        lambda self, x: torch.topk(x, 2),
        lambda self, x: x,
    ],
)
def test_any_structure_of_results(forward):
    model, graphs = replaying(forward)
    for _ in range(3):
        x = torch.randn(2, 4)
        actual, expected = model(x), forward(model, x)
        assert type(actual) is type(expected)
        for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert graphs.captures == 1
    assert model(x) is not x and model.shift is not model(x)


def test_one_tensor_given_back_twice_is_one():
    def twice(self, x):
        y = x + 1
        return y, y

    model, _ = replaying(twice)
    first, second = model(torch.zeros(2, 4))
    assert first is second


def test_a_result_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    output = transformers.modeling_outputs.BaseModelOutput
    model, graphs = replaying(lambda self, x: output(last_hidden_state=self.linear(x)))
    for _ in range(2):
        x = torch.randn(2, 4)
        found = model(x)
        assert type(found) is output
        torch.testing.assert_close(found.last_hidden_state, model.linear(x))
    assert graphs.captures == 1


def test_inference_mode_and_no_grad_share_a_graph():
    model, graphs = replaying()
    x = torch.randn(2, 4)
    with torch.inference_mode():
        first = model(torch.randn(2, 4))
    assert first.is_inference() and not model(x).is_inference()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(model, x))
    assert graphs.captures == 1


def test_a_frozen_model_is_replayed_where_gradients_are_enabled():
    model, graphs = replaying()
    model.requires_grad_(False)
    with torch.enable_grad():
        assert not model(torch.zeros(2, 4)).requires_grad
        assert graphs.replays == 1
        assert model(torch.zeros(2, 4, requires_grad=True)).requires_grad
    assert graphs.replays == 1


def test_restore_takes_the_graphs_away():
    model = Net().eval()
    kind = type(model)
    report = vitkern.accelerate(model, cuda_graph=True)
    report.graphs.backend = Recorder()
    model(torch.zeros(2, 4))
    report.restore()
    assert type(model) is kind and graphed.HELD not in vars(model) and len(report.graphs) == 0
    report.restore()
    calls = model.calls
    model(torch.zeros(2, 4))
    assert model.calls == calls + 1


def test_restore_says_what_changed_the_class_since():
    model = Net().eval()
    report = vitkern.accelerate(model, cuda_graph=True)
    model.__class__ = Net
    with pytest.raises(RuntimeError, match=r"the model is a .*Net now"):
        report.restore()


def test_the_model_stays_what_it_was():
    model, original = Net().eval(), Net()
    report = vitkern.accelerate(model, cuda_graph=True)
    assert isinstance(model, Net) and type(model).__qualname__ == "Net" and repr(model) == repr(original)
    assert model.state_dict().keys() == original.state_dict().keys()
    assert type(model).forward.__doc__ == "Its own." and "scale" in str(inspect.signature(model.forward))
    report.restore()


def copied(model):
    return copy.deepcopy(model)


def copied_shallow(model):
    return copy.copy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("way", (copied, copied_shallow, pickled, saved), ids=lambda way: way.__name__)
def test_a_copy_is_the_model_without_graphs(way):
    model, graphs = replaying()
    x = torch.randn(2, 4)
    model(x)
    other = way(model)
    assert type(other) is Net and graphed.HELD not in vars(other)
    calls = other.calls
    torch.testing.assert_close(other(x), model(x))
    assert other.calls == calls + 1 and graphs.captures == 1


def test_a_replica_that_shares_the_models_dict_runs_plain():
    model, graphs = replaying()
    model(torch.zeros(2, 4))
    replica = model._replicate_for_data_parallel()
    replica._parameters = dict(model._parameters)
    calls = replica.calls
    replica(torch.zeros(2, 4))
    assert replica.calls == calls + 1 and graphs.replays == 1


def test_accelerating_again_keeps_the_graphs():
    model, graphs = replaying()
    again = vitkern.accelerate(model, cuda_graph=True)
    assert again.graphs is graphs
    again.restore()
    model(torch.zeros(2, 4))
    assert graphs.replays == 1


def test_a_forward_on_the_instance_is_left_alone():
    model = Net().eval()
    model.forward = lambda x: x
    report = vitkern.accelerate(model, cuda_graph=True)
    assert model(1) == 1 and "no CUDA graphs: its forward is not that of its class, Net" in str(report)


def test_a_model_that_calls_itself_is_captured_once():
    def inner(self, x):
        return self(x[:1]) if x.shape[0] > 1 else x * 2

    model, graphs = replaying(inner)
    assert torch.equal(model(torch.ones(2, 4)), torch.full((1, 4), 2.0))
    assert graphs.captures == 1


def test_threads_get_their_own_results():
    model, graphs = replaying()
    inputs = [torch.full((2, 4), float(i)) for i in range(8)]
    expected, wrong = [plain(model, x) for x in inputs], []

    def work(i):
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(model(inputs[i]), expected[i]):
                    wrong.append(i)

    run_threads(work)
    assert not wrong and graphs.captures == 1 and graphs.replays == 160


def test_compiled_it_is_the_plain_forward():
    model, graphs = replaying()
    x = torch.randn(2, 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain(model, x))
    assert graphs.captures == 0


def test_a_swapped_model_is_replayed():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    with vitkern.accelerate(model, cuda_graph=True) as report:
        report.graphs.backend = Recorder()
        for _ in range(2):
            torch.testing.assert_close(model(x), expected)
        assert report.graphs.replays == 2 and len(report) > 0
    torch.testing.assert_close(model(x), expected)


def test_graphs_alone_hold_no_model():
    assert pickle.loads(pickle.dumps(Graphs(limit=3))).limit == 3

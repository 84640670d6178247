"""`accelerate(model)` in inference on a CPU: the images of a batch shared out over threads, and when they are not."""

import contextlib
import contextvars
import copy
import io
import os
import pickle
import threading
from collections import UserDict

import pytest
import timm
import torch
import torch.nn.functional as F
from swapping import randomise
from threads import run_threads
from torch import nn
from torch.utils.data import DataLoader, Dataset

import vitkern
from vitkern.interop import workers
from vitkern.interop.adapter import ADAPTERS
from vitkern.interop.apart import _unknown, largest
from vitkern.interop.sharing import Refused, Whole, joined, shared_out, taken_apart
from vitkern.interop.side_by_side import HELD, KINDS
from vitkern.interop.workers import WORKERS, Workers


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def mlp(*more):
    return randomise(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3), *more)).eval()


def vit():
    options = dict(depth=2, embed_dim=32, num_heads=2, img_size=16, patch_size=8, num_classes=5)
    return randomise(timm.create_model("vit_tiny_patch16_224", **options)).eval()


def shared(model, **options):
    """(model, how its images are shared out), accelerated."""
    return model, vitkern.accelerate(model, images_side_by_side=True, **options).side_by_side


def run_whole(side, calls=1):
    """The reasons of the last calls, all of which ran whole."""
    assert side.shared == 0 and side.whole.total() == calls, str(side)
    return " ".join(side.whole)


@pytest.fixture
def spy(monkeypatch):
    """What `seen` returns at each GELU, and on which thread."""
    gelu, record = F.gelu, []

    def patched(x, approximate="none"):
        record.append((threading.current_thread(), record.look(x) if record.look else None))
        return gelu(x, approximate=approximate)

    class Record(list):
        look = None

    record = Record()
    monkeypatch.setattr(F, "gelu", patched)
    return record


# What is shared out


def test_the_bits_of_one_thread():
    model, side = shared(vit())
    images = torch.randn(6, 3, 16, 16)
    whole, beside = model(images), model(images)
    assert side.shared == 1 and str(side).startswith("images side by side in inference on a CPU: 1 calls of the model")
    torch.testing.assert_close(beside, whole)
    torch.set_num_threads(1)
    assert torch.equal(beside, torch.cat([model(images[:3]), model(images[3:])]))


def test_each_worker_has_its_share_and_one_thread(spy):
    model, _ = shared(mlp())
    model(torch.zeros(8, 4))
    spy.clear()
    spy.look = lambda x: (len(x), torch.get_num_threads())
    model(torch.zeros(8, 4))
    threads = {thread for thread, _ in spy}
    assert len(threads) == 2 and threading.current_thread() not in threads
    assert [seen for _, seen in spy] == [(4, 1), (4, 1)]


def test_threads_that_do_not_divide_the_images(spy):
    model, side = shared(mlp())
    x = torch.randn(17, 4)
    whole = model(x)
    spy.clear()
    spy.look = len
    torch.testing.assert_close(model(x), whole)
    assert sorted(seen for _, seen in spy) == [8, 9] and side.shared == 1
    assert "a batch of 15 leaves some of 2 threads without work" in (model(x[:15]), *side.whole)


def test_numbers_of_threads_stay():
    """Of the caller, and of threads that are yet to come, which take the number that was set last by anybody."""
    torch.set_num_threads(3)
    seen = []
    assert Workers().run([torch.get_num_threads] * 3) == [1, 1, 1]
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 3 and seen == [3]


MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "gradients of nothing": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast without a cache": lambda: torch.autocast("cpu", torch.float16, cache_enabled=False),
}
number = contextvars.ContextVar("number", default=0)


def modes(*_):
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        number.get(),
    )


@pytest.mark.parametrize("mode", MODES)
def test_workers_have_the_modes_of_the_caller(mode, spy):
    model, side = shared(mlp().requires_grad_(False))
    before = WORKERS.run([modes, modes])
    token = number.set(7)
    with MODES[mode]():
        model(torch.zeros(4, 4))
        spy.clear()
        spy.look = modes
        result = model(torch.zeros(4, 4))
        assert [seen for _, seen in spy] == [modes(), modes()] and side.shared == 1
    assert result.is_inference() == (mode == "inference") and not result.requires_grad
    number.reset(token)
    assert WORKERS.run([modes, modes]) == before


def test_results_are_put_together():
    call = taken_apart((torch.arange(5),), {})
    shares = shared_out(call, 2)

    def both(make):
        return joined([make(share.tensors[0]) for share in shares], shares)

    x = torch.arange(5)
    assert torch.equal(both(lambda t: t), x)
    found = both(lambda t: {"a": (t, None, [t + 1]), "b": 3.0})
    assert torch.equal(found["a"][0], x) and torch.equal(found["a"][2][0], x + 1)
    assert found["a"][1] is None and found["b"] == 3.0
    twice = both(lambda t: (t, t))
    assert twice[0] is twice[1]
    for make in (lambda t: t.sum(), lambda t: t.repeat(2), lambda t: len(t), lambda t: object(), lambda t: t.tolist()):
        with pytest.raises(Refused):
            both(make)


# The first calls


def test_the_first_call_of_a_kind_and_of_a_size_run_whole(spy):
    model, side = shared(mlp())
    spy.look = len
    model(torch.zeros(4, 4)), model(torch.zeros(6, 4))
    assert [seen for _, seen in spy] == [4, 2, 2, 3, 3]
    spy.clear()
    model(torch.zeros(4, 2, 4)), model(torch.zeros(4, 2, 4)), model(torch.zeros(4, 3, 4)), model(torch.zeros(4, 3, 4))
    assert [seen for _, seen in spy] == [4, 2, 2, 2, 2, 4, 2, 2]
    assert side.shared == 3 and side.whole == {"it was the first of its size": 1}


def raises_on_shares(x):
    if len(x) == 2:
        raise ZeroDivisionError("of a share\nmore")


UNLIKE = {
    "another result": (lambda: mlp(nn.Softmax(dim=0)), None, "another result than all together"),
    "another structure": (lambda: mlp(nn.Flatten(0)), None, "first dimension is not that of the images"),
    "random numbers": (mlp, lambda x: torch.rand(1), "random numbers are drawn"),
    "an argument": (lambda: nn.Sequential(nn.ReLU(inplace=True)).eval(), None, "writes into an argument"),
    "an error": (mlp, raises_on_shares, "a share of the images fails alone: ZeroDivisionError: of a share"),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_shares_that_are_unlike_the_whole(case, spy):
    make, spy.look, reason = UNLIKE[case]
    model, side = shared(make())
    x = torch.randn(4, 4)
    for calls in (1, 2):
        expected = copy.deepcopy(model).forward.__wrapped__(model, x.clone())
        assert torch.equal(model(x.clone()), expected)
        assert reason in run_whole(side, calls)


@pytest.mark.parametrize("later", [False, True], ids=["each call", "each size"])
def test_modules_that_keep_something(later, spy):
    model, side = shared(mlp())

    def keep(x):
        if not later or x.shape[1] == 3:
            model[0].kept = object()

    spy.look = keep
    model(torch.zeros(4, 2, 4)), model(torch.zeros(4, 3, 4)), model(torch.zeros(4, 3, 4))
    assert side.shared == 0 and "a module keeps something" in str(side)


def test_a_buffer_that_is_written(spy):
    model, side = shared(mlp(nn.BatchNorm1d(3)))
    spy.look = lambda x: model[3].num_batches_tracked.add_(1)
    model(torch.zeros(4, 4))
    assert "a module keeps something" in run_whole(side)


def test_little_to_do():
    model = mlp()
    side = vitkern.accelerate(model).side_by_side
    model(torch.zeros(4, 4)), model(torch.zeros(4, 4))
    assert "so little to do" in run_whole(side, 2)
    model(torch.zeros(4, 50_000, 4)), model(torch.zeros(4, 50_000, 4))
    assert side.shared == 1


def test_kinds_are_few():
    model = nn.Sequential(nn.Identity()).eval()
    side = vitkern.accelerate(model, images_side_by_side=True).side_by_side
    for dims in range(1, KINDS + 2):
        model(torch.zeros(2, *[1] * dims))
    assert side.whole == {f"calls are of more than {KINDS} kinds: of other dtypes, or arguments that are no tensors": 1}


# Where they are not shared out


@contextlib.contextmanager
def hooked(model):
    handle = model[0].register_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextlib.contextmanager
def all_hooked(_):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    yield
    handle.remove()


@contextlib.contextmanager
def one_thread(_):
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@contextlib.contextmanager
def patched(_):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, self.weight, self.bias))
        yield


@contextlib.contextmanager
def overridden(model):
    model[0].forward = model[0].forward
    yield
    del model[0].forward


@contextlib.contextmanager
def partly_training(model):
    model[1].train()
    yield
    model[1].eval()


@contextlib.contextmanager
def without_statistics(model):
    norm = model[3]
    mean, norm.running_mean = norm.running_mean, None
    variance, norm.running_var = norm.running_var, None
    yield
    norm.running_mean, norm.running_var = mean, variance


@contextlib.contextmanager
def busy(_):
    with WORKERS._taken:
        yield


@contextlib.contextmanager
def in_double(model):
    model.register_parameter("more", nn.Parameter(torch.zeros(1, device="meta")))
    yield
    del model.more


class Mode(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


OFF = {
    "gradients": (lambda model: torch.enable_grad(), "gradients are enabled"),
    "a hook inside": (hooked, "forward hook"),
    "a hook on all modules": (all_hooked, "watched by somebody"),
    "one thread": (one_thread, "one thread"),
    "a patched class": (patched, "torch.nn.modules.linear.Linear is patched"),
    "a forward of an instance": (overridden, "overridden on the instance"),
    "training of a part": (partly_training, "a part of the model is in training mode"),
    "no statistics": (without_statistics, "normalises by those of the batch"),
    "busy workers": (busy, "busy"),
    "a mode": (lambda model: Mode(), "watched by somebody"),
    "a profile": (lambda model: torch.autograd.profiler.profile(), "profiled"),
    "a parameter elsewhere": (in_double, "not on a CPU"),
    "a kernel is asked for": (lambda model: vitkern.use_backend("triton"), "asked for"),
}


@pytest.mark.parametrize("case", OFF)
def test_calls_run_whole_while(case, spy):
    context, reason = OFF[case]
    model, side = shared(mlp(nn.BatchNorm1d(3)))
    x = torch.randn(4, 4)
    expected = model(x)
    spy.clear()
    with context(model):
        answer = model(x).detach()
    if case != "no statistics":
        torch.testing.assert_close(answer, expected)
    assert [thread for thread, _ in spy] == [threading.current_thread()] and side.shared == 0 and reason in str(side)
    model(x), model(x)
    assert side.shared > 0


def test_training():
    model, side = shared(mlp(nn.BatchNorm1d(3)))
    model.train()
    model(torch.randn(4, 4))
    assert "training mode" in run_whole(side)


ARGUMENTS = {
    "one image": (lambda x: (x[:1],), "a batch of 1"),
    "an odd batch": (lambda x: (x[:3],), "a batch of 3"),
    "gradients": (lambda x: (x.clone().requires_grad_(),), "gradients are enabled"),
    "a subclass": (lambda x: (x.as_subclass(type("Mine", (torch.Tensor,), {})),), "no dense one"),
    "no images": (lambda x: (torch.tensor(1.0).expand(()),), "no dense one"),
    "another device": (lambda x: (x.to("meta"),), "an argument is on meta"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_are_not_shared_out(case):
    make, reason = ARGUMENTS[case]
    model, side = shared(nn.Sequential(nn.ReLU(), nn.GELU()).eval())
    with torch.set_grad_enabled(case == "gradients"):
        arguments = make(torch.randn(4, 4))
        assert model(*arguments).shape == arguments[0].shape
    assert reason in run_whole(side)


def test_arguments_that_differ_in_images():
    model, side = shared(nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True)).eval()[0])
    x = torch.randn(4, 5, 4)
    model(x, x, x, need_weights=False), model(x, x, x, need_weights=False)
    assert side.shared == 1
    model(x, x, x, attn_mask=torch.zeros(5, 5))
    assert side.shared == 1 and "tensors among the arguments differ in their first size" in str(side)


def test_an_argument_that_is_no_plain_value():
    with pytest.raises(Whole, match="an argument is a UserDict"):
        taken_apart((torch.zeros(2), UserDict()), {})
    with pytest.raises(Whole, match="no tensor among the arguments"):
        taken_apart((1,), {})


def test_where_others_record_or_transform():
    model, side = shared(mlp())
    x = torch.randn(4, 4)
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for answer in (
        compiled(x),
        torch.jit.trace(model, x, check_trace=False)(x),
        torch.jit.script(model)(x),
        torch.fx.symbolic_trace(model)(x),
        torch.export.export(model, (x,)).module()(x),
        torch.vmap(model)(x[None])[0],
    ):
        torch.testing.assert_close(answer, expected)
    assert side.shared == 0 and set(side.whole) <= {"the call is traced, transformed, profiled or watched by somebody"}


def test_scripted_as_its_class_is():
    """TorchScript looks up names where the forward was written."""
    model, _ = shared(nn.GELU().eval())
    x = torch.randn(4, 4)
    assert torch.equal(torch.jit.script(model)(x), model(x))


# Errors and other threads


def test_errors_are_the_originals():
    model, _ = shared(mlp())
    model(torch.zeros(4, 4)), model(torch.zeros(4, 4))
    with pytest.raises(RuntimeError) as expected:
        mlp()(torch.zeros(4, 5))
    with pytest.raises(RuntimeError) as found:
        model(torch.zeros(4, 5))
    assert str(found.value) == str(expected.value) and found.value.__context__ is None


def test_errors_in_shares_are_the_originals(spy):
    model, side = shared(mlp())
    x = torch.zeros(4, 4)
    model(x), model(x)

    def fails(x):
        raise ValueError(f"of {len(x)} images")

    spy.look = fails
    with pytest.raises(ValueError, match="of 4 images") as found:
        model(x)
    assert found.value.__context__ is None
    spy.look = None
    model(x)
    assert side.shared == 2  # it was the call, not the shares
    spy.look = raises_on_shares
    model(x)
    spy.look = None
    model(x)
    assert side.shared == 2 and "a share of the images fails alone" in str(side)


def test_an_interrupt_leaves_nothing_running(monkeypatch):
    pool, going, ended = Workers(), threading.Event(), []
    pool.run([int, int])

    def part():
        going.wait(60)
        ended.append(1)

    def interrupted(futures):
        monkeypatch.undo()
        going.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run([part, part])
    assert ended == [1, 1] and pool.run([int, int]) == [0, 0]


def test_threads_that_cannot_be_started(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    pool = Workers()
    monkeypatch.setattr(workers.threading.Thread, "start", refuse)
    assert pool.run([int, int]) is None and torch.get_num_threads() == 2
    monkeypatch.undo()
    assert pool.run([int, int]) == [0, 0]


def test_several_threads_call():
    model, side = shared(mlp())
    inputs = [torch.randn(4, 4) for _ in range(4)]
    expected = [model(x) for x in inputs]

    def work(number):
        with torch.no_grad():
            for _ in range(10):
                torch.testing.assert_close(model(inputs[number]), expected[number])

    run_threads(work, 4)
    assert side.shared + side.whole.total() == 43


def test_one_within_another(spy):
    model = mlp()
    inner = vitkern.accelerate(model[:1], images_side_by_side=True)
    outer, side = shared(nn.Sequential(inner.model, model[1:]).eval())
    x = torch.randn(4, 4)
    for _ in range(3):
        torch.testing.assert_close(outer(x), model(x))
    assert side.shared == 2 and inner.side_by_side.shared == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_has_workers_of_its_own():
    assert WORKERS.run([int, int]) == [0, 0]
    with WORKERS._taken:
        child = os.fork()
        if not child:
            os._exit(0 if WORKERS.run([lambda: 1, lambda: 2]) == [1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Answers(Dataset):
    def __init__(self, model):
        self.model = model

    def __len__(self):
        return 1

    def __getitem__(self, index):
        with torch.no_grad():
            return self.model(torch.ones(4, 4)), str(vars(self.model)[HELD])


def test_within_a_loader_of_data():
    model, _ = shared(mlp())
    model(torch.ones(4, 4)), model(torch.ones(4, 4))
    ((answer, said),) = DataLoader(Answers(model), num_workers=1)
    torch.testing.assert_close(answer[0], model(torch.ones(4, 4)))
    assert "1 ran whole: PyTorch has one thread" in said[0]


# What is installed


def test_undone():
    model = vit()
    kind, keys, held = type(model), list(model.state_dict()), set(vars(model))
    report = vitkern.accelerate(model)
    assert type(model) is not kind and isinstance(model, kind) and type(model).__name__ == kind.__name__
    assert list(model.state_dict()) == keys
    again = vitkern.accelerate(model)
    assert again.side_by_side is report.side_by_side
    again.restore()
    assert HELD in vars(model)
    report.restore()
    assert type(model) is kind and set(vars(model)) == held


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "torch.save"])
def test_copies_share_out_their_own_calls(how):
    model, side = shared(vit())
    images = torch.randn(4, 3, 16, 16)
    expected = model(images)
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = {"deepcopy": copy.deepcopy, "copy": copy.copy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}[how](
            model
        )
    own = vars(other)[HELD]
    assert type(other) is type(model) and own is not side and own.shared == 0
    assert torch.equal(other(images), expected)
    torch.testing.assert_close(other(images), expected)
    assert own.shared == 1 and own.model is other and side.shared == 0
    assert vitkern.accelerate(other).side_by_side is own


def test_a_replica_runs_whole():
    model, side = shared(mlp())
    replica = model._replicate_for_data_parallel()
    replica._modules = model._modules
    assert torch.equal(replica(torch.ones(4, 4)), model(torch.ones(4, 4)))
    assert side.model is model and side.shared == 0  # the second was the first that it saw


class Mine(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.encoder(x).softmax(0)


def test_the_largest_part_in_which_images_do_not_meet():
    model, side = shared(Mine(encoder=vit(), other=nn.Linear(2, 2)).eval())
    images = torch.randn(4, 3, 16, 16)
    for _ in range(3):
        torch.testing.assert_close(model(images), model.encoder(images).softmax(0))
    assert (side.where, side.shared) == ("encoder", 5) and "calls of encoder" in str(side)


NOWHERE = {
    "no part": (lambda: Mine(encoder=nn.Linear(4, 4), other=nn.Linear(4, 4)), "Mine is not known to keep images apart"),
    "in pieces": (
        lambda: Mine(encoder=nn.ModuleList([nn.Linear(4, 4)])),
        "encoder, which has most of the parameters, is called in pieces",
    ),
    "a leaf": (lambda: nn.Sequential(nn.Identity(), nn.LSTM(4, 4)), "torch.nn.modules.rnn.LSTM is not known"),
    "a norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)),
        "a torch.nn.modules.batchnorm.BatchNorm1d without running statistics",
    ),
    "rows that are written": (
        lambda: nn.Sequential(nn.Embedding(4, 4, max_norm=1.0)),
        "a torch.nn.modules.sparse.Embedding with max_norm writes into its weight",
    ),
    "a bag": (lambda: nn.Sequential(nn.EmbeddingBag(4, 4)), "its offsets count from the first row of the batch"),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_models_in_which_images_may_meet(case):
    make, reason = NOWHERE[case]
    model = make().eval()
    kind = type(model)
    report = vitkern.accelerate(model, images_side_by_side=True)
    assert reason in report.side_by_side.failed and type(model) is kind and HELD not in vars(model)
    assert f"images not side by side: {report.side_by_side.failed}" in str(report)


def test_a_tied_module_bars_all_around_it():
    odd = Mine()
    model = nn.Sequential(nn.Sequential(odd), nn.Sequential(nn.Linear(8, 8), odd))
    assert largest(model)[0] == "1.0"


def test_choices():
    assert vitkern.accelerate(mlp(), images_side_by_side=False).side_by_side is None
    assert vitkern.accelerate(mlp().to("meta")).side_by_side is None
    assert vitkern.accelerate(mlp().to("meta"), images_side_by_side=True).side_by_side.failed is None
    assert vitkern.accelerate(vit(), "blocks.*").side_by_side.failed == "left out by only"
    assert vitkern.accelerate(vit(), "blocks.*", images_side_by_side=True).side_by_side.failed is None


def test_what_is_swapped_is_known():
    """But for models of sounds, films, texts and places."""
    unknown = {path.split(".")[2] for path in ADAPTERS if _unknown(path)}
    assert unknown == {"clap", "deformable_detr", "flava", "timesformer", "videomae", "vilt", "visual_bert"}

"""CUDA graphs of whole models on a GPU: a replay equals what it replays to the bit, in inference and in training."""

import copy

import pytest
import torch

import vitkern
from vitkern import dispatch
from vitkern.interop.graphs import GraphWarning

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

OTHERS = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"  # timm's
OWN = "nat_mini", "vil_tiny_window7_224"
WARM_UPS = 3


@pytest.fixture(autouse=True)
def _kernels_only():
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    with dispatch.use_backend("triton"):
        yield
    torch.backends.cudnn.deterministic = before


def built(name, **options):
    """(model on the GPU, what makes its images)."""
    if name in OWN:
        model, size = vitkern.create_model(name, **options), vitkern.describe(name).input_size
    else:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        model = timm.create_model(name, **options)
        size = model.pretrained_cfg["input_size"]
    generator = torch.Generator().manual_seed(0)
    return model.cuda(), lambda batch: torch.randn(batch, *size, generator=generator).cuda()


@pytest.mark.parametrize("autocast", (False, True), ids=("float32", "autocast"))
@pytest.mark.parametrize("name", (*OTHERS, *OWN))
def test_a_replay_is_the_forward_to_the_bit(name, autocast):
    model, images = built(name)
    model.eval()
    original = copy.deepcopy(model)
    vitkern.accelerate(original)
    report = vitkern.accelerate(model, cuda_graph=True)
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for batch in (2, 3, 2, 3):
            given = images(batch)
            assert torch.equal(model(given), original(given))
        with torch.no_grad():
            for mine, other in zip(model.parameters(), original.parameters(), strict=True):
                mine.mul_(0.9), other.mul_(0.9)
        assert torch.equal(model(given), original(given)), "weights that change in place"
    assert (report.graphs.captures, report.graphs.replays) == (2, 5) and not report.graphs.plain


def test_streams_and_dropped_graphs_do_not_mix():
    model, images = built("vit_tiny_patch16_224")
    model.eval()
    graphs = vitkern.accelerate(model, cuda_graph=True).graphs
    graphs.limit = 2
    with torch.inference_mode():
        given = [images(batch) for batch in (1, 2, 3)]
        expected = [model(x) for x in given]
        torch.cuda.synchronize()
        found, streams = [], [torch.cuda.Stream() for _ in range(2)]
        for turn in range(12):
            with torch.cuda.stream(streams[turn % 2]):
                found.append(model(given[turn % 3]))
        torch.cuda.synchronize()
    assert all(torch.equal(out, expected[turn % 3]) for turn, out in enumerate(found)) and len(graphs) == 2


def test_control_flow_on_values_runs_plain():
    class Branches(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) if bool(x.sum() > 0) else x

    model = Branches(8, 8).cuda().eval()
    graphs, stream = vitkern.accelerate(model, cuda_graph=True).graphs, torch.cuda.current_stream()
    with torch.no_grad():
        x = torch.ones(2, 8, device="cuda")
        with pytest.warns(GraphWarning, match="could not be captured"):
            first = model(x)
        assert torch.equal(first, model(x)) and torch.equal(model(-x), -x)
    assert graphs.failed and torch.cuda.current_stream() == stream
    for _ in range(2):  # all is well after that: memory, random numbers, other captures
        assert torch.rand(1000, device="cuda").mean().item() > 0.1
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = x * 2 + torch.rand_like(x)
        graph.replay()
        assert (y >= 2).all()


class Training:
    """Steps of a model on a batch that stays where it is."""

    def __init__(self, model, images, labels):
        self.model, self.images, self.labels = model, images, labels
        self.optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.loss = None

    def step(self):
        self.optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self.images.device.type, torch.bfloat16, cache_enabled=False):
            out = self.model(self.images)
        self.loss = torch.nn.functional.cross_entropy(out.float(), self.labels)
        self.loss.backward()
        self.optimiser.step()

    def tensors(self):
        momenta = [state["momentum_buffer"] for state in self.optimiser.state.values()]
        return [parameter.detach() for parameter in self.model.parameters()] + momenta

    def run(self, step, batches):
        """[loss of each batch, then all parameters and momenta]."""
        losses = []
        for batch in batches:
            self.images.copy_(batch)
            step()
            losses.append(self.loss.detach().clone())
        return losses + [tensor.clone() for tensor in self.tensors()]


@pytest.mark.parametrize("name", (*OTHERS[:2], OWN[0]))
def test_a_captured_training_step_is_the_step_to_the_bit(name):
    """The backward of every operator is in it: that of the bias tables, and of the table of neighbourhood attention."""
    model, images = built(name)
    model.train()
    for module in model.modules():  # what is drawn would be drawn anew
        for rate in ("drop_prob", "p"):
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    if name not in OWN:
        assert len(vitkern.accelerate(model)) > 0
    training = Training(model, images(4), torch.arange(4, device="cuda"))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            training.step()
    torch.cuda.current_stream().wait_stream(side)
    start = [tensor.clone() for tensor in training.tensors()]
    batches = [images(4) for _ in range(3)]

    def restart():
        for tensor, value in zip(training.tensors(), start, strict=True):
            tensor.copy_(value)

    expected = training.run(training.step, batches)
    restart()
    graph = torch.cuda.CUDAGraph()
    training.optimiser.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        training.step()
    for _ in range(2):
        restart()
        found = training.run(graph.replay, batches)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

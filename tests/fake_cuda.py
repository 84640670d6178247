"""A GPU that is a CPU: what is put on "cuda" is on the CPU, torch.cuda answers as if there were one, and a graph is
replayed by calling again what was called while it was captured. For what only runs on a GPU to be tried without."""

import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "a GPU that is not there"


def on_cpu(value):
    """A device of the GPU as one of the CPU."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.split(":")[0] == "cuda" else value


class OnCpu(TorchFunctionMode):
    __module__ = "torch.utils"  # as one of PyTorch's own modes, for which accelerated modules do not step aside

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.device:  # the name of a place, where nothing is put
            return function(*args, **(kwargs or {}))
        return function(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs or {}))


class Tape(TorchDispatchMode):
    """What a graph holds: each operator with its arguments, and the memory of its results."""

    __module__ = "torch.utils"

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, held in self.calls:
                new = function(*args, **kwargs)
                for old, value in zip(tree_leaves(held), tree_leaves(new), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != value.data_ptr():  # a reshape may copy
                        old.copy_(value)


class Graph:
    tape = None

    def replay(self):
        self.tape.replay()


@contextmanager
def capture(graph, **options):
    graph.tape = Tape()
    with graph.tape:
        yield


class Event:
    """``clock``: where its time comes from."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, **options):
        self.at = None

    def record(self, stream=None):
        self.at = self.clock()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


class Stream:
    device = torch.device("cpu")

    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass

    wait_event = wait_stream

    def synchronize(self):
        pass


@contextmanager
def installed(patch):
    """Within the block there is a GPU; ``patch``: pytest's."""
    properties = SimpleNamespace(L2_cache_size=2**20, multi_processor_count=1, name=NAME)
    nothing = lambda *args, **kwargs: None  # noqa: E731
    answers = dict(
        is_available=lambda: True,
        is_bf16_supported=lambda *args, **kwargs: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        get_device_name=lambda device=None: NAME,
        get_device_capability=lambda device=None: (9, 0),
        get_device_properties=lambda device=None: properties,
        mem_get_info=lambda device=None: (0, 0),
        memory_allocated=lambda device=None: 0,
        max_memory_allocated=lambda device=None: 0,
        graph_pool_handle=lambda: (0, 0),
        current_stream=lambda device=None, stream=Stream(): stream,  # noqa: B008 one for all
        device=lambda device: nullcontext(),
        stream=lambda stream: nullcontext(),
        graph=capture,
        CUDAGraph=Graph,
        Event=Event,
        Stream=Stream,
    )
    answers |= dict.fromkeys(("synchronize", "set_stream", "_sleep", "empty_cache", "reset_peak_memory_stats"), nothing)
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    patch.setattr(torch, "Generator", lambda device="cpu", kind=torch.Generator: kind(on_cpu(device)))
    with OnCpu():
        yield

"""Images side by side: in inference on a CPU the images of a batch are shared out over threads, each with one thread
inside operators. Nobody waits at the end of each operator then, and a share of the images stays in its core's cache."""

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import nn
from torch.autograd import profiler

from vitkern import dispatch
from vitkern.interop.apart import Apart, largest
from vitkern.interop.around import obstacle, stand_around
from vitkern.interop.census import ORDINARY, Census
from vitkern.interop.sharing import Call, Refused, Whole, beside, taken_apart
from vitkern.interop.trial import Keeping, Known, Outside, compare, measured
from vitkern.ops.bypass import watched

HELD = "_vitkern_side_by_side"  # in the dict of the module whose images are shared out
IDLE = 1 / 16  # of the threads' time at most, where they do not divide the images
LEAST = 2_000_000  # operations of a share, for each module and each other share
KINDS, SIZES = 8, 64  # of calls, at most


class SideBySide:
    """Calls of ``model``, shared out by images where that is known to give the same. ``where``: its name in the model
    that was accelerated. ``always``: however little there is to do.

    A call that cannot be shared out runs as it would without; ``whole`` counts these by reason, and ``failed`` is why
    none is. The first call of each kind (all but sizes) that is worth it runs both ways, and the whole gives the
    result. If shares give another, or the call has changed an argument, random numbers or what modules keep, all of its
    kind run whole. So does the first of each size of images, which fills what modules keep for a size. Where a share
    fails, the call runs whole and raises what it would have.
    """

    def __init__(self, model: nn.Module | None = None, where: str = "", always: bool = False) -> None:
        self.model, self.where, self.always = model, where, always
        self.failed: str | None = None
        self.shared = 0
        self.whole: Counter[str] = Counter()
        self._census: Census | None = None
        self._apart: Apart | None = None
        self._known: dict[Hashable, Known] = {}
        self._sizes: set[Hashable] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return SideBySide, (None, self.where, self.always)  # of a copy of the model, which has its own calls

    def __str__(self) -> str:
        if self.failed is not None:
            return f"images not side by side: {self.failed}"
        what = self.where or "the model"
        lines = [f"images side by side in inference on a CPU: {self.shared} calls of {what} shared out over threads"]
        lines += [f"of the calls {count} ran whole: {reason}" for reason, count in self.whole.most_common()]
        return "\n".join(lines)

    def run(self, forward: Callable, arguments: tuple, keywords: dict[str, Any]) -> Any:
        """``forward(*arguments, **keywords)``, shared out where that can be done."""
        try:
            threads = self._threads()
            call = taken_apart(arguments, keywords)
            kind = self._kind(call, threads)
            self._check_known(kind, call, threads)
            self._check_model()
            return self._done(kind, forward, call, threads)
        except Whole as reason:
            self._count(reason)
        return forward(*arguments, **keywords)

    def forget(self) -> None:
        """Drop what calls have shown."""
        with self._lock:
            self._known.clear()
            self._sizes.clear()
            self._census = None

    def _threads(self) -> int:
        """The number of shares of a call; `Whole` where no call is shared out now."""
        if self.model is None or self.failed is not None:
            raise Whole(self.failed or "a copy has no model")
        if dispatch.is_seen() or watched() or profiler._is_profiler_enabled:
            raise Whole("the call is traced, transformed, profiled or watched by somebody")
        if self.model.training:
            raise Whole("the model is in training mode")
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.model.parameters()):
            raise Whole("gradients are enabled: use torch.inference_mode() or torch.no_grad()")
        threads = torch.get_num_threads()
        if threads < 2:
            raise Whole("PyTorch has one thread")
        if dispatch.INTERPRETED or dispatch.is_forced():
            raise Whole("kernels are interpreted or asked for")
        return threads

    def _kind(self, call: Call, threads: int) -> Hashable:
        if call.images < 2 or -(-call.images // threads) * threads > (1 + IDLE) * call.images:
            raise Whole(f"a batch of {call.images} leaves some of {threads} threads without work")
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in call.tensors):
            raise Whole("gradients are enabled: use torch.inference_mode() or torch.no_grad()")
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        return call.kind(), autocast, dispatch.current_backend()

    def _check_known(self, kind: Hashable, call: Call, threads: int) -> None:
        known = self._known.get(kind)
        if known is not None and known.refused is not None:
            raise Whole(known.refused)
        if known is not None:
            self._check_worth(known, call, threads)
        elif len(self._known) >= KINDS:
            raise Whole(f"calls are of more than {KINDS} kinds: of other dtypes, or arguments that are no tensors")

    def _check_worth(self, known: Known, call: Call, threads: int) -> None:
        """Python does one thing at a time: a share waits while it calls all modules for each other one. A module takes
        it about 30 us, in which a core multiplies `LEAST`."""
        modules = 0 if self._census is None else len(self._census)
        share = known.operations * call.tensors[0].numel() / threads
        if not self.always and share < LEAST * modules * (threads - 1):
            raise Whole("there is so little to do that threads would wait for Python")

    def _check_model(self) -> None:
        assert self.model is not None
        census = self._census
        if census is None or not census.stands():
            self.forget()
            census, self._apart = Census(self.model), Apart(self.model)
            self._census = census
        if census.training():
            raise Whole("a part of the model is in training mode")
        if census.hooked():
            raise Whole("a module in the model has a forward hook, which would run for each share")
        reason = None if self._apart is None else self._apart.why_not()
        if reason is not None:
            raise Whole(reason)
        tensors = census.tensors()
        if {*map(type, tensors)} - ORDINARY:
            raise Whole("parameters or buffers are no plain tensors")
        if any(tensor.device.type != "cpu" for tensor in tensors):
            raise Whole("the model is not on a CPU")

    def _done(self, kind: Hashable, forward: Callable, call: Call, threads: int) -> Any:
        known = self._known.get(kind)
        if known is None or not known.compared:
            return self._first_of_kind(kind, forward, call, threads)
        if (kind, call.sizes()) not in self._sizes:
            return self._first_of_size(kind, forward, call)
        return self._shared(kind, forward, call, threads)

    def _first_of_kind(self, kind: Hashable, forward: Callable, call: Call, threads: int) -> Any:
        """The whole, and its shares to compare."""
        assert self.model is not None
        outside = Outside(call)
        result, known = (call.of(forward), Known()) if self.always else measured(forward, call)
        try:
            outside.check()
            if known.refused is not None:
                raise Refused(known.refused)
            self._known[kind] = known
            self._check_worth(known, call, threads)
            compare(result, self.model, forward, call, threads)
            self._sizes.add((kind, call.sizes()))
            self._known[kind] = known._replace(compared=True)
        except Whole as reason:
            self._count(reason, kind)
        return result

    def _first_of_size(self, kind: Hashable, forward: Callable, call: Call) -> Any:
        """The whole, which is to fill nothing that another size would fill anew."""
        assert self.model is not None
        keeping = Keeping(self.model)
        result = call.of(forward)
        try:
            keeping.check()
            if len(self._sizes) >= SIZES:
                self._sizes.clear()
            self._sizes.add((kind, call.sizes()))
            raise Whole("it was the first of its size")
        except Whole as reason:
            self._count(reason, kind)
        return result

    def _shared(self, kind: Hashable, forward: Callable, call: Call, threads: int) -> Any:
        try:
            result = beside(forward, call, threads)
        except Refused as refusal:
            reason = refusal
        else:
            with self._lock:
                self.shared += 1
            return result
        result = call.of(forward)  # raises what it would have
        self._count(reason, kind)
        return result

    def _count(self, reason: Whole, kind: Hashable = None) -> None:
        """A call ran whole; all of this ``kind`` will, where that was `Refused`."""
        with self._lock:
            self.whole[str(reason)] += 1
            if isinstance(reason, Refused):
                self._known[kind] = Known(refused=str(reason))


def install(
    model: nn.Module, wanted: bool | None, allowed: Callable[[nn.Module, str], bool]
) -> tuple[SideBySide | None, Callable[[], str | None]]:
    """Share out the images of calls of ``model``, or of the part that holds most of it, where they are known not to
    meet -> how, and what ends it.

    ``wanted``: True, however little there is to do; None, where it pays, if the model is on a CPU now and the module
    is ``allowed``.
    """
    found = largest(model)
    side = SideBySide(model) if isinstance(found, str) else SideBySide(found[1], found[0], wanted is True)
    module = side.model
    assert module is not None
    if HELD in vars(module):
        first = vars(module)[HELD]
        first.model, first.always = module, first.always or wanted is True  # it may be a copy
        return first, lambda: None  # who came first takes it away
    if wanted is None and any(tensor.device.type != "cpu" for tensor in (*module.parameters(), *module.buffers())):
        return None, lambda: None
    side.failed = found if isinstance(found, str) else obstacle(module)
    if side.failed is None and wanted is None and not allowed(module, side.where):
        side.failed = "left out by only"
    return side, (lambda: None) if side.failed else stand_around(module, side, HELD, copied=True)

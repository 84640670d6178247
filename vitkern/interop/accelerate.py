"""Swap the modules of a model for vitkern's: in place, by class, with a report that can undo it."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from vitkern.interop import side_by_side
from vitkern.interop.adapter import Adapter, adapter_of, known_base, path_of
from vitkern.interop.attends import attends
from vitkern.interop.descriptions import near_miss
from vitkern.interop.graphed import install
from vitkern.interop.report import Attention, Kept, Report, Swapped
from vitkern.ops.bypass import pristine

Predicate = Callable[[nn.Module, str], bool]
Only = Predicate | str | Iterable[str] | None
Exchange = Callable[[nn.Module], Callable[[], str | None] | str]

NO_ADAPTER = "no adapter for this class"
SWAPPED_ALREADY = "already swapped"


def accelerate(
    model: nn.Module, only: Only = None, *, cuda_graph: bool = False, images_side_by_side: bool | None = None
) -> Report:
    """Make ``model`` run on vitkern where it can, in place, and say what was done.

    Modules of timm, torchvision and transformers that vitkern knows get another class, a subclass that overrides
    ``forward``. Parameters, state-dict keys, hooks and `isinstance` stay; projections are called as they are, so LoRA
    and quantised ones keep working. Call it after PEFT or quantisation, before `fully_shard`, at any time relative to
    torch.compile. Models of transformers also get ``attn_implementation="vitkern"``.

    Args:
        model: any module; what it does not know is left alone.
        only: which modules may be swapped: a predicate ``(module, name) -> bool``, or a glob or several on the names
            of the modules themselves ("" is the model).
        cuda_graph: for inference in fixed shapes: calls of ``model`` are captured as CUDA graphs, one for each kind of
            call, at most `vitkern.interop.graphs.LIMIT` of them, and replayed. What cannot be runs as it would without,
            and ``report.graphs`` says why: gradients, training, hooks inside the model, a CPU, arguments that are no
            plain values, control flow on values. Copies of the model have no graphs.
        images_side_by_side: for inference on a CPU: the images of a batch are shared out over as many threads as
            PyTorch has, each with one inside operators, around the largest module in which images are known not to
            meet: the model, or a part with most of its parameters. Unless given, where it pays, in a model that is on a
            CPU now; True, however little there is to do; False, nowhere. ``report.side_by_side`` says where, and why
            calls run whole: gradients, training, hooks inside, a first call of its kind, which is compared, batches
            that leave threads without work. Results are as accurate, and the same bits as one thread gives for each
            share.

    Returns:
        A `Report`: print it, iterate over its swaps, `restore()` the model, or use it as a context manager that
        restores on exit.

    Raises:
        TypeError: ``model`` is no module, or ``only`` is none of the above.
        Exception: whatever ``only`` or an adapter raises; the model is then as it was.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model is no module: got {type(model).__name__}; expected torch.nn.Module.")
    allowed = _predicate(only)
    report = Report(model)
    try:
        exchange = _exchanger(model)
        covered: dict[str, str] = {}  # name of a module whose work another took over: that one's name
        for name, module in model.named_modules():
            by = next((covered[top] for top in covered if name == top or name.startswith(top + ".")), None)
            if by is None:
                by = _swap(module, name, allowed, report, covered, exchange)
            kind: type = module.adapted if isinstance(module, Adapter) else type(module)
            if attends(kind):
                report.attention.append(Attention(name, type(module), by))
        _credit_parts(model, report)
        if images_side_by_side is not False:
            report.side_by_side, end = side_by_side.install(model, images_side_by_side, allowed)
            report.undo.append(end)
        if cuda_graph:
            report.graphs, take_away = install(model)
            report.undo.append(take_away)
    except BaseException:
        report.restore()
        raise
    return report


def _swap(
    module: nn.Module, name: str, allowed: Predicate, report: Report, covered: dict[str, str], exchange: Exchange
) -> str | None:
    """Swap one module or note why not -> its name, if its attention runs on vitkern now. In ``covered``: the children
    whose work it took over."""
    kind: type = type(module)
    adapter = _adapter_of(module)
    unlike = near_miss(kind) if adapter is None else None
    if adapter is None and unlike is None and not attends(kind):
        return None
    if not allowed(module, name):
        report.kept.append(Kept(name, kind, "left out by only"))
        return None
    if adapter is None:
        put_back = exchange(module) if unlike is None or attends(kind) else NO_ADAPTER
        if not isinstance(put_back, str):
            report.undo.append(put_back)
            report.swapped.append(Swapped(name, kind, ("attention",)))
            return name
        adapter = unlike if put_back == NO_ADAPTER and unlike is not None else put_back
    if isinstance(adapter, str):
        report.kept.append(Kept(name, kind, adapter))
        return name if adapter.startswith(SWAPPED_ALREADY) else None
    try:
        fit = adapter.fit(module)
    except AttributeError as error:
        report.kept.append(Kept(name, kind, f"it is laid out differently in the installed version: {error}"))
        return None
    if not fit.ops:
        report.kept.append(Kept(name, kind, "; ".join(fit.reasons)))
        return None
    module.__class__ = adapter
    report.undo.append(lambda: _restore(module, name, kind, adapter))
    report.swapped.append(Swapped(name, kind, fit.ops, fit.reasons, fit.needs_kernel))
    if not any("attention" in op for op in fit.ops):
        return None
    covered.update({f"{name}.{child}" if name else child: name for child in adapter.covers})
    return name


def _credit_parts(model: nn.Module, report: Report) -> None:
    """A module whose attention is done by a part of it that was swapped is not kept: it does it on vitkern itself."""
    swapped = [name for name, module in model.named_modules() if isinstance(module, Adapter) and module.within]
    around = {name.rpartition(".")[0] for name in swapped}
    report.kept = [kept for kept in report.kept if kept.name not in around or kept.reason != NO_ADAPTER]
    report.attention = [replace(e, by=e.name) if e.name in around else e for e in report.attention]


def _adapter_of(module: nn.Module) -> type[Adapter] | str | None:
    """Its adapter, or why it cannot be swapped; None where no adapter concerns it."""
    kind: type = type(module)
    if isinstance(module, Adapter):
        if issubclass(kind, Adapter) and Adapter in kind.__mro__ and kind.__module__.startswith("vitkern."):
            return SWAPPED_ALREADY
        return f"{SWAPPED_ALREADY}, and its class changed since"
    base = known_base(kind)
    if base is not None:
        if any(parent.__name__ == "FSDPModule" for parent in kind.__mro__):
            return "sharded already: accelerate first, then fully_shard"
        if hasattr(module, "parametrizations"):
            return f"parametrised: its class derives from {base}"
        return f"a subclass of {base}, which may differ from it"
    try:
        adapter = adapter_of(kind)
    except ImportError as error:
        if (error.name or "").split(".")[0] != kind.__module__.split(".")[0]:
            raise
        return f"its adapter does not fit the installed version: {error}"
    if adapter is not None and "forward" in module.__dict__:
        return "its forward is overridden on the instance"
    if adapter is not None and not pristine(kind):
        return "its class is patched"
    return adapter


def _restore(module: nn.Module, name: str, original: type, adapter: type) -> str | None:
    if type(module) is not adapter:
        return f"{name or 'the model'} is a {path_of(type(module))} now"
    module.__class__ = original
    return None


def _exchanger(model: nn.Module) -> Exchange:
    """What exchanges the attention function of a transformers module inside ``model`` -> what puts it back, or why the
    function stays."""
    owners = {}  # id of a module: the innermost model of transformers around it
    if "transformers" in sys.modules:
        for pretrained in filter(_is_pretrained, model.modules()):  # the outer ones first
            owners.update({id(module): pretrained for module in pretrained.modules()})
    if not owners:
        return lambda module: NO_ADAPTER
    from vitkern.interop import transformers_exchange

    seen: dict = {}

    def exchange(module: nn.Module) -> Callable[[], str | None] | str:
        reason = transformers_exchange.obstacle(module, owners.get(id(module)))
        return transformers_exchange.exchange(module, seen) if reason is None else reason

    return exchange


def _is_pretrained(module: nn.Module) -> bool:
    return any(path_of(base) == "transformers.modeling_utils.PreTrainedModel" for base in type(module).__mro__)


def _predicate(only: Only) -> Predicate:
    if only is None:
        return lambda module, name: True
    if isinstance(only, str):
        only = [only]
    if callable(only):
        return only
    globs = list(only) if isinstance(only, Iterable) else None
    if globs is None or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(
            f"accelerate: only is not usable: got {only!r}; expected a predicate (module, name) -> bool, a glob, "
            "or a list of globs."
        )
    return lambda module, name: any(fnmatchcase(name, glob) for glob in globs)

"""speed: STRec against its dense backbone, time and memory, in turn in one run."""

from pathlib import Path

import torch

from vitkern.commands.timing import Timing, ratio, side_by_side
from vitkern.report import BadInput, memory, progress, seconds, table

_MOST, _MOST_LAYERS = 2**31 - 1, 1000
BASELINES = ("dense", "dense, as published")


def add_arguments(parser) -> None:
    parser.add_argument("--max-len", type=int, default=50, help="length of the sequences; the default is 50")
    parser.add_argument("--ks", type=int, nargs="+", metavar="K", help="k_1 .. k_L; the authors' unless given")
    parser.add_argument("--dim", dest="d", type=int, default=128, help="channels; the default is 128")
    parser.add_argument("--layers", type=int, default=8, help="layers; the default is 8")
    parser.add_argument("--heads", type=int, default=4, help="heads of attention; the default is 4")
    parser.add_argument("--items", type=int, default=1683, help="rows of the item table; the default is 1683")
    parser.add_argument("--batch", type=int, default=256, help="sequences of a step; the default is 256")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train", action="store_true", help="forward, loss and backward of fine-tuning")
    what.add_argument(
        "--graph", action="store_true",
        help="a forward in eval mode that keeps what a gradient would need, as the authors' own test of speed does",
    )  # fmt: skip
    parser.add_argument("--padded", action="store_true", help="sequences of all lengths, not full ones")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds to spend; the default is 20")
    parser.add_argument("--save", type=Path, help="write the figures there as JSON")


def run(arguments) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n, batch = arguments.max_len, arguments.batch
    sizes = (n, arguments.d, arguments.layers, arguments.heads, batch, arguments.items)
    if min(sizes) < 1:
        raise BadInput("a size is below 1; expected at least 1.")
    if max(sizes) > _MOST or arguments.layers > _MOST_LAYERS:
        raise BadInput(f"a size is {max(sizes)}; expected at most {_MOST:,}, and of layers {_MOST_LAYERS:,}.")
    if not 0 < arguments.budget < float("inf"):
        raise BadInput(f"--budget is {arguments.budget}; expected seconds above 0.")
    torch.manual_seed(0)
    models, ks = contenders(arguments, device)
    steps = {name: step(model, *inputs(arguments, device), arguments) for name, model in models.items()}
    timings = side_by_side(steps, device, budget=arguments.budget, progress=progress)
    record = {name: figures(name, timings) | dict(ks=list(ks[name])) for name in timings}

    what = "a training step" if arguments.train else "a forward with its graph" if arguments.graph else "inference"
    threads = torch.get_num_threads()
    print(
        f"{what}, batch {batch}, length {n}, d {arguments.d}, {arguments.layers} layers, on {device}, {threads} threads"
    )
    baselines = [name for name in BASELINES if name in timings]
    header = ("model", "rows", "time", "peak memory", *(f"time and memory to {name}" for name in baselines))
    print(table(header, [_row(name, found, baselines, n) for name, found in record.items()]))
    if arguments.save:
        from vitkern.commands.info import processor, versions
        from vitkern.strec.checkpoint import write_json

        plain = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | list)}
        found = dict(what=what, device=str(device), processor=processor(), threads=threads, versions=versions())
        write_json(arguments.save, found | dict(options=plain, models=record))
    return 0


def contenders(arguments, device: torch.device) -> tuple[dict, dict]:
    """Models and their k_l by name: STRec, the dense backbone, the backbone with its last layer for the last row alone,
    which is all that a prediction needs of it, and the first two as the authors compute them, who take no padding."""
    from vitkern.strec.model import STRec
    from vitkern.strec.published import AsPublished
    from vitkern.strec.room import check_room

    n, layers = arguments.max_len, arguments.layers
    kept = {"strec": arguments.ks, "dense": (n,) * layers, "dense, last row": (*(n,) * (layers - 1), 1)}
    try:
        sizes = dict(d=arguments.d, n_layers=layers, n_heads=arguments.heads, dropout=0.0)
        check_room(lambda: STRec(arguments.items + 1, n, ks=kept["dense"], **sizes))
        models = {name: STRec(arguments.items + 1, n, ks=ks, **sizes).to(device) for name, ks in kept.items()}
    except ValueError as error:
        raise BadInput(str(error)) from None
    ks = {name: model.ks for name, model in models.items()}
    for name in () if arguments.padded else ("strec", "dense"):
        models[f"{name}, as published"], ks[f"{name}, as published"] = AsPublished(models[name]), ks[name]
    return models, ks


def inputs(arguments, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Items and times (B, N) and targets (B,), the same at each call."""
    draw = torch.Generator().manual_seed(1)
    n, batch = arguments.max_len, arguments.batch
    seq = torch.randint(1, arguments.items + 1, (batch, n), generator=draw)
    if arguments.padded:
        seq = seq * (torch.arange(n) >= n - torch.randint(1, n + 1, (batch, 1), generator=draw))
    times = torch.randint(0, 10**6, (batch, n), generator=draw).sort(dim=1).values
    target = torch.randint(1, arguments.items + 1, (batch,), generator=draw)
    return seq.to(device), times.to(device), target.to(device)


def step(model, seq, times, target, arguments):
    """What is timed: a function without arguments."""
    from vitkern.strec.losses import full_softmax

    def train():
        model.zero_grad(set_to_none=True)
        full_softmax(model(seq, times), model.item_table(), target).backward()

    def graph():
        return model(seq, times)

    def infer():
        with torch.inference_mode():
            return model(seq, times) @ model.item_table().T

    model.train(arguments.train)
    return train if arguments.train else graph if arguments.graph else infer


def figures(name: str, timings: dict[str, Timing]) -> dict:
    """Of one contender: seconds, peak bytes, and for each baseline how many times as fast, with quartiles, and what
    part of its memory."""
    own, against = timings[name], {}
    for baseline in BASELINES:
        if other := timings.get(baseline):
            speed, *quartiles = ratio(other, own)
            part = own.peak / other.peak if own.peak is not None and other.peak else None
            against[baseline] = dict(speed=speed, quartiles=quartiles, memory=part)
    return dict(seconds=own.median, peak_bytes=own.peak, against=against)


def _row(name: str, found: dict, baselines: list[str], n: int) -> tuple[str, ...]:
    from vitkern.strec.form import density

    cells = []
    for baseline in baselines:
        speed, (low, high), part = (found["against"][baseline][key] for key in ("speed", "quartiles", "memory"))
        saved = "n/a" if part is None else f"{part - 1:+.0%}"
        cells.append(f"{1 / speed - 1:+.0%} ({1 / high - 1:+.0%} to {1 / low - 1:+.0%}), {saved}")
    return (
        name,
        f"{density(tuple(found['ks']), n):.0%}",
        seconds(found["seconds"]),
        memory(found["peak_bytes"]),
        *cells,
    )

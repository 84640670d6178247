"""speed: STRec against its dense backbone, time and memory, in turn in one run."""

from pathlib import Path

import torch

from vitkern.commands.timing import ratio, side_by_side
from vitkern.report import BadInput, memory, progress, seconds, table


def add_arguments(parser) -> None:
    parser.add_argument("--max-len", type=int, default=50)
    parser.add_argument("--ks", type=int, nargs="+", metavar="K", help="k_1 .. k_L; the authors' unless given")
    parser.add_argument("--dim", dest="d", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--items", type=int, default=1683, help="rows of the item table")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--train", action="store_true", help="forward, loss and backward of fine-tuning")
    parser.add_argument("--padded", action="store_true", help="sequences of all lengths, not full ones")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds to spend")
    parser.add_argument("--save", type=Path, help="write the figures there as JSON")


def run(arguments) -> int:
    """Contenders: STRec, the dense backbone, and the backbone with its last layer for the last row alone, which is all
    that a prediction needs of it."""
    from vitkern.models.strec import STRec
    from vitkern.models.strec_form import density
    from vitkern.strec.losses import full_softmax

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    n, layers, batch = arguments.max_len, arguments.layers, arguments.batch
    if min(n, layers, batch, arguments.items) < 1 or arguments.budget <= 0:
        raise BadInput("sizes and the budget have to be above 0.")
    full = {"strec": arguments.ks, "dense": (n,) * layers, "dense, last row": (*(n,) * (layers - 1), 1)}
    torch.manual_seed(0)
    try:
        sizes = dict(d=arguments.d, n_layers=layers, n_heads=arguments.heads, dropout=0.0)
        models = {name: STRec(arguments.items + 1, n, ks=ks, **sizes).to(device) for name, ks in full.items()}
    except ValueError as error:
        raise BadInput(str(error)) from None
    seq = torch.randint(1, arguments.items + 1, (batch, n), device=device)
    if arguments.padded:
        length = torch.randint(1, n + 1, (batch, 1), device=device)
        seq = seq * (torch.arange(n, device=device) >= n - length)
    times = torch.randint(0, 10**6, (batch, n), device=device).sort(dim=1).values
    target = torch.randint(1, arguments.items + 1, (batch,), device=device)

    def step(model):
        def train():
            model.zero_grad(set_to_none=True)
            full_softmax(model(seq, times), model.item_table(), target).backward()

        def infer():
            with torch.inference_mode():
                return model(seq, times) @ model.item_table().T

        model.train(arguments.train)
        return train if arguments.train else infer

    timings = side_by_side(
        {name: step(model) for name, model in models.items()}, device, budget=arguments.budget, progress=progress
    )
    dense, rows, record = timings["dense"], [], {}
    for name, timing in timings.items():
        speed, low, high = ratio(dense, timing)
        part = timing.peak / dense.peak if timing.peak is not None and dense.peak else None
        text = f"{speed:.2f}x ({low:.2f} to {high:.2f})"
        saved = "n/a" if part is None else f"{part - 1:+.0%}"
        kept = f"{density(models[name].ks, n):.0%}"
        rows.append((name, kept, seconds(timing.median), text, f"{1 / speed - 1:+.0%}", memory(timing.peak), saved))
        quartiles = [low, high]
        record[name] = dict(
            ks=list(models[name].ks), seconds=timing.median, speed=speed, quartiles=quartiles, peak_bytes=timing.peak
        )
    what, threads = "a training step" if arguments.train else "inference", torch.get_num_threads()
    print(f"{what}, batch {batch}, length {n}, d {arguments.d}, {layers} layers, on {device}, {threads} threads")
    print(table(("model", "rows", "time", "speed (quartiles)", "time", "peak memory", "memory"), rows))
    if arguments.save:
        from vitkern.strec.checkpoint import write_json

        plain = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | list)}
        found = dict(what=what, device=str(device), threads=threads, torch=torch.__version__)
        write_json(arguments.save, found | dict(options=plain, models=record))
    return 0

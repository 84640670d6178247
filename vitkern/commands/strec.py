"""strec: train, evaluate and serve a sequential recommender on an interaction log."""

import json
import os
import sys
from dataclasses import fields
from pathlib import Path

from vitkern.report import BadInput, near_matches, progress, table

_LONGEST_NAME = 100  # that is compared with others
_MOST = 2**31 - 1


def add_arguments(parser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="{" + ",".join(ACTIONS) + "}")
    for name, (summary, add, _) in ACTIONS.items():
        add(commands.add_parser(name, help=summary, description=summary))


def run(arguments) -> int:
    try:
        import safetensors  # noqa: F401
    except ImportError:
        raise BadInput('safetensors is not installed: pip install "vitkern[weights]".') from None
    try:
        return ACTIONS[arguments.action][2](arguments)
    except (MemoryError, OverflowError, RuntimeError) as error:
        from vitkern.strec.room import is_shortage

        if not is_shortage(error):
            raise
        raise BadInput(f"there is not enough memory: {str(error) or 'nothing more is known'}") from None


def _shown(path: Path) -> str:
    """A name that the terminal can show, whatever its bytes are."""
    return str(path).encode(sys.stdout.encoding or "utf-8", "backslashreplace").decode(sys.stdout.encoding or "utf-8")


def _add_log(parser, *, how: str) -> None:
    parser.add_argument("log", type=Path, help=f"CSV or TSV with user, item and timestamp columns, or .inter; {how}")
    for kind in ("user", "item", "timestamp"):
        parser.add_argument(f"--{kind}-column", help="its name in the header, where a common one does not fit")
    parser.add_argument(
        "--order", choices=("sort", "strict"), default="sort",
        help="events that are not in the order of time: sort them and say so, or refuse the log",
    )  # fmt: skip


def _add_train(parser) -> None:
    _add_log(parser, how="its last events validate and test")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--init", type=Path, help="folder of a run whose weights to start from: pretrain's, to finetune"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")
    parser.add_argument(
        "--checkpoint-every", type=int, default=0, metavar="STEPS", help="within an epoch too, besides at its end"
    )
    add_settings(parser)


def add_settings(parser) -> None:
    """One option for each field of `vitkern.strec.settings.Settings`."""
    from vitkern.strec.settings import Settings

    metavars = {"ks": "K", "alphas": "ALPHA", "ratio": "PART"}
    for field in fields(Settings):
        # torchrun takes --d for a beginning of options of its own.
        name = "--dim" if field.name == "d" else "--" + field.name.replace("_", "-")
        default, known = field.default, field.metadata["known"]
        if isinstance(default, bool):
            parser.add_argument(name, action="store_true", help=field.metadata["meaning"])
            continue
        many = isinstance(default, tuple)
        shown = " ".join(map(str, default)) if many else default
        kind = (int if field.name == "ks" else float) if many else type(default)
        parser.add_argument(
            name, dest=field.name, type=kind, nargs="+" if many else None, default=default,
            choices=known or None, metavar=metavars.get(field.name),
            help=field.metadata["meaning"] + (f"; the default is {shown}" if default != () else ""),
        )  # fmt: skip


def settings_of(arguments):
    """The settings that the options of `add_settings` say."""
    from vitkern.strec.settings import Settings

    return Settings.from_json({field.name: getattr(arguments, field.name) for field in fields(Settings)})


def _log(arguments, **options):
    from vitkern.strec.log import read_log

    columns = {kind: getattr(arguments, f"{kind}_column") for kind in ("user", "item", "timestamp")}
    log = read_log(arguments.log, columns=columns, order=arguments.order, **options)
    for note in log.notes:
        progress(f"note: {note}")
    return log


def _train(arguments) -> int:
    from vitkern.strec import checkpoint, distributed
    from vitkern.strec.plots import save_curves
    from vitkern.strec.serve import weights_for
    from vitkern.strec.train import Run

    settings, folder = settings_of(arguments), arguments.out
    if not arguments.resume:
        checkpoint.refuse_a_run(folder)  # at once; and once more when the folder is locked
    elif not os.path.lexists(folder / checkpoint.STATE):
        raise BadInput(f"there is no checkpoint in {folder} to resume.")
    if arguments.checkpoint_every < 0:
        raise BadInput(f"--checkpoint-every is {arguments.checkpoint_every}; expected 0 or more steps.")
    log = _log(arguments)
    weights = weights_for(settings, log, arguments.init) if arguments.init and not arguments.resume else None
    group = distributed.start()
    try:
        run = Run(settings, log, folder, group)
        if weights is not None:
            run.initialise(weights)
        metrics = run.train(proceed=arguments.resume, every=arguments.checkpoint_every, fresh=True)
        if group.first:
            if metrics["history"]:
                save_curves(folder / checkpoint.CURVES, metrics["history"])
            _print_metrics({settings.model: metrics["test"]}, f"test, {settings.split}")
            print(f"written to {_shown(folder)}")
    finally:
        distributed.stop(group)
    return 0


def _print_metrics(found: dict[str, dict], what: str) -> None:
    names = [name for name in next(iter(found.values())) if name != "count"]
    rows = [(model, *(f"{values[name]:.4f}" for name in names), values["count"]) for model, values in found.items()]
    print(table((what, *names, "ranked"), rows))


def _add_evaluate(parser) -> None:
    from vitkern.strec.data import SPLITS

    _add_log(parser, how="may be another than the one trained on")
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained run")
    parser.add_argument("--part", choices=("valid", "test"), default="test", help="what is ranked; the default is test")
    parser.add_argument("--split", choices=SPLITS, help="the run's own unless given")
    parser.add_argument("--exclude-seen", action="store_true", help="rank no item of the history")
    parser.add_argument("--unseen", choices=("error", "skip"), default="error", help="events with items it never saw")
    parser.add_argument("--json", type=Path, help="write the metrics there too")


def _evaluate(arguments) -> int:
    from vitkern.strec import checkpoint
    from vitkern.strec.data import Samples, split
    from vitkern.strec.distributed import Group, device
    from vitkern.strec.objective import Objective, evaluate
    from vitkern.strec.serve import load_run

    model, settings, items = load_run(arguments.run, device())
    log = _log(arguments, items=items, unseen=arguments.unseen)
    how = arguments.split or settings.split
    samples = Samples(log, split(log, how, settings.ratio)[arguments.part], settings.max_len)
    exclude = arguments.exclude_seen or settings.exclude_seen
    metrics = evaluate(Objective(model, settings.loss), samples, Group(0, 1, device()), exclude_seen=exclude)
    _print_metrics({settings.model: metrics}, f"{arguments.part}, {how}")
    if arguments.json:
        checkpoint.write_json(arguments.json, metrics | dict(part=arguments.part, split=how, exclude_seen=exclude))
    return 0


def _add_recommend(parser) -> None:
    _add_log(parser, how="holds the user's events")
    parser.add_argument("--run", type=Path, required=True, help="folder of a trained run")
    parser.add_argument("--user", required=True, nargs="+", help="as the log names them")
    parser.add_argument("-k", type=int, default=10, help="items for each")
    parser.add_argument("--include-seen", action="store_true", help="items of the history too")
    parser.add_argument("--unseen", choices=("error", "skip"), default="skip", help="events with items it never saw")


def _recommend(arguments) -> int:
    from vitkern.strec.serve import load_run, recommend

    model, _, items = load_run(arguments.run)
    log = _log(arguments, items=items, unseen=arguments.unseen)
    found = {}
    for user in arguments.user:
        if user not in log.users:
            known = [name for name in log.users[:10000] if len(name) <= _LONGEST_NAME]
            raise BadInput(f"the log holds no user {user!r}.{near_matches(user[:_LONGEST_NAME], known)}")
        found[user] = recommend(model, log, log.users.index(user), arguments.k, exclude_seen=not arguments.include_seen)
    print(json.dumps(found, indent=1, allow_nan=False))
    return 0


def _add_synthetic(parser) -> None:
    parser.add_argument("out", type=Path, help="CSV to write")
    parser.add_argument("--users", type=int, default=2000, help="how many; the default is 2000")
    parser.add_argument("--items", type=int, default=200, help="how many there are; the default is 200")
    parser.add_argument("--events", type=int, default=24, help="mean number for a user; the default is 24")
    parser.add_argument(
        "--memory", type=float, default=600.0, help="seconds in which an influence falls to 1 / e; the default is 600"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random; the default is 0")


def _synthetic(arguments) -> int:
    from vitkern.strec.synthetic import write_planted_log

    names = ("users", "items", "events", "memory", "seed")
    values = {name: getattr(arguments, name) for name in names}
    for name, least in (("users", 1), ("items", 2), ("events", 4), ("seed", 0)):
        if values[name] < least:
            raise BadInput(f"--{name} is {values[name]}; expected at least {least}.")
        if name != "seed" and values[name] > _MOST:
            raise BadInput(f"--{name} is {values[name]}; expected at most {_MOST:,}.")
    if not 0 < values["memory"] < 1e9:
        raise BadInput(f"--memory is {values['memory']}; expected seconds, more than 0 and less than 1e9.")
    print(f"wrote {write_planted_log(arguments.out, **values)} events to {_shown(arguments.out)}")
    return 0


def _add_demo(parser) -> None:
    from vitkern.commands.strec_demo import add_arguments as add

    add(parser)


def _demo(arguments) -> int:
    from vitkern.commands.strec_demo import run as demo

    return demo(arguments)


def _add_speed(parser) -> None:
    from vitkern.commands.strec_speed import add_arguments as add

    add(parser)


def _speed(arguments) -> int:
    from vitkern.commands.strec_speed import run as speed

    return speed(arguments)


ACTIONS = {
    "train": ("train a model on a log and test it", _add_train, _train),
    "evaluate": ("rank all items for the held-out events of a log", _add_evaluate, _evaluate),
    "recommend": ("items for users of a log, as JSON", _add_recommend, _recommend),
    "synthetic": ("write a log with a planted time decay", _add_synthetic, _synthetic),
    "speed": ("time STRec and its dense backbone side by side", _add_speed, _speed),
    "demo": ("all of it on a synthetic log, with a verdict", _add_demo, _demo),
}

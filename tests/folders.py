"""A small ViT of transformers as a folder, and the same folder with something wrong in it."""

import json
import os
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG, PROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
MARKER = "executed"


def write_vit(folder: Path) -> Path:
    import transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, **sizes)
    transformers.utils.logging.disable_progress_bar()
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size=dict(height=32, width=32)).save_pretrained(folder)
    return folder


def change(path: Path, **values) -> None:
    """Fields of a JSON file; None takes one away."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def weights(folder: Path, changed) -> None:
    """``changed(state dict)`` in place of the weights."""
    state = changed(load_file(folder / WEIGHTS))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def shard(folder: Path, kind: str = "safetensors") -> list[Path]:
    """The weights in two files, and an index of them."""
    state, names, weight_map = load_file(folder / WEIGHTS), [], {}
    whole = folder / (WEIGHTS if kind == "safetensors" else "pytorch_model.bin")
    for number in range(2):
        part = dict(list(state.items())[number::2])
        names.append(folder / f"{whole.stem}-{number}.{kind}")
        save_file(part, names[-1], metadata={"format": "pt"}) if kind == "safetensors" else torch.save(part, names[-1])
        weight_map |= dict.fromkeys(part, names[-1].name)
    (folder / WEIGHTS).unlink()
    (folder / f"{whole.name}.index.json").write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))
    return names


def _elsewhere(folder: Path) -> None:
    """The index names a file beside the folder, that is there."""
    moved = shard(folder)[1]
    moved.rename(folder.parent / moved.name)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(index.read_text().replace(moved.name, f"../{moved.name}"))


def _linked(folder: Path) -> None:
    moved = shard(folder)[1]
    moved.rename(folder.parent / moved.name)
    moved.symlink_to(folder.parent / moved.name)


def _packed(folder: Path) -> None:
    """A file of the index unpacks to 40 MiB."""
    whole = shard(folder, "bin")[1]
    with zipfile.ZipFile(whole) as source:
        content = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as target:
        for name, value in content.items():
            target.writestr(name, value)
        target.writestr("archive/data/999", bytes(40 << 20))


class _Growing:
    def __reduce__(self):
        return bytearray, (1 << 40,)


def _growing(folder: Path) -> None:
    whole = shard(folder, "bin")[1]
    torch.save(torch.load(whole) | {"notes": _Growing()}, whole)


UNREAD = {  # before transformers opens anything: what is wrong, and what is said
    "a shard beside the folder": (_elsewhere, "the index points outside its folder"),
    "a shard that is a link out of it": (_linked, "the index points outside its folder"),
    "a shard that is not there": (lambda f: shard(f)[1].unlink(), "a file of the index is missing"),
    "a shard that unpacks to more": (_packed, "the archive unpacks to more than a checkpoint"),
    "a shard that grows": (_growing, "the file makes more than it holds"),
}


def _index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text("[1, 2]")


def _code(folder: Path) -> None:
    """A checkpoint with code of its own."""
    change(folder / CONFIG, model_type="own", auto_map={"AutoConfig": "own.Config"})
    (folder / "own.py").write_text(f"open({str(folder / MARKER)!r}, 'w')\nclass Config: pass\n")


def _objects(folder: Path) -> None:
    """Weights that hold more than tensors."""
    (folder / WEIGHTS).unlink()
    torch.save({"a": Path("x")}, folder / "pytorch_model.bin")


def _pipe(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


REFUSED = {
    "an unknown activation": lambda f: change(f / CONFIG, hidden_act="nope"),
    "patches of no size": lambda f: change(f / CONFIG, patch_size=0),
    "layers that are no number": lambda f: change(f / CONFIG, num_hidden_layers="x"),
    "no kind of model": lambda f: change(f / CONFIG, model_type=None),
    "a configuration that is a list": lambda f: (f / CONFIG).write_text("[]"),
    "an index that is a list": _index,
    "code of its own": _code,
    "objects beside tensors": _objects,
    "a pipe for weights": _pipe,
    "weights that were cut off": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:2000]),
    "no weights": lambda f: (f / WEIGHTS).unlink(),
    "no preprocessing": lambda f: (f / PROCESSOR).unlink(),
    "preprocessing to another size": lambda f: change(f / PROCESSOR, size=dict(height=48, width=48)),
    "preprocessing without numbers": lambda f: change(f / PROCESSOR, image_mean="x"),
    "3 of its weights": lambda f: weights(f, lambda state: dict(list(state.items())[:3])),
    "weights of another model": lambda f: weights(f, lambda state: {f"x.{name}": v for name, v in state.items()}),
    "weights of another size": lambda f: change(f / CONFIG, image_size=64),
    "all weights but one": lambda f: weights(f, lambda state: dict(list(state.items())[:-1])),
}

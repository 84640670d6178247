"""A small ViT of transformers as a folder, and the same folder with something wrong in it."""

import json
import os
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

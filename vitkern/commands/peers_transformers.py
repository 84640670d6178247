"""Models of transformers: from a folder or the hub as their weights are, or of a published configuration."""

import os
from pathlib import Path

from torch import nn

from vitkern.commands.outcome import refused
from vitkern.commands.peer import PUBLISHED, RANDOM, Peer, unknown
from vitkern.models.archive import check_archive
from vitkern.models.files import INDEX, TORCH_SUFFIXES
from vitkern.models.shards import shards_of
from vitkern.report import BadInput, regular

READ = (".json", ".safetensors", ".bin")


def is_folder(name: str) -> bool:
    return os.path.isdir(name)  # pathlib's raises for names that are too long


def build(name: str, pretrained: bool) -> Peer:
    """
    Raises:
        BadInput: the name is none of those, or what it names cannot be loaded as a whole.
    """
    import transformers

    from vitkern.models import hub

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    notes = []
    if pretrained or is_folder(name):
        model, weights = _whole(name, notes), f"weights of {name}" if is_folder(name) else PUBLISHED
        processor = refused(
            name,
            lambda: transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False),
            "has no preprocessing that can be built",
        )
    elif name in hub.CONFIGS:
        (model, processor), weights = _from_configuration(name), RANDOM
        notes.append(f"built offline from the published configuration of {name}; nothing was downloaded")
    else:
        hint = " --pretrained lets transformers fetch it; a local directory works too."
        raise unknown(name, "the published configurations kept here", list(hub.CONFIGS), hint)

    def preprocess(image):
        return processor(image, return_tensors="pt")["pixel_values"][0]

    return Peer(name, "transformers", model, weights, _size(model.config), preprocess, notes)


def _whole(name: str, notes: list[str]) -> nn.Module:
    """The classifier, or where the checkpoint has none the model without it, with every weight from the checkpoint."""
    import transformers

    if is_folder(name):
        refused(name, lambda: _check_files(Path(name)), "cannot be loaded")
    lacking = []
    for kind in (transformers.AutoModelForImageClassification, transformers.AutoModel):
        options = dict(output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False)
        load = lambda kind=kind, options=options: kind.from_pretrained(name, **options)  # noqa: E731
        model, found = refused(name, load, "could not be built")
        missing = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
        if not missing:
            if unused := len(found["unexpected_keys"]):
                notes.append(f"{unused} weights of {name} have no place in {type(model).__name__}")
            return model
        lacking.append((type(model).__name__, len(missing), len(model.state_dict()), sorted(missing)[:3]))
    kind, count, total, first = lacking[0]
    raise BadInput(
        f"the weights of {name} are not those of the model: {count} of {total} of {kind} are missing or of another "
        f"shape ({', '.join(first)}{', ...' * (count > len(first))}); expected all of them."
    )


def _check_files(folder: Path) -> None:
    """transformers opens what an index names, wherever it lies, and unpacks what an archive declares: here that has to
    be what `vitkern.load_weights` reads.

    Raises:
        BadInput, ValueError, OSError: it is not.
    """
    found = [path for path in folder.iterdir() if path.suffix in READ and path.exists()]
    for path in found:
        regular(path, "a file of the folder")
    shards = [shard for path in found if path.name.endswith(INDEX) for shard in shards_of(path)]
    for path in {*found, *shards}:
        if path.suffix in TORCH_SUFFIXES:
            check_archive(path)


def _size(config) -> tuple[int, int]:
    """(img_h, img_w) of a configuration; 224 where it has none, as convolutional models do."""
    size = getattr(config, "image_size", None)
    if isinstance(size, list | tuple) and len(size) == 2:
        return tuple(size)
    return (size, size) if isinstance(size, int) else (224, 224)


def _from_configuration(name: str):
    """The model class that the checkpoint names, and the preprocessing published with it."""
    import transformers

    from vitkern.models import hub

    config = transformers.AutoConfig.for_model(**hub.config(name))
    model = getattr(transformers, config.architectures[0])(config)
    pixels, bicubic = config.image_size, 3
    square = dict(height=pixels, width=pixels)
    imagenet = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    if name.startswith("facebook/deit"):
        resized = {224: 256, 384: 438}[pixels]
        side = dict(height=resized, width=resized)
        processor = transformers.DeiTImageProcessor(size=side, crop_size=square, resample=bicubic, **imagenet)
    elif config.model_type in ("swin", "swinv2"):
        processor = transformers.ViTImageProcessor(size=square, resample=bicubic, **imagenet)
    else:
        processor = transformers.ViTImageProcessor(size=square)
    return model, processor

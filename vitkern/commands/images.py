"""Photographs: from files, or those that ship with scikit-learn or matplotlib."""

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

from vitkern.report import BadInput, regular

SAMPLES = {
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
    "matplotlib": ("mpl-data/sample_data/grace_hopper.jpg",),
}


def sample_photographs() -> list[Path]:
    """Photographs that installed packages ship; none where neither scikit-learn nor matplotlib is there."""
    for package, names in SAMPLES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            found = [Path(spec.submodule_search_locations[0], name) for name in names]
            if all(path.is_file() for path in found):
                return found
    return []


def read_images(paths: Sequence[Path]) -> list:
    """RGB images of 8 bits, upright as a viewer shows them.

    Raises:
        BadInput: Pillow is missing, or a file does not exist or is no image.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise BadInput(
            "Pillow is not installed, so images cannot be read. Install it with: pip install pillow"
        ) from None
    images = []
    for path in paths:
        try:
            with warnings.catch_warnings(), Image.open(regular(path, "the image")) as image:
                warnings.simplefilter("ignore")  # of a large image, and of odd metadata
                images.append(_eight_bits(ImageOps.exif_transpose(image)).convert("RGB"))
        except BadInput:
            raise
        except Exception as error:  # a damaged file raises whatever its decoder met: SyntaxError, struct.error, ...
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise BadInput(f"the image cannot be read: {path}: {reason}") from None
    return images


def _eight_bits(image):
    """Pillow cuts values off at 255 where it converts pixels of more bits: they become white.

    Raises:
        ValueError: pixels of 32 bits or of floats, which have no largest value.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
        raise ValueError(f"its pixels are of mode {image.mode}; expected integers of 8 or 16 bits")
    return Image.fromarray((values // 257).astype(np.uint8))

"""Photographs: from files, or those that ship with scikit-learn or matplotlib."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from vitkern.report import BadInput

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
    """RGB images.

    Raises:
        BadInput: Pillow is missing, or a file does not exist or is no image.
    """
    try:
        from PIL import Image
    except ImportError:
        raise BadInput(
            "Pillow is not installed, so images cannot be read. Install it with: pip install pillow"
        ) from None
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(image.convert("RGB"))
        except FileNotFoundError:
            raise BadInput(f"the image does not exist: {path}") from None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise BadInput(f"the image cannot be read: {path}: {str(error).splitlines()[0]}") from None
    return images

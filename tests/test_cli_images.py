"""Photographs are read as a viewer shows them, whatever their pixels are, and nothing but files is opened."""

import os

import numpy as np
import pytest
from PIL import Image

from vitkern.commands.images import read_images
from vitkern.report import BadInput

GREY = np.tile(np.arange(256, dtype=np.uint8), (8, 1))  # (8, 256), from black to white


@pytest.mark.parametrize("suffix", ("png", "tiff"))
def test_sixteen_bits_are_no_white_image(tmp_path, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(GREY.astype(np.uint16) * 257).save(path)
    image = read_images([path])[0]
    assert image.mode == "RGB" and (np.asarray(image) == GREY[..., None]).all()


@pytest.mark.parametrize("values", (GREY.astype(np.float32), GREY.astype(np.int32) * 2**20, -GREY.astype(np.int32)))
def test_pixels_without_a_largest_value_are_refused(tmp_path, values):
    path = tmp_path / "values.tiff"
    Image.fromarray(values).save(path)
    with pytest.raises(BadInput, match=r"values.tiff: its pixels are of mode [IF]; expected integers of 8 or 16 bits"):
        read_images([path])


def test_a_camera_that_was_held_upright_gives_an_upright_image(tmp_path):
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(GREY).save(path, exif=exif)
    image = read_images([path])[0]
    assert image.size == (8, 256) and (np.asarray(image)[:, 0, 0] == np.arange(256)).all()


@pytest.mark.parametrize("kind", ("pipe", "folder", "endless name"))
def test_what_is_no_file_is_refused_at_once(run, tmp_path, kind):
    path = tmp_path / ("x" * 300 if kind == "endless name" else "image.png")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    code, out, err = run("accelerate", "test_vit.r160_in1k", "--image", path)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert ("cannot be read" if kind == "endless name" else "is no regular file") in err


@pytest.mark.parametrize("kept", (8, 20, 60, 100))
def test_a_damaged_image_is_one_line(run, tmp_path, kept):
    whole, path = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.fromarray(np.random.randint(0, 255, (32, 32, 3), dtype=np.uint8)).save(whole)
    path.write_bytes(whole.read_bytes()[:kept])
    code, _, err = run("accelerate", "test_vit.r160_in1k", "--image", path)
    assert code == 2 and f"the image cannot be read: {path}" in err and err.count("\n") == 1

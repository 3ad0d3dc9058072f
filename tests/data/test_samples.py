from __future__ import annotations

import struct

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from automl_tl.data.samples import ImageSamples, TableSamples, TextSamples, image_flaw
from automl_tl.errors import DataError


def one(source, value_range=(0.0, 255.0)):
    return ImageSamples((source,), ("a",), value_range)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (1, 6, 8), (3, 6, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_arrays_of_every_shape_and_type_become_rgb(shape, dtype):
    array = np.ones(shape, dtype=dtype)
    pixels = one(array, (0.0, 1.0)).pixels(0, 16)
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 255).all()


def test_the_value_range_maps_to_black_and_white():
    array = np.array([[-1.0, 0.0], [1.0, 5.0]])
    assert one(array, (-1.0, 1.0)).pixels(0, 2)[..., 0].tolist() == [[0, 128], [255, 255]]


def test_bytes_are_kept_as_they_are():
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(one(array).pixels(0, 8), array)
    assert np.array_equal(one(np.moveaxis(array, -1, 0)).pixels(0, 8), array)


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (32, 16))
    pixels = one(stripes).pixels(0, 4)
    assert abs(pixels.astype(int) - 127).max() < 40


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_files_of_every_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(path)
    pixels = one(path).pixels(0, 8)
    assert pixels.shape == (8, 8, 3)
    assert pixels.min() > 250


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16)).save(path)
    assert (one(path).pixels(0, 4) == 128).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(tmp_path, mode):
    path = tmp_path / "a.png"
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))  # black below, as drawing programs leave it
    image.paste((0, 0, 0, 255), (0, 0, 4, 2))
    (image.quantize(4) if mode == "P" else image.convert(mode)).save(path)
    pixels = one(path).pixels(0, 4)
    assert (pixels[:2] == 0).all()
    assert (pixels[2:] == 255).all()


def test_a_color_that_is_named_transparent_lies_on_white(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (4, 4), 7).save(path, transparency=7)
    assert (one(path).pixels(0, 4) == 255).all()


def test_floating_point_pixels_are_a_flaw(tmp_path):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(path)
    assert "floating-point" in (image_flaw(path) or "")


def test_the_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4))
    image.paste((255, 255, 255), (0, 0, 4, 4))  # left half white
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    path = tmp_path / "a.png"
    image.save(path, exif=exif)
    pixels = one(path).pixels(0, 4)
    assert pixels[0, 0, 0] == 0
    assert pixels[0, 3, 0] == 255


def test_a_large_jpeg_is_the_same_but_for_rounding(tmp_path):
    path = tmp_path / "a.jpg"
    gradient = np.tile(np.linspace(0, 255, 512).astype(np.uint8), (512, 1))
    Image.fromarray(gradient).save(path, quality=95)
    exact = np.asarray(Image.fromarray(gradient).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(one(path).pixels(0, 32)[..., 0].astype(int) - exact).max() <= 4


def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        one(path).pixels(0, 8)


def test_an_array_of_another_shape_is_an_error():
    with pytest.raises(DataError, match=r"has shape \(2, 6, 8\), expected \(H, W\)"):
        one(np.zeros((2, 6, 8))).pixels(0, 8)


def test_median_side_is_of_the_shorter_sides(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20)).save(path)
    assert ImageSamples((path, np.zeros((40, 50)), np.zeros((3, 100, 90))), ("a", "b", "c")).median_side() == 40


def test_take_keeps_the_given_order():
    images = ImageSamples((np.zeros((2, 2)), np.ones((2, 2))), ("a", "b"), (0.0, 1.0)).take([1, 0])
    assert images.ids == ("b", "a")
    assert images.value_range == (0.0, 1.0)
    assert TextSamples(("x", "y", "z"), ("a", "b", "c")).take(np.array([2, 0])).texts == ("z", "x")
    table = TableSamples(pd.DataFrame({"v": [1.0, 2.0, 3.0]}), ("a", "b", "c")).take([2, 1])
    assert table.frame["v"].tolist() == [3.0, 2.0]
    assert table.frame.index.tolist() == [0, 1]
    assert len(table.take([])) == 0


def test_modalities():
    assert (ImageSamples.modality, TextSamples.modality, TableSamples.modality) == ("image", "text", "tabular")


def test_an_orientation_that_cannot_be_understood_is_left_aside(tmp_path, monkeypatch):
    def broken(image):
        raise struct.error("unpack requires a buffer of 4 bytes")

    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (9, 9, 9)).save(path)
    monkeypatch.setattr(ImageOps, "exif_transpose", broken)
    assert (one(path).pixels(0, 4) == 9).all()

"""Image files of every depth and mode, and resizing."""

import io

import numpy as np
import pytest
from PIL import Image

from tlray.data.images import read_image, read_pixels, resize
from tlray.errors import DataError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_png_of_8_and_16_bit(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "8.png")
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "16.png")
    for name in ("8.png", "16.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 1), RAMP[None])
        np.testing.assert_array_equal(read_image(tmp_path / name, 3), np.stack([RAMP] * 3))


def test_16_bit_is_rounded(tmp_path):
    Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 1).tolist() == [[[0, 0, 1, 255]]]


def test_colour_grey_in_colour_and_transparency(tmp_path):
    colour = np.stack([RAMP, RAMP.T, 255 - RAMP], 2)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png", 3), colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(read_image(tmp_path / "colour.png", 1)[0], np.asarray(Image.fromarray(colour).convert("L")))
    Image.fromarray(np.stack([RAMP] * 3, 2)).save(tmp_path / "grey.png")
    assert read_pixels(tmp_path / "grey.png").shape == (16, 16)
    Image.fromarray(np.dstack([colour, RAMP])).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png", 3), colour.transpose(2, 0, 1))


def test_jpeg_is_turned_as_its_tag_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 1).shape == (1, 16, 8)


def whole_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no image at all", whole_png()[:2000], whole_png()[:40]], ids=["empty", "text", "cut", "header"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png cannot be read"):
        read_image(path, 1)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no image file"):
        read_image(tmp_path / "none.png", 1)


def test_resize_keeps_what_fits_and_averages_what_shrinks():
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    assert resize(images, 16) is images
    checker = np.indices((1, 1, 32, 32)).sum(0).astype(np.uint8) % 2 * 200
    inside = resize(checker, 8)[0, 0, 1:-1, 1:-1]
    assert inside.shape == (6, 6)
    assert abs(inside.astype(int) - 100).max() <= 1, "not antialiased"
    assert resize(np.full((1, 1, 20, 30), 255, np.uint8), 28).min() == 255


def test_resize_of_a_batch_is_resize_of_each():
    images = np.random.default_rng(0).integers(0, 256, (7, 1, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(resize(images, 32), np.concatenate([resize(each[None], 32) for each in images]))

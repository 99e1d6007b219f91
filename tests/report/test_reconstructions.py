"""The picture of reconstructions: every image and its reconstruction is in it, pixel by pixel."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tlray.report.reconstructions import reconstruction_pairs


def embedded(svg: str) -> list[np.ndarray]:
    """Every picture within an SVG, uint8 [H, W, 3], in the order of drawing; upside down where the SVG turns it."""
    found = re.findall(r"data:image/png;base64,([\s\S]*?)\"", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in found]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 8])
def test_images_stand_over_their_reconstructions_with_the_figure_of_each_pair(channels, count):
    random = np.random.default_rng(count)
    images, rebuilt = random.integers(0, 256, (2, count, channels, 12, 12)) / 255
    svg = reconstruction_pairs("Reconstructions <of> toys", images, rebuilt, np.arange(count) / 10 + 0.0123)
    assert svg.startswith("<svg")
    assert 'aria-label="Reconstructions &lt;of> toys"' in svg
    for index in range(count):
        assert f"{index / 10 + 0.0123:.3f}" in svg
    pictures = embedded(svg)
    assert len(pictures) == 2 * count
    for expected in np.concatenate([images, rebuilt]):
        drawn = np.broadcast_to(np.round(expected * 255).transpose(1, 2, 0), (12, 12, 3))
        assert any(np.abs(each.astype(int) - way).max() <= 1 for each in pictures for way in (drawn, drawn[::-1]))
    assert "<script" not in svg

"""Pictures of what experiments vary hold what they are given."""

import numpy as np
import pytest

from tlray.registry import AUGMENTS
from tlray.report.lines import augmented, lines, square


def figure(mean: float, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
    return {"mean": mean, "low": low, "high": high}


def test_lines_name_every_series_and_tick_every_value():
    points = [(1.0, figure(0.5, 0.4, 0.6)), (4.0, figure(0.7, 0.6, 0.8)), (64.0, figure(0.9))]
    svg = lines("Shots", {"none": points, "mixup": points[:2]}, "images per class", "accuracy")
    for text in (">none<", ">mixup<", ">1<", ">4<", ">64<", ">images per class<", ">accuracy<"):
        assert text in svg
    assert svg.count("fill-opacity: 0.15") >= 2, "a band each"


def test_a_square_shows_every_mean_with_its_interval():
    cells = {(a, b): figure(0.1 * len(a) + 0.01 * len(b), 0.001 * len(a), 0.9) for a in ("x", "yy") for b in ("x", "yy")}
    svg = square("Square", ("x", "yy"), ("x", "yy"), cells, ("target", "source"))
    for (row, column), each in cells.items():
        assert f"{each['mean']:.3f}" in svg, (row, column)
    assert "0.002 to 0.900" in svg
    assert "0.110" in square("One seed", ("x",), ("x",), {("x", "x"): figure(0.11)}, ("", ""))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_has_a_row_and_mixed_images_have_soft_labels(channels):
    images = np.random.default_rng(0).integers(0, 256, (6, channels, 28, 28), dtype=np.uint8)
    names = [name for name in AUGMENTS.names() if not name.startswith("toy_")]
    svg = augmented("Augmentations", images, np.arange(6) % 2, ("benign", "malignant"), names)
    assert svg.count("data:image/png") == 6 * len(names)
    for name in names:
        assert f">{name}<" in svg
    assert svg.count(">benign<") >= 3
    assert " benign<" in svg, "a share of a label"

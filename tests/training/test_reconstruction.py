"""Metrics of reconstructed images against scikit-image called directly, and what a classifier has to do with them."""

import numpy as np
import pytest
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from tlray.config import LOWER_IS_BETTER, RECONSTRUCTION
from tlray.registry import METRICS
from tlray.training.metrics import evaluate
from tlray.training.reconstruction import averaged, image_metrics


def pairs(channels: int, count: int = 5, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """(images, noisier copies), float64 [N, C, H, W] in 0..1."""
    random = np.random.default_rng(channels)
    images = np.cumsum(random.normal(0, 0.05, (count, channels, size, size)), axis=3) % 1
    return images, np.clip(images + random.normal(0, 0.03, images.shape) * np.arange(1, count + 1)[:, None, None, None], 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_has_the_figures_of_scikit_image(channels):
    images, others = pairs(channels)
    rows = image_metrics(images, others)
    for row, one, two in zip(rows, images, others, strict=True):
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
        if channels == 1:
            similarity = structural_similarity(one[0], two[0], **settings)
        else:
            similarity = structural_similarity(one.transpose(1, 2, 0), two.transpose(1, 2, 0), channel_axis=2, **settings)
        expected = [mean_squared_error(one, two), peak_signal_noise_ratio(one, two, data_range=1), similarity]
        assert row == pytest.approx(expected, rel=1e-12)
    assert averaged(rows) == pytest.approx({"loss": rows[:, 0].mean(), **dict(zip(RECONSTRUCTION, rows.mean(axis=0), strict=True))})


def test_means_are_of_images_and_not_of_pixels_or_errors():
    images = np.zeros((2, 1, 16, 16))
    others = np.stack([np.full((1, 16, 16), 0.1), np.full((1, 16, 16), 0.01)])
    values = averaged(image_metrics(images, others))
    assert values["psnr"] == pytest.approx((20 + 40) / 2)
    assert values["mse"] == pytest.approx((0.01 + 0.0001) / 2)


def test_an_exact_image_has_figures_too():
    images, _ = pairs(1)
    assert image_metrics(images, images) == pytest.approx(np.array([[0, 100, 1]] * 5))


def test_no_images_have_no_rows_and_nan_stays_nan():
    assert image_metrics(np.zeros((0, 1, 16, 16)), np.zeros((0, 1, 16, 16))).shape == (0, 3)
    assert np.isnan(image_metrics(np.zeros((1, 1, 16, 16)), np.full((1, 1, 16, 16), np.nan))).all()


def test_they_are_registered_and_no_classifier_has_them():
    assert set(RECONSTRUCTION) <= set(METRICS.names())
    assert LOWER_IS_BETTER & set(RECONSTRUCTION) == {"mse"}
    for kind in ("binary", "multiclass", "ordinal"):
        assert not set(RECONSTRUCTION) & set(evaluate(kind, np.full((4, 2), 0.5), np.array([0, 1, 0, 1])))

"""How like two images are, of an autoencoder's reconstructions: by one definition everywhere.

Images lie in 0..1 (pixels / 255). Each metric is taken of each image, over all its pixels and channels, and averaged over the images.
"""

from typing import Any

import numpy as np

from tlray.config import RECONSTRUCTION
from tlray.registry import METRICS

DEFINITION = (
    "per image in 0..1, then the mean over images: mean squared error; PSNR = 10 log10(1 / MSE) in dB; SSIM as scikit-image's "
    "structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)"
)
"""What the figures are, in one sentence for those who read them."""

LEAST_MSE = 1e-10
"""Below it an error counts as this, so that an exact image has a PSNR of 100 dB and not an infinite one."""


@METRICS.register("mse")
def mse(image: np.ndarray, other: np.ndarray) -> float:
    """Mean squared difference of the pixels, in squared parts of full brightness: float [C, H, W] twice."""
    return float(np.mean((image - other) ** 2))


@METRICS.register("psnr")
def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(1 / mse); at most 100."""
    return float(10 * np.log10(1 / np.maximum(mse(image, other), LEAST_MSE)))


@METRICS.register("ssim")
def ssim(image: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity in -1..1 (Wang et al. 2004, doi:10.1109/TIP.2003.819861), mean over the channels: float [C, H, W] twice.

    Its window of 11 px must fit into the image.
    """
    from skimage.metrics import structural_similarity  # autoencoders alone need it

    settings: Any = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0, "channel_axis": 0}
    value: Any = structural_similarity(image, other, **settings)
    return float(value)


def image_metrics(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """mse, psnr and ssim of every pair of images, float64 [N, 3]: float [N, C, H, W] in 0..1 twice; N may be 0."""
    pairs = zip(np.asarray(images, np.float64), np.asarray(others, np.float64), strict=True)
    rows = [[METRICS[name](*pair) for name in RECONSTRUCTION] for pair in pairs]
    return np.array(rows, np.float64).reshape(-1, len(RECONSTRUCTION))


def averaged(rows: np.ndarray) -> dict[str, float]:
    """The mean over images of rows [N, 3] of `image_metrics`, by name, and the loss, which is the mean squared error."""
    values = dict(zip(RECONSTRUCTION, rows.mean(axis=0).tolist(), strict=True))
    return {"loss": values["mse"], **values}

"""A picture of what an autoencoder makes of images: inputs over reconstructions."""

import numpy as np
from matplotlib.axes import Axes

from tlray.report.style import Picture


def reconstruction_pairs(title: str, images: np.ndarray, rebuilt: np.ndarray, ssim: np.ndarray) -> str:
    """Inline SVG: each image over its reconstruction, and under each pair its SSIM.

    Args:
        title: what the picture shows.
        images, rebuilt: float [N, C, H, W] in 0..1, C in {1, 3}, N of at least 1.
        ssim: float [N].
    """
    count = len(images)
    with Picture(title, width=0.95 * count + 0.4, height=2.35, rows=2, columns=count, squeeze=False) as picture:
        for column in range(count):
            above, below = picture.axes[:, column]
            _show(above, images[column])
            _show(below, rebuilt[column])
            below.set_xlabel(f"{ssim[column]:.3f}", fontsize=8)
        picture.axes[0, 0].set_ylabel("input")
        picture.axes[1, 0].set_ylabel("rebuilt\n(SSIM below)")
    return picture.svg


def _show(axes: Axes, image: np.ndarray) -> None:
    """One image, pixel by pixel (interpolation none leaves the pixels to the viewer), grey or in colour."""
    axes.imshow(np.clip(image.transpose(1, 2, 0), 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)

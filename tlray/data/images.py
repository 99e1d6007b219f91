"""Reading image files and resizing batches of images."""

import warnings
from pathlib import Path

import numpy as np

from tlray.cache import DAMAGED, ordinary
from tlray.errors import DataError

RESAMPLING = "bilinear, antialiased, to a square"
"""How every image reaches the network's size, for results and model cards."""


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """An image file as uint8 [C, H, W] with C = `channels`, 1 or 3.

    PNG or JPEG, 8 or 16 bit (65535 becomes 255), turned as its EXIF tag says, transparency dropped; grey is repeated to 3 channels,
    colour becomes luma in 1. Raises DataError with the path when it is no such image.
    """
    image = read_pixels(path)
    if image.ndim == 2:
        return np.repeat(image[None], channels, axis=0)
    return image.transpose(2, 0, 1) if channels == 3 else luma(image)[None]


def read_pixels(path: str | Path) -> np.ndarray:
    """An image file as uint8 [H, W] when it is grey (also when stored as colour), else [H, W, 3]."""
    from PIL import Image, ImageOps

    try:
        ordinary(path)
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path, formats=("PNG", "JPEG")) as file,
        ):
            if file.mode.startswith("I"):
                return narrow(np.clip(np.asarray(ImageOps.exif_transpose(file)), 0, 65535).astype(np.uint16))
            grey = file.mode in ("1", "L", "LA")
            pixels = np.asarray(ImageOps.exif_transpose(file).convert("L" if grey else "RGB"))
    except FileNotFoundError:
        raise DataError(f"there is no image file {path}") from None
    except (*DAMAGED, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a PNG or JPEG image: {str(error).rstrip('.')}") from None
    return pixels[..., 0] if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else pixels


def luma(image: np.ndarray) -> np.ndarray:
    """uint8 [..., H, W, 3] -> [..., H, W], ITU-R 601-2 luma as in Pillow."""
    weights = np.array([19595, 38470, 7471], np.uint32)
    return ((image.astype(np.uint32) @ weights + 0x8000) >> 16).astype(np.uint8)


def narrow(image: np.ndarray) -> np.ndarray:
    """uint16 -> uint8 of the same shape, 65535 to 255, rounded."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, C, H, W] -> uint8 [N, C, size, size], bilinear, antialiased, rounded; the same array when the size is right."""
    if images.shape[2:] == (size, size):
        return images
    import torch
    import torch.nn.functional as functional

    out = np.empty((*images.shape[:2], size, size), np.uint8)
    rows = max(1, (1 << 24) // max(1, images[:1].size))
    for start in range(0, len(images), rows):
        batch = torch.tensor(images[start : start + rows]).float()
        batch = functional.interpolate(batch, (size, size), mode="bilinear", align_corners=False, antialias=True)
        out[start : start + rows] = batch.round().clamp(0, 255).byte().numpy()
    return out

"""Random changes of training images: one call a batch, each image its own change.

Each is registered as a function (images float32 [N, C, H, W] from 0 to 255, targets float [N, K], generator on the same device) ->
(images, targets), and draws from `generator` alone, so that a resumed training sees the same pictures.
"""

import math

import torch
import torch.nn.functional as functional
from torch import Generator, Tensor

from tlray.registry import AUGMENTS

SHIFT = 1 / 8
"""Largest translation as a share of the image's side."""
DEGREES = 10.0
SCALE = 0.1


@AUGMENTS.register("none")
def none(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """The images as they are."""
    return images, targets


@AUGMENTS.register("flip")
def flip(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Left and right exchanged in half of the images."""
    flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images), targets


@AUGMENTS.register("shift")
def shift(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Moved by whole pixels, up to 1/8 of the side each way; the edge is filled by reflection, as black frames would be a cue."""
    count, _, height, width = images.shape
    rows = _moved(height, count, images, generator)
    columns = _moved(width, count, images, generator)
    first = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[first, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous(), targets


def _moved(side: int, count: int, images: Tensor, generator: Generator) -> Tensor:
    """int64 [N, side]: from which row each row comes, per image."""
    most = int(side * SHIFT)
    by = torch.randint(-most, most + 1, (count, 1), generator=generator, device=images.device)
    index = (torch.arange(side, device=images.device) + by).abs()
    return torch.where(index >= side, 2 * (side - 1) - index, index)


@AUGMENTS.register("flip_shift")
def flip_shift(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """`flip`, then `shift`."""
    return shift(*flip(images, targets, generator), generator)


@AUGMENTS.register("affine")
def affine(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Turned by up to 10 degrees, scaled by .9 to 1.1, moved by up to 1/8 of the side; bilinear, the edge filled by reflection."""
    count = len(images)
    drawn = torch.rand(count, 4, generator=generator, device=images.device) * 2 - 1
    angle, scale = drawn[:, 0] * math.radians(DEGREES), 1 + drawn[:, 1] * SCALE
    cosine, sine, move = angle.cos() / scale, angle.sin() / scale, drawn[:, 2:] * 2 * SHIFT
    matrix = torch.stack([cosine, -sine, move[:, 0], sine, cosine, move[:, 1]], 1).reshape(count, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False).to(images.dtype)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False), targets

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
"""Largest turn of `affine`."""
TURN = 15.0
"""Largest turn of `rotate`."""
SCALE = 0.1
ERASED = (0.05, 0.25)
"""Smallest and largest share of the image in the rectangle of `erase`, before it is cut off at the edges."""


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
    return _warped(images, torch.stack([cosine, -sine, move[:, 0], sine, cosine, move[:, 1]], 1)), targets


@AUGMENTS.register("rotate")
def rotate(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Turned by up to 15 degrees about the centre; bilinear, the edge filled by reflection."""
    angle = (torch.rand(len(images), generator=generator, device=images.device) * 2 - 1) * math.radians(TURN)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _warped(images, torch.stack([cosine, -sine, zero, sine, cosine, zero], 1)), targets


@AUGMENTS.register("erase")
def erase(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """In half of the images a rectangle of up to a quarter of the area takes the image's mean (Zhong et al. 2020, arXiv:1708.04896)."""
    count = len(images)
    drawn = torch.rand(count, 2, generator=generator, device=images.device)
    share = ERASED[0] + drawn[:, 0] * (ERASED[1] - ERASED[0])
    inside = _boxes(images, share, generator) & (drawn[:, 1] < 0.5)[:, None, None]
    return torch.where(inside[:, None], images.mean((2, 3), keepdim=True), images), targets


@AUGMENTS.register("mixup")
def mixup(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Each image blended with another one of the batch, labels likewise; each weight uniform in 0..1 (Zhang et al. 2018, arXiv:1710.09412).

    A batch of one has no other and stays as it is.
    """
    partner = _partners(images, generator)
    weight = torch.rand(len(images), generator=generator, device=images.device)
    blended = weight[:, None, None, None] * images + (1 - weight)[:, None, None, None] * images[partner]
    return blended, _blended(targets, partner, weight)


@AUGMENTS.register("collage")
def collage(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """A rectangle of each image replaced by the same place of another one of the batch, labels weighted by area.

    The rectangle's share of the image is uniform in 0..1 before it is cut off at the image's edges (CutMix, Yun et al. 2019,
    arXiv:1905.04899). A batch of one has no other and stays as it is.
    """
    partner = _partners(images, generator)
    inside = _boxes(images, torch.rand(len(images), generator=generator, device=images.device), generator)
    kept = 1 - inside.to(torch.float32).mean((1, 2))
    return torch.where(inside[:, None], images[partner], images), _blended(targets, partner, kept)


def _partners(images: Tensor, generator: Generator) -> Tensor:
    """int64 [N]: for each image another one of the batch, never itself (but in a batch of one)."""
    count = len(images)
    step = torch.randint(1, max(2, count), (count,), generator=generator, device=images.device)
    return (torch.arange(count, device=images.device) + step) % max(1, count)


def _blended(targets: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
    """Soft labels [N, K]: `weight` [N] of the image's own, the rest of its partner's."""
    weight = weight.to(targets.dtype)[:, None]
    return weight * targets + (1 - weight) * targets[partner]


def _boxes(images: Tensor, share: Tensor, generator: Generator) -> Tensor:
    """bool [N, H, W]: inside a rectangle of `share` [N] of the image, of its shape, centred anywhere in it, cut off at its edges."""
    count, _, height, width = images.shape
    centre = torch.rand(count, 2, generator=generator, device=images.device)
    inside = []
    for axis, side in enumerate((height, width)):
        half, middle = side * share.sqrt() / 2, centre[:, axis] * side
        at = torch.arange(side, device=images.device) + 0.5
        inside.append((at > (middle - half)[:, None]) & (at < (middle + half)[:, None]))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _warped(images: Tensor, rows: Tensor) -> Tensor:
    """The images [N, C, H, W] seen through one 2 x 3 matrix each (float [N, 6]); bilinear, the edge filled by reflection."""
    grid = functional.affine_grid(rows.reshape(-1, 2, 3), list(images.shape), align_corners=False).to(images.dtype)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

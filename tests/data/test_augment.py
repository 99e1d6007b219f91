"""Every registered augmentation, and what each does to a picture."""

import pytest
import torch

from tlray.data.augment import affine, flip, shift
from tlray.registry import AUGMENTS


def batch(count: int = 32, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=generator) * 255, torch.rand(count, 2, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


OURS = [name for name in AUGMENTS.names() if not name.startswith("toy_")]
"""Those that tests registered to break something are left out."""


@pytest.mark.parametrize("name", OURS)
def test_every_augmentation_keeps_form_range_and_follows_its_generator(name):
    images, targets = batch()
    before = images.clone()
    changed, still = AUGMENTS[name](images, targets, seeded())
    assert changed.shape == images.shape
    assert changed.dtype == torch.float32
    assert changed.is_contiguous()
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert still.shape == targets.shape
    assert torch.equal(images, before), "the batch itself is left alone"
    assert torch.equal(AUGMENTS[name](images, targets, seeded())[0], changed)
    differs = not torch.equal(AUGMENTS[name](images, targets, seeded(1))[0], changed)
    assert differs == (name != "none")


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("size", [8, 13])
def test_small_and_odd_sizes(name, size):
    images, targets = batch(1, size)
    assert AUGMENTS[name](images, targets, seeded())[0].shape == images.shape


def test_flip_mirrors_about_half_of_the_images():
    images, targets = batch(200)
    changed, _ = flip(images, targets, seeded())
    flipped = [torch.equal(a, b) for a, b in zip(changed, images.flip(3), strict=True)]
    same = [torch.equal(a, b) for a, b in zip(changed, images, strict=True)]
    assert sum(flipped) + sum(same) == 200
    assert 70 < sum(flipped) < 130


def test_shift_moves_each_image_by_its_own_whole_pixels():
    rows = torch.arange(28.0).reshape(1, 1, 28, 1).expand(300, 1, 28, 28)
    columns = rows.transpose(2, 3)
    moved = shift(torch.cat([rows, columns], 1), torch.zeros(300, 1), seeded())[0]
    down, right = moved[:, 0, 10, 5] - 10, moved[:, 1, 5, 10] - 10
    assert set(down.tolist()) == set(right.tolist()) == set(range(-3, 4))
    assert not torch.equal(down, right)
    first = moved[down == -2][0, 0, :, 0]
    assert first[:5].tolist() == [2, 1, 0, 1, 2], "the edge is mirrored"
    last = moved[down == 2][0, 0, :, 0]
    assert last[-4:].tolist() == [26, 27, 26, 25]


def test_affine_turns_scales_and_moves_within_its_limits():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    ramps = torch.stack([(x + 1) * 100, (y + 1) * 100]).expand(200, 2, 65, 65)
    inside = affine(ramps, torch.zeros(200, 1), seeded())[0][:, :, 24:41, 24:41] / 100 - 1
    step = 16 * 2 / 64
    cosine, sine = (inside[:, 0, 8, -1] - inside[:, 0, 8, 0]) / step, (inside[:, 1, 8, -1] - inside[:, 1, 8, 0]) / step
    angle, scale = torch.rad2deg(torch.atan2(sine, cosine)), 1 / torch.hypot(cosine, sine)
    assert 8 < angle.abs().max() < 10.1
    assert angle.min() < -5
    assert angle.max() > 5
    assert 0.89 < scale.min() < 0.93
    assert 1.07 < scale.max() < 1.11
    centre = inside[:, :, 8, 8]
    assert 0.2 < centre.abs().max() < 0.26, "1/8 of the side is 0.25 of the half-side"

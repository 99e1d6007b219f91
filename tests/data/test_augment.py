"""Every registered augmentation, and what each does to a picture."""

import pytest
import torch

from tlray.data.augment import affine, collage, erase, flip, mixup, rotate, shift
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


def test_rotate_turns_by_up_to_fifteen_degrees_and_moves_nothing():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    ramps = torch.stack([(x + 1) * 100, (y + 1) * 100]).expand(200, 2, 65, 65)
    inside = rotate(ramps, torch.zeros(200, 1), seeded())[0][:, :, 24:41, 24:41] / 100 - 1
    angle = torch.rad2deg(torch.atan2(inside[:, 1, 8, -1] - inside[:, 1, 8, 0], inside[:, 0, 8, -1] - inside[:, 0, 8, 0]))
    assert 13 < angle.max() < 15.1
    assert -15.1 < angle.min() < -13
    assert inside[:, :, 8, 8].abs().max() < 1e-3


def test_erase_covers_one_rectangle_of_half_of_the_images_with_their_mean():
    images, targets = batch(400)
    changed, still = erase(images, targets, seeded())
    assert torch.equal(still, targets)
    touched = (changed != images).any(1)
    areas = touched.float().mean((1, 2))
    assert 150 < (areas > 0).sum() < 250
    assert areas.max() <= 0.28
    for image, mask, before in zip(changed, touched, images, strict=True):
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all(), "a whole rectangle"
            torch.testing.assert_close(image[:, mask], before.mean((1, 2))[:, None].expand(3, int(mask.sum())))


def numbered(count: int, size: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Images each of one grey value, its own number, with one-hot labels of that number."""
    return torch.arange(float(count)).reshape(count, 1, 1, 1).expand(count, 1, size, size).clone(), torch.eye(count)


@pytest.mark.parametrize("mixed", [mixup, collage])
@pytest.mark.parametrize("count", [2, 3, 64])
def test_mixing_takes_another_image_never_the_same(mixed, count):
    images, targets = numbered(count)
    own = torch.stack([mixed(images, targets, seeded(seed))[1].diagonal() for seed in range(20)])
    assert (own < 1).float().mean() > 0.9, "with itself the whole weight would stay with its own label"
    assert torch.allclose(mixed(images, targets, seeded())[1].sum(1), torch.ones(count))
    assert ((mixed(images, targets, seeded())[1] > 0).sum(1) <= 2).all()


def test_mixup_blends_pixels_and_labels_by_one_weight_per_image():
    images, targets = numbered(200)
    blended, soft = mixup(images, targets, seeded())
    expected = soft @ torch.arange(200.0)
    torch.testing.assert_close(blended, expected.reshape(200, 1, 1, 1).expand_as(blended), rtol=1e-4, atol=1e-3)
    weights = soft.diagonal()
    assert weights.unique().numel() > 190, "a weight for each image"
    assert weights.min() < 0.1
    assert weights.max() > 0.9


def test_collage_labels_weigh_by_area():
    images, targets = numbered(200)
    pieced, soft = collage(images, targets, seeded())
    for number, (image, label) in enumerate(zip(pieced, soft, strict=True)):
        values, counts = image.unique(return_counts=True)
        assert len(values) <= 2
        for value, share in zip(values.long().tolist(), (counts / 28**2).tolist(), strict=True):
            assert label[value] == pytest.approx(share, abs=1e-6)
        partner = (image[0] != number).nonzero()
        if len(partner):
            (top, left), (bottom, right) = partner.min(0).values, partner.max(0).values
            assert (image[0, top : bottom + 1, left : right + 1] != number).all(), "one rectangle"
    areas = 1 - soft.diagonal()
    assert areas.min() < 0.05
    assert areas.max() > 0.6


@pytest.mark.parametrize("mixed", [mixup, collage])
def test_a_batch_of_one_has_no_partner_and_stays(mixed):
    images, targets = batch(1)
    changed, soft = mixed(images, targets, seeded())
    torch.testing.assert_close(changed, images)
    torch.testing.assert_close(soft, targets)


@pytest.mark.parametrize("mixed", [mixup, collage])
def test_mixing_keeps_multilabel_targets_in_range(mixed):
    images, _ = batch(16)
    findings = (torch.rand(16, 5, generator=seeded(3)) < 0.5).float()
    soft = mixed(images, findings, seeded())[1]
    assert soft.min() >= 0
    assert soft.max() <= 1

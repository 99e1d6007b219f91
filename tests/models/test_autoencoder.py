"""The autoencoder: every backbone mirrored at every size, grey and colour, at a price near the encoder's."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tlray.errors import ConfigError, DataError, WeightsError
from tlray.models.autoencoder import build_autoencoder, decoder, stage_shapes
from tlray.models.backbones import build_backbone
from tlray.registry import BACKBONES

PLAIN = ((0.5,), (0.5,))


def pixels(count: int, channels: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", BACKBONES.names())
@pytest.mark.parametrize("size", [28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_out_as_they_went_in(name, size, channels):
    model = build_autoencoder(name, channels, size, 0.0, *PLAIN)
    drawn = model(pixels(2, channels, size))
    assert drawn.shape == (2, channels, size, size)
    assert drawn.dtype == torch.float32
    assert 0 <= drawn.min() < drawn.max() <= 1
    drawn.sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in model.head.parameters())


@pytest.mark.parametrize("name", BACKBONES.names())
@pytest.mark.parametrize("size", [16, 20, 33, 45])
def test_odd_sizes_are_met_to_the_pixel(name, size):
    with torch.no_grad():
        assert build_autoencoder(name, 1, size, 0.0, *PLAIN).eval()(pixels(1, 1, size)).shape == (1, 1, size, size)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_an_empty_batch_passes_with_zero_gradients(name):
    model = build_autoencoder(name, 1, 28, 0.0, *PLAIN)
    drawn = model(pixels(0, 1, 28))
    assert drawn.shape == (0, 1, 28, 28)
    drawn.sum().backward()
    assert all(each.grad is not None and not each.grad.any() for each in model.parameters())


@pytest.mark.parametrize("name", BACKBONES.names())
def test_the_decoder_mirrors_the_stages(name):
    backbone = build_backbone(name, 1, 0.0)
    shapes = stage_shapes(backbone, 64)
    assert shapes[0] == (backbone.channels, 64)
    x = torch.zeros(1, *shapes[-1], shapes[-1][1])
    sides = []
    with torch.no_grad():
        for layer in decoder(shapes, 3):
            x = layer(x)
            sides.append(x.shape[-1])
    assert sides[::2] == sides[1::2] == [side for _, side in reversed(shapes[:-1])]
    assert x.shape[1] == 3


@pytest.mark.parametrize(("name", "size"), [("small_cnn", 28), ("mobilenet_v2", 32), ("resnet18", 28), ("resnet50", 28), ("resnet50", 64)])
def test_the_decoder_costs_little_more_than_the_encoder_at_most(name, size):
    model = build_autoencoder(name, 1, size, 0.0, *PLAIN).eval()
    images = model.normalise(pixels(1, 1, size))
    operations = []
    with torch.no_grad():
        maps = model.backbone.forward_stages(images)
        for part, given in ((model.backbone.forward_stages, images), (model.head, maps)):
            with FlopCounterMode(display=False) as counter:
                part(given)
            operations.append(counter.get_total_flops())
    assert operations[1] < 1.6 * operations[0]


def test_small_cnn_has_its_exact_mirror_image_at_28_px():
    convolutions = list(build_autoencoder("small_cnn", 1, 28, 0.0, *PLAIN).head)[::2]
    assert [(each.kernel_size, each.stride, each.padding) for each in convolutions] == [((6, 6), (2, 2), (0, 0))] * 2  # type: ignore[union-attr]


@pytest.mark.parametrize("training", [True, False])
def test_looking_at_the_shapes_leaves_the_network_and_the_generator_as_they_were(training):
    backbone = build_backbone("resnet18", 3, 0.0).train(training)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    stage_shapes(backbone, 28)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert all(module.training is training for module in backbone.modules())


def test_it_looks_like_a_classifier_to_a_training():
    model = build_autoencoder("small_cnn", 3, 28, 0.3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)).eval()
    images = pixels(2, 3, 28)
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}
    maps = model.backbone.forward_stages(model.normalise(images))
    assert torch.equal(model(images), model.head(model.pool(maps)))
    assert model.double()(images).dtype == torch.float64


def test_a_size_that_is_too_small_channels_that_do_not_fit_and_a_wrong_normalisation_are_refused():
    with pytest.raises(ConfigError, match="at least 16 px, not 12"):
        build_autoencoder("small_cnn", 1, 12, 0.0, *PLAIN)
    with pytest.raises(DataError, match="2 channels"):
        build_autoencoder("small_cnn", 3, 28, 0.0, *PLAIN)(pixels(1, 2, 28))
    with pytest.raises(WeightsError, match="3 channels, but small_cnn takes 1"):
        build_autoencoder("small_cnn", 1, 28, 0.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.1))

"""The classifier: stored pixels in, logits out, for every backbone and kind."""

import pytest
import torch

from tlray.errors import DataError, WeightsError
from tlray.models.classifier import build_classifier, describe
from tlray.models.kinds import KINDS
from tlray.registry import BACKBONES

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)


@pytest.mark.parametrize("name", BACKBONES.names())
@pytest.mark.parametrize("kind", KINDS)
def test_stored_pixels_give_logits(name, kind):
    model = build_classifier(name, kind, 4, 1, 0.1, (0.5,), (0.5,))
    logits = model(torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8))
    assert logits.shape == (3, 3 if kind == "ordinal" else 4)
    model(torch.zeros(0, 1, 28, 28, dtype=torch.uint8)).sum().backward()


def test_forward_is_head_of_pool_of_stages_of_normalised():
    model = build_classifier("small_cnn", "binary", 2, 3, 0.5, MEAN, STD).eval()
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8)
    backbone = model.backbone
    assert torch.equal(model(images), model.head(backbone.pool(backbone.forward_stages(model.normalise(images)))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalise_centres_and_scales_each_channel(dtype):
    model = build_classifier("small_cnn", "binary", 2, 3, 0.0, MEAN, STD)
    images = torch.randint(0, 256, (2, 3, 4, 5)).to(dtype)
    expected = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(model.normalise(images), expected, rtol=1e-5, atol=1e-5)


def test_grey_is_repeated_to_three_channels():
    model = build_classifier("resnet18", "binary", 2, 1, 0.0, MEAN, STD)
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(model.normalise(grey), model.normalise(grey.expand(-1, 3, -1, -1)))


def test_two_channels_are_refused():
    model = build_classifier("resnet18", "binary", 2, 3, 0.0, MEAN, STD)
    with pytest.raises(DataError, match="2 channels"):
        model(torch.zeros(1, 2, 28, 28))


def test_normalisation_of_other_channels_is_refused():
    with pytest.raises(WeightsError, match="3 channels, but small_cnn takes 1"):
        build_classifier("small_cnn", "binary", 2, 1, 0.0, MEAN, STD)


def test_double_precision_reaches_the_logits():
    model = build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.5,), (0.5,)).double()
    assert model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).dtype == torch.float64


def test_normalisation_is_no_part_of_the_state_and_dropout_reaches_both_places():
    model = build_classifier("small_cnn", "binary", 2, 1, 0.3, (0.5,), (0.5,))
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}
    dropouts = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d)]
    assert dropouts == [0.3, 0.3]


def test_describe_counts_parameters_and_bytes():
    model = build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.5,), (0.5,))
    assert describe(model) == {"parameters": 208 + 3216 + 514, "megabytes": pytest.approx(4 * 3938 / 1e6)}
    assert describe(build_classifier("resnet18", "multiclass", 1000, 3, 0.0, MEAN, STD))["parameters"] == 11_689_512

"""Every backbone: stages that cover it, sizes it takes, empty batches, torchvision's numbers."""

import pytest
import torch
from torchvision import models

from tlray.errors import ConfigError
from tlray.models.backbones import build_backbone
from tlray.registry import BACKBONES

BUILT_IN = ["resnet18", "resnet50", "mobilenet_v2", "small_cnn"]
TORCHVISION = ["resnet18", "resnet50", "mobilenet_v2"]


@pytest.fixture(scope="module", params=BUILT_IN)
def backbone(request):
    torch.manual_seed(0)
    return build_backbone(request.param, 1, 0.0)


def test_the_built_in_backbones_are_registered():
    assert set(BUILT_IN) <= set(BACKBONES.names())


def test_stages_are_the_ordered_children_and_hold_every_tensor(backbone):
    assert tuple(name for name, _ in backbone.named_children()) == backbone.stage_names
    assert {key.split(".")[0] for key in backbone.state_dict()} == set(backbone.stage_names)


def test_stages_cut_at_any_boundary_give_the_whole(backbone):
    backbone.eval()
    images = torch.randn(3, backbone.channels, 28, 28)
    with torch.no_grad():
        whole = backbone(images)
        assert whole.shape == (3, backbone.num_features)
        for boundary in range(len(backbone.stage_names) + 1):
            prefix = backbone.forward_stages(images, 0, boundary)
            before = prefix.clone()
            assert torch.equal(backbone.pool(backbone.forward_stages(prefix, boundary)), whole)
            # a later stage that worked in place would spoil a cached prefix
            assert torch.equal(prefix, before)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_passes_with_zero_gradients(backbone, training):
    backbone.train(training).zero_grad()
    statistics = {key: value.clone() for key, value in backbone.named_buffers() if "running" in key}
    features = backbone(torch.zeros(0, backbone.channels, 28, 28))
    assert features.shape == (0, backbone.num_features)
    features.sum().backward()
    assert all(each.grad is not None and not each.grad.any() for each in backbone.parameters())
    buffers = dict(backbone.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in statistics.items())


@pytest.mark.parametrize("size", [8, 15, 16, 28, 45])
def test_sizes_pass_or_are_refused_in_one_sentence(backbone, size):
    backbone.eval()
    images = torch.zeros(2, backbone.channels, size, size)
    if size < backbone.min_size:
        with pytest.raises(ConfigError, match=rf"{backbone.name} needs images of at least 16 px, not {size}"):
            backbone(images)
    else:
        with torch.no_grad():
            assert backbone(images).shape == (2, backbone.num_features)


def test_only_small_cnn_refuses_small_images(backbone):
    assert backbone.min_size == (16 if backbone.name == "small_cnn" else 1)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_keys_are_torchvisions_and_give_its_numbers(name):
    torch.manual_seed(0)
    theirs = models.get_model(name, weights=None).eval()
    ours = build_backbone(name, 3, 0.0).eval()
    state = theirs.state_dict()
    assert {"fc.weight", "fc.bias", "classifier.1.weight", "classifier.1.bias"} >= set(state) - set(ours.torchvision_keys.values())
    assert set(ours.torchvision_keys) == set(ours.state_dict())
    ours.load_state_dict({key: state[other] for key, other in ours.torchvision_keys.items()})
    head = theirs.fc if name.startswith("resnet") else theirs.classifier
    images = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        assert torch.equal(head(ours(images)), theirs(images))


def test_mobilenets_stages_are_its_widths():
    widths = {"stem": 32, "block1": 16, "block2": 24, "block3": 32, "block4": 64, "block5": 96, "block6": 160, "top": 1280}
    backbone, x = build_backbone("mobilenet_v2", 3, 0.0).eval(), torch.zeros(1, 3, 32, 32)
    for index, (name, width) in enumerate(widths.items()):
        x = backbone.forward_stages(x, index, index + 1)
        assert (backbone.stage_names[index], x.shape[1]) == (name, width)


def test_small_cnn_is_the_reports_network_at_28_px():
    backbone = build_backbone("small_cnn", 1, 0.4)
    x = torch.rand(2, 1, 28, 28)
    dropouts = [module.p for module in backbone.modules() if isinstance(module, torch.nn.Dropout2d)]
    assert dropouts == [0.4]
    last = backbone.eval().forward_stages(x)
    assert last.shape == (2, 16, 4, 4)
    assert torch.equal(backbone.pool(last), last.flatten(1))
    assert sum(each.numel() for each in backbone.parameters()) == 8 * 25 + 8 + 16 * 8 * 25 + 16


def test_channels_are_the_tasks_for_small_cnn_and_three_for_torchvision(backbone):
    assert backbone.channels == (1 if backbone.name == "small_cnn" else 3)


def test_a_misspelt_name_is_refused_with_a_guess():
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build_backbone("resnet81", 3, 0.0)

"""Backbones: networks without their head, cut into ordered named stages by one declaration each.

Freezing, layer-wise decay, the frozen prefix and the loading of weights all read the stages and nothing else.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from tlray.errors import ConfigError
from tlray.registry import BACKBONES


class Backbone(nn.Module):
    """A chain of stages and a pooling that turn images into feature vectors.

    The stages are the module's only children, so that the keys of `state_dict` read `<stage>.<...>`.

    Args:
        name: its registered name, for messages.
        stages: stage name -> its modules in a row, bottom to top.
        channels: input channels it wants.
        num_features: length of the feature vector.
        pool_size: pixels on a side that the last stage's output is averaged to.
        min_size: smallest images, in pixels on a side, that pass through.
        source: the torchvision module the stages were taken from, to remember its keys.
    """

    def __init__(
        self,
        name: str,
        stages: Mapping[str, nn.Module],
        *,
        channels: int,
        num_features: int,
        pool_size: int = 1,
        min_size: int = 1,
        source: nn.Module | None = None,
    ):
        super().__init__()
        for stage, module in stages.items():
            self.add_module(stage, module)
        self.name = name
        self.stage_names: tuple[str, ...] = tuple(stages)
        self.channels = channels
        self.num_features = num_features
        self.pool_size = pool_size
        self.min_size = min_size
        theirs = {id(tensor): key for key, tensor in _tensors(source).items()} if source is not None else {}
        self.torchvision_keys: dict[str, str] = {key: theirs[id(tensor)] for key, tensor in _tensors(self).items() if id(tensor) in theirs}

    def check_size(self, size: int) -> None:
        """Raise ConfigError when images of `size` px on a side are too small for this backbone."""
        if size < self.min_size:
            raise ConfigError(f"backbone {self.name} needs images of at least {self.min_size} px, not {size}: raise size")

    def forward_stages(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The output of stages[start:stop] on `x`, the output of stage `start` - 1 (normalised images for 0).

        float [N, C, H, W] -> float [N, C', H', W']; N may be 0. Raises ConfigError for images below `min_size`.
        """
        if start == 0:
            self.check_size(min(x.shape[-2:]))
        for name in self.stage_names[start:stop]:
            x = self.get_submodule(name)(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """The last stage's output, averaged over the image and flattened: [N, C, H, W] -> [N, num_features]."""
        return F.adaptive_avg_pool2d(x, self.pool_size).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Feature vectors [N, num_features] of normalised images float [N, channels, H, W]."""
        return self.pool(self.forward_stages(x))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer itself (`state_dict` gives copies of the references) by its key."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def build_backbone(name: str, channels: int, dropout: float) -> Backbone:
    """A freshly initialised backbone, drawn from torch's global generator.

    Args:
        name: a registered name.
        channels: of the task's images; torchvision's backbones take 3 whatever it is.
        dropout: probability of a 2-d dropout inside the backbone, where it has one.

    Raises ConfigError for an unknown name.
    """
    return BACKBONES[name](name, channels, dropout)


@BACKBONES.register("resnet18", "resnet50")
def resnet(name: str, channels: int, dropout: float) -> Backbone:
    """torchvision's ResNet (He et al. 2016, arXiv:1512.03385): a stem and four groups of residual blocks."""
    net = models.get_model(name, weights=None, num_classes=1)
    stem: OrderedDict[str, nn.Module] = OrderedDict((part, net.get_submodule(part)) for part in ("conv1", "bn1", "relu", "maxpool"))
    groups = {layer: net.get_submodule(layer) for layer in ("layer1", "layer2", "layer3", "layer4")}
    features = {"resnet18": 512, "resnet50": 2048}[name]
    return Backbone(name, {"stem": nn.Sequential(stem), **groups}, channels=3, num_features=features, source=net)


MOBILENET_V2_STAGES = {
    "stem": (0, 1),
    "block1": (1, 2),
    "block2": (2, 4),
    "block3": (4, 7),
    "block4": (7, 11),
    "block5": (11, 14),
    "block6": (14, 17),
    "top": (17, 19),
}
"""Stage -> first and one past the last of torchvision's `features`: one per width of the paper's table 2, the last two in `top`."""


@BACKBONES.register("mobilenet_v2")
def mobilenet_v2(name: str, channels: int, dropout: float) -> Backbone:
    """torchvision's MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381)."""
    net = models.mobilenet_v2(weights=None, num_classes=1)
    blocks = list(net.features.children())
    stages = {stage: nn.Sequential(*blocks[first:end]) for stage, (first, end) in MOBILENET_V2_STAGES.items()}
    return Backbone(name, stages, channels=3, num_features=net.last_channel, source=net)


@BACKBONES.register("small_cnn")
def small_cnn(name: str, channels: int, dropout: float) -> Backbone:
    """Two 5 x 5 convolutions of 8 and 16 channels for small images; 256 features.

    It takes the task's channels. The average pooling to 4 x 4 leaves 28 px images as they are and keeps 256 features at other
    sizes, from 16 px, where the second pooling has a pixel left.
    """
    stages = {
        "conv1": nn.Sequential(nn.Conv2d(channels, 8, 5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
        "conv2": nn.Sequential(nn.Conv2d(8, 16, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
    }
    return Backbone(name, stages, channels=channels, num_features=256, pool_size=4, min_size=16)

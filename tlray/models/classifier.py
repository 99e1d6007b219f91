"""A backbone with a linear head that takes pixels as they are stored."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from tlray.errors import DataError, WeightsError
from tlray.models.backbones import Backbone, build_backbone
from tlray.models.dropout import Dropout
from tlray.models.kinds import KINDS

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Classifier(nn.Module):
    """Normalisation, backbone and head (dropout, linear).

    Args:
        backbone: the network below the head.
        outputs: number of logits.
        dropout: probability of dropping a feature before the linear layer.
        mean, std: of pixels in 0..1, one number per input channel of the backbone, or one for all.

    Raises WeightsError when mean and std do not fit the backbone's channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, outputs: int, dropout: float, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(Dropout(dropout), nn.Linear(backbone.num_features, outputs))
        register_normalisation(self, backbone, mean, std)

    @property
    def linear(self) -> nn.Linear:
        """The head's linear layer."""
        linear = self.head[1]
        assert isinstance(linear, nn.Linear)
        return linear

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0..255 (uint8 or float) [N, c, H, W] -> float [N, backbone.channels, H, W]; grey (c = 1) is repeated.

        Raises DataError for any other number of channels.
        """
        return normalised(images, self.mean, self.std)

    def pool(self, x: Tensor) -> Tensor:
        """What the head takes, of the last stage's output: [N, C, H, W] -> [N, num_features]."""
        return self.backbone.pool(x)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, outputs] of pixels 0..255 (uint8 or float) [N, c, H, W]; N may be 0."""
        return self.head(self.backbone(self.normalise(images)))


def register_normalisation(module: nn.Module, backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give `module` the buffers mean and std, one number per channel of the backbone, which are no part of its state.

    Raises WeightsError when there are more or fewer of them than channels (one stands for all).
    """
    for name, values in (("mean", mean), ("std", std)):
        values = tuple(values) * backbone.channels if len(values) == 1 else tuple(values)
        if len(values) != backbone.channels:
            raise WeightsError(f"the weights normalise {len(values)} channels, but {backbone.name} takes {backbone.channels}: name others")
        module.register_buffer(name, torch.tensor(values), persistent=False)


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels 0..255 [N, c, H, W] -> float [N, C, H, W], less `mean` over `std` (both of pixels in 0..1, [C]); grey (c = 1) is repeated.

    Channels-last in memory, as the networks are: a training step of MobileNetV2 is nearly twice as fast on a CPU that way.
    Raises DataError for any other number of channels.
    """
    if images.shape[1] not in (1, len(mean)):
        raise DataError(f"images have {images.shape[1]} channels, but this network takes {len(mean)}")
    mean, std = (255 * each.view(1, -1, 1, 1) for each in (mean, std))
    return ((images.to(mean.dtype) - mean) / std).contiguous(memory_format=torch.channels_last)


def build_classifier(
    backbone: str, kind: str, num_classes: int, channels: int, dropout: float, mean: Sequence[float], std: Sequence[float]
) -> Classifier:
    """A freshly initialised classifier for a task, drawn from torch's global generator; channels-last in memory.

    Args:
        backbone: a registered name.
        kind, num_classes, channels: the task's; for multilabel the number of findings.
        dropout: the head's (and, in small_cnn, that of its 2-d dropout).
        mean, std: as in Classifier.
    """
    network = build_backbone(backbone, channels, dropout)
    return channels_last(Classifier(network, KINDS[kind].outputs(num_classes), dropout, mean, std))


def channels_last(network: AnyModule) -> AnyModule:
    """The same network with its convolutions' weights channels-last in memory."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe(model: nn.Module) -> dict[str, int | float]:
    """{"parameters": how many numbers train, "megabytes": 10^6 bytes of everything that is saved}."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {"parameters": sum(each.numel() for each in model.parameters()), "megabytes": size / 1e6}

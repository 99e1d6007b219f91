"""A backbone with a decoder that draws the image again from the last stage's maps, mirroring the stages one by one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tlray.models.backbones import Backbone, build_backbone
from tlray.models.classifier import Classifier, channels_last, normalised, register_normalisation

NARROWEST, WIDEST = 32, 128
"""Channels of the decoder's maps: the mirrored stage's, but within these bounds."""

Shape = tuple[int, int]
"""Channels and pixels on a side of square maps."""


class Autoencoder(nn.Module):
    """Normalisation, backbone and decoder (`head`): images in, the same images out; for training it looks like a Classifier.

    Args:
        backbone: the encoder.
        channels: of the images that are drawn, 1 or 3.
        size: pixels on a side of the images.
        mean, std: of pixels in 0..1, one number per input channel of the backbone, or one for all.

    Raises WeightsError when mean and std do not fit the backbone's channels, ConfigError when the images are too small for it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, channels: int, size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.backbone = backbone
        self.head = decoder(stage_shapes(backbone, size), channels)
        register_normalisation(self, backbone, mean, std)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels 0..255 (uint8 or float) [N, c, H, W] -> float [N, backbone.channels, H, W]; grey (c = 1) is repeated.

        Raises DataError for any other number of channels.
        """
        return normalised(images, self.mean, self.std)

    def pool(self, x: Tensor) -> Tensor:
        """What the decoder takes, of the last stage's output: the maps as they are."""
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction float [N, channels, size, size] in 0..1 of pixels 0..255 (uint8 or float) [N, c, size, size]; N may be 0."""
        return self.head(self.backbone.forward_stages(self.normalise(images)))


Network = Classifier | Autoencoder
"""What a training trains: both have backbone, head, mean, std, normalise and pool."""


def build_autoencoder(backbone: str, channels: int, size: int, dropout: float, mean: Sequence[float], std: Sequence[float]) -> Autoencoder:
    """A freshly initialised autoencoder, drawn from torch's global generator.

    Args:
        backbone: a registered name.
        channels: of the task's images.
        size: pixels on a side.
        dropout: of the backbone's 2-d dropout, where it has one; the decoder has none.
        mean, std: as in Autoencoder.
    """
    return channels_last(Autoencoder(build_backbone(backbone, channels, dropout), channels, size, mean, std))


@torch.no_grad()
def stage_shapes(backbone: Backbone, size: int) -> list[Shape]:
    """What goes into the first stage and what comes out of each, of images of `size` px, found by passing one black image.

    In eval mode, so neither the global generator nor batch-norm's statistics move. Raises ConfigError for images too small.
    """
    training = backbone.training
    x = torch.zeros(1, backbone.channels, size, size)
    shapes = [(x.shape[1], size)]
    backbone.eval()
    for index in range(len(backbone.stage_names)):
        x = backbone.forward_stages(x, index, index + 1)
        shapes.append((x.shape[1], x.shape[-1]))
    backbone.train(training)
    return shapes


def decoder(shapes: Sequence[Shape], channels: int) -> nn.Sequential:
    """One transposed convolution per stage, from its output's side to its input's, the last with a sigmoid: [N, C', h, h] -> 0..1.

    Args:
        shapes: of the stages, as `stage_shapes` gives them, bottom to top.
        channels: of the images that are drawn.
    """
    layers: list[nn.Module] = []
    width = shapes[-1][0]
    for (below, larger), (_, smaller) in zip(reversed(shapes[:-1]), reversed(shapes[1:]), strict=True):
        drawn = len(layers) == 2 * (len(shapes) - 2)
        out = channels if drawn else min(max(below, NARROWEST), WIDEST)
        layers += [_widening(width, out, smaller, larger), nn.Sigmoid() if drawn else nn.ReLU()]
        width = out
    return nn.Sequential(*layers)


def _widening(inputs: int, outputs: int, smaller: int, larger: int) -> nn.ConvTranspose2d:
    """A transposed convolution from maps `smaller` px on a side to `larger`.

    Its stride is the largest power of two that does not overshoot, as strides of networks are, and its kernel at least twice that, so
    that neighbours overlap. For a 5 x 5 convolution and a pooling by 2, as in small_cnn, it is the exact mirror image: 6 x 6, stride 2.
    A single pixel is spread by a kernel as large as what it becomes.
    """
    stride = 1
    while smaller > 1 and (smaller - 1) * 2 * stride < larger:
        stride *= 2
    kernel, padding = larger - (smaller - 1) * stride, 0
    if smaller > 1:
        padding = max(0, -(-(max(3, 2 * stride) - kernel) // 2))
    return nn.ConvTranspose2d(inputs, outputs, kernel + 2 * padding, stride, padding)

"""What a training learns: everything in the loop that depends on the objective, and nothing else.

`outputs` are what the network gave for a batch; `rows` are the pixels (or cached features) it was given, after augmentation.
"""

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tlray.models.kinds import KINDS
from tlray.training.metrics import chance_metrics, evaluate
from tlray.training.reconstruction import averaged, image_metrics
from tlray.training.setup import Prepared


class Objective(Protocol):
    """What the loop asks of an objective. Images are numbered within the drawn training images."""

    def targets(self, numbers: Tensor) -> Tensor:
        """What an augmentation may mix along with the images: float [N, K] (K may be 0). Numbers and result are on the device."""
        ...

    def loss_sum(self, outputs: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over this rank's images, a scalar in float32 at least."""
        ...

    def whole(self, numbers: np.ndarray) -> float:
        """What the summed loss of the global batch is divided by; known without asking the device."""
        ...

    def hits(self, outputs: Tensor, numbers: Tensor) -> Tensor:
        """How many images are right, scalar float64 on the device."""
        ...

    def train_metrics(self, loss: float, hits: float, count: float) -> dict[str, float]:
        """An epoch's `train_<metric>` from its mean loss, and hits among `count` images."""
        ...

    def gathered(self, outputs: Tensor, rows: Tensor) -> np.ndarray:
        """What of a batch of validation images must be known of all ranks: float [N, ...]."""
        ...

    def metrics(self, gathered: np.ndarray) -> dict[str, float]:
        """Every metric of the validation split from all that was gathered, in the order of its images."""
        ...

    def chance(self) -> dict[str, float]:
        """The metrics of an answer that knows nothing."""
        ...


class Classification:
    """Cross-entropy with the labels, by the task's kind."""

    def __init__(self, prepared: Prepared, device: torch.device):
        self.device = device
        self.kind, self.classes = KINDS[prepared.task.kind], len(prepared.task.classes)
        self.smoothing = prepared.config.label_smoothing
        self.labels = torch.from_numpy(np.array(prepared.task.train.labels[prepared.train]))
        self.val_labels = np.asarray(prepared.val_split.labels[prepared.val])
        balanced = prepared.config.class_weights == "balanced"
        self.weights = self.kind.balanced_weights(self.labels.numpy(), self.classes) if balanced else None
        self._weights_there = self.weights.to(device) if self.weights is not None else None
        self._labels_there = self.labels.to(device)
        self._targets_there = self.kind.targets(self._labels_there, self.classes)

    def targets(self, numbers: Tensor) -> Tensor:
        """One column per class."""
        return self._targets_there[numbers]

    def loss_sum(self, outputs: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """The (smoothed, class-weighted) cross-entropy."""
        return self.kind.loss_sum(outputs, targets, self._weights_there, self.smoothing)

    def whole(self, numbers: np.ndarray) -> float:
        """The number of images, or the sum of their class weights."""
        return float(len(numbers)) if self.weights is None else self.kind.weight_sum(self.labels[numbers], self.weights)

    def hits(self, outputs: Tensor, numbers: Tensor) -> Tensor:
        """Against the images' own labels, also where images were mixed."""
        return self.kind.hits(outputs, self._labels_there[numbers])

    def train_metrics(self, loss: float, hits: float, count: float) -> dict[str, float]:
        """train_loss and train_accuracy."""
        return {"train_loss": loss, "train_accuracy": hits / count}

    def gathered(self, outputs: Tensor, rows: Tensor) -> np.ndarray:
        """The logits."""
        return (outputs if outputs.dtype == torch.float64 else outputs.float()).cpu().numpy()

    def metrics(self, gathered: np.ndarray) -> dict[str, float]:
        """Every metric that the kind of task has."""
        probabilities = self.kind.probabilities(torch.from_numpy(gathered).double()).numpy()
        return evaluate(self.kind.name, probabilities, self.val_labels)

    def chance(self) -> dict[str, float]:
        """Equal probabilities for every class."""
        return chance_metrics(self.kind.name, self.classes, self.val_labels)


class Reconstruction:
    """Mean squared error between the image that the network draws and the one that it was shown, after augmentation."""

    def __init__(self, prepared: Prepared, device: torch.device):
        self.device, self.val_images, self.val = device, prepared.val_split.images, prepared.val

    def targets(self, numbers: Tensor) -> Tensor:
        """None: the pixels are the target."""
        return torch.zeros(len(numbers), 0, device=self.device)

    def loss_sum(self, outputs: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Each image's mean squared error, pixels in 0..1."""
        outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
        return F.mse_loss(outputs, rows.to(outputs.dtype) / 255, reduction="sum") / outputs.shape[1:].numel()

    def whole(self, numbers: np.ndarray) -> float:
        """The number of images."""
        return float(len(numbers))

    def hits(self, outputs: Tensor, numbers: Tensor) -> Tensor:
        """There is no right and wrong."""
        return torch.zeros((), dtype=torch.float64, device=self.device)

    def train_metrics(self, loss: float, hits: float, count: float) -> dict[str, float]:
        """train_loss alone."""
        return {"train_loss": loss}

    def gathered(self, outputs: Tensor, rows: Tensor) -> np.ndarray:
        """mse, psnr and ssim of each image."""
        return image_metrics(rows.cpu().numpy() / 255, outputs.double().cpu().numpy())

    def metrics(self, gathered: np.ndarray) -> dict[str, float]:
        """Their means over the images, and the loss, which is the mse."""
        return averaged(gathered)

    def chance(self) -> dict[str, float]:
        """Grey everywhere: half of full brightness."""
        images = np.asarray(self.val_images[self.val]) / 255
        return averaged(image_metrics(images, np.full_like(images, 0.5)))


def objective_of(prepared: Prepared, device: torch.device) -> Objective:
    """What a prepared training learns, on the device of its network."""
    return Reconstruction(prepared, device) if prepared.config.objective == "autoencoder" else Classification(prepared, device)

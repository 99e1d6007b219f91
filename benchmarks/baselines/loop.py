"""The ordinary way to train one configuration, written well: what the baselines of a search share, with Ray or without.

From tlray come what a configuration *means* and what must be equal on both sides: the network, its weights and its head's first
values, the arrays of images and which of them are drawn, phases, learning rates and weight decays, augmentations. The loop, the loader,
the optimizer (torch's AdamW as it comes), the metrics and the checkpoints are the usual ones: a Dataset that makes a float tensor of
each image as ToTensor does, torch's DataLoader, normalisation of whole batches in channels-last layout, no gradients and eval mode for
what is frozen, scikit-learn's metrics.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import metrics
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tlray.cache import Places
from tlray.config import Config
from tlray.data.subsets import select
from tlray.data.task import open_task
from tlray.registry import AUGMENTS
from tlray.training.optim import parameter_groups, rate_factor, set_rates
from tlray.training.phases import Phase, phases
from tlray.training.setup import new_model

EVALUATION_BATCH = 512
ECE_BINS = 15


class Images(Dataset):
    """Images uint8 [N, C, H, W] and labels int64 [N] in memory; an item is (float32 [C, H, W] in 0..1, label)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = torch.from_numpy(np.array(images)), torch.from_numpy(np.array(labels))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index].float() / 255, self.labels[index]


def as_it_is(thing: Any) -> Any:
    """Without Ray neither the network nor a loader needs preparing."""
    return thing


def loaders(config: Config, places: Places, workers: int) -> tuple[DataLoader, DataLoader]:
    """Of the drawn training images, shuffled, and of the validation images."""
    task = open_task(config.task, config.size, places)
    drawn, _, _ = select(task, config)
    train = Images(task.train.images[drawn], task.train.labels[drawn])
    settings: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    return (
        DataLoader(train, config.batch_size, shuffle=True, **settings),
        DataLoader(Images(task.val.images, task.val.labels), EVALUATION_BATCH, **settings),
    )


def train(
    config: Config, places: Places, workers: int = 0, prepare_model: Callable = as_it_is, prepare_loader: Callable = as_it_is
) -> Iterator[tuple[dict[str, float], dict[str, Any]]]:  # fmt: skip
    """Train one configuration; after each epoch (its metrics, what a checkpoint of it holds).

    Args:
        workers: processes of each loader; 0: none.
        prepare_model, prepare_loader: Ray Train's.
    """
    torch.manual_seed(config.seed)
    task = open_task(config.task, config.size, places)
    model = prepare_model(new_model(config, task, places)[0])
    train_loader, val_loader = map(prepare_loader, loaders(config, places, workers))
    epoch, steps = 0, len(train_loader)
    for phase in phases(config, model.backbone.stage_names):
        optimizer, values = torch.optim.AdamW(parameter_groups(model, phase.trainable, config), lr=config.lr), []
        for done in range(phase.epochs):
            epoch += 1
            factor = rate_factor(config, phase.epochs * steps, values)
            rates = [factor(done * steps + step) for step in range(steps)]
            row = train_epoch(model, phase, train_loader, optimizer, rates, config)
            row |= {f"val_{name}": value for name, value in validate(model, val_loader, config).items()}
            values.append(row["val_auroc"])
            row |= {"epoch": epoch, "time": time.time()}
            yield row, {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "metrics": row}


def freeze(model: Any, phase: Phase) -> None:
    """Train mode, but stages that do not train in this phase get no gradients and stay in eval mode, and so do their statistics."""
    model.train()
    for name in model.backbone.stage_names:
        stage = model.backbone.get_submodule(name)
        stage.requires_grad_(name in phase.trainable)
        stage.train(name in phase.trainable)


def logits(model: Any, images: Tensor, frozen: int, precision: str) -> Tensor:
    """Logits float32 [N, classes] of images float [N, c, H, W] in 0..1, the first `frozen` stages without gradients."""
    mean, std = model.mean.view(1, -1, 1, 1), model.std.view(1, -1, 1, 1)
    images = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        with torch.no_grad():
            maps = model.backbone.forward_stages(images, 0, frozen)
        return model.head(model.pool(model.backbone.forward_stages(maps, frozen))).float()


def train_epoch(
    model: Any, phase: Phase, loader: DataLoader, optimizer: torch.optim.Optimizer, rates: Sequence[float], config: Config
) -> dict[str, float]:  # fmt: skip
    """One pass over the training images, at a share of the peak learning rate in each step; mean loss and accuracy."""
    freeze(model, phase)
    frozen = phase.first_trainable(model.backbone.stage_names)
    loss_sum, right, count = 0.0, 0, 0
    for (images, labels), rate in zip(loader, rates, strict=True):
        targets = labels
        if config.augment != "none":
            images, targets = AUGMENTS[config.augment](images * 255, F.one_hot(labels, 2).float(), torch.default_generator)
            images = images / 255
        outputs = logits(model, images, frozen, config.precision)
        loss = F.cross_entropy(outputs, targets, label_smoothing=config.label_smoothing)
        set_rates(optimizer, config.lr, rate)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        right += int((outputs.argmax(dim=1) == labels).sum())
        count += len(labels)
    return {"train_loss": loss_sum / count, "train_accuracy": right / count}


@torch.no_grad()
def validate(model: Any, loader: DataLoader, config: Config) -> dict[str, float]:
    """The metrics of the validation images."""
    model.eval()
    outputs = [(logits(model, images, 0, config.precision), labels) for images, labels in loader]
    probability = torch.cat([each for each, _ in outputs]).double().softmax(dim=1)[:, 1].numpy()
    return binary_metrics(torch.cat([labels for _, labels in outputs]).numpy(), probability)


def binary_metrics(labels: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """What tlray measures in every epoch too, of labels 0/1 [N] and the probability of 1 [N]."""
    called = (probability > 0.5).astype(int)
    confidence, right = np.maximum(probability, 1 - probability), called == labels
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    return {
        "loss": float(metrics.log_loss(labels, probability, labels=[0, 1])),
        "accuracy": float(metrics.accuracy_score(labels, called)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(labels, called)),
        "f1": float(metrics.f1_score(labels, called, zero_division=0)),  # type: ignore[arg-type]
        "precision": float(metrics.precision_score(labels, called, zero_division=0)),  # type: ignore[arg-type]
        "recall": float(metrics.recall_score(labels, called)),
        "specificity": float(metrics.recall_score(labels, called, pos_label=0)),
        "auroc": float(metrics.roc_auc_score(labels, probability)),
        "average_precision": float(metrics.average_precision_score(labels, probability)),
        "ece": float(abs(np.bincount(bins, confidence - right, ECE_BINS)).sum() / len(labels)),
    }

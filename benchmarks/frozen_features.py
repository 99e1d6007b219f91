"""Does an epoch from cached features cost a hundredth of an epoch that computes them, and one of the last stage 1/1.8?

    python benchmarks/frozen_features.py

ResNet-50 at 64 px on PneumoniaMNIST from the CIFAR-10 weights, float32, one thread, batches of 64: the head alone (`head`), and the last
stage with it (`last_1`). Ours are warm epochs of `fit`, whose frozen prefix comes from the cache; an epoch is all training steps and the
validation. Against it stand the same `fit` with no room for a cache, and a plain PyTorch loop: torchvision's network in channels-last
layout, the images as float tensors in memory, what is frozen in eval mode and without gradients, AdamW at the same constant rate, and
the AUROC on validation. All take as many epochs. The first epoch of each, in which ours extracts, is not among them; what the extraction
took stands beside. The last rows compare cached features with features computed anew, by a batch as large and by a larger one.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import SHARED, Benchmark, Row, ratios, record, seconds_of, seconds_text, show
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.models import resnet50

from tlray.cache import Places
from tlray.config import Config
from tlray.data.subsets import select
from tlray.data.task import Task, open_task
from tlray.models.weights import IMAGENET_MEAN, IMAGENET_STD
from tlray.training.feature_files import RECORD
from tlray.training.features import extraction_batch
from tlray.training.fit import fit
from tlray.training.phases import phases
from tlray.training.setup import new_model

PNEUMONIA = SHARED / "data" / "npz" / "pneumonia_28.npz"
WEIGHTS = SHARED / "weights" / "resnet50-cifar10.safetensors"
REPEATS = 3
COMPARED = 512
"""Images whose features are computed anew."""
LARGER = 256
"""Images in the larger batch of the comparison."""
BASE = Config(
    task=f"npz:{PNEUMONIA}", size=64, backbone="resnet50", weights=str(WEIGHTS), unfreeze="head", epochs=1 + REPEATS, scheduler="constant",
    threads=1,
)  # fmt: skip
AT_MOST = {"head": 1 / 100, "last_1": 1 / 1.8}


@dataclass
class Side:
    """A training that goes on by one epoch at a time. auroc: on validation, of the newest epoch. seconds: of all epochs but the first."""

    epochs: Iterator[float]
    auroc: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def epoch(self) -> None:
        """Train one epoch more."""
        self.auroc = next(self.epochs)

    def measure(self) -> None:
        """Train one epoch more, and note how long it took."""
        self.seconds.append(seconds_of(self.epoch))


def with_tlray(config: Config, places: Places, cached: bool) -> Iterator[float]:
    """`fit`, with the cache or (the budget of features is nought when a phase begins) without; the AUROC after each epoch."""
    epochs = fit(config, places)
    for _ in range(config.epochs):
        os.environ["TLRAY_FEATURES_GIB"] = "8" if cached else "0"
        epoch = next(epochs)
        if epoch.history[-1]["cached"] is not cached:
            raise RuntimeError(f"the features should {'' if cached else 'not '}have come from the cache")
        yield epoch.metrics["val_auroc"]


def in_memory(images: np.ndarray) -> Tensor:
    """uint8 [N, 1, H, W] -> float [N, 3, H, W], normalised, channels-last."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
    return ((torch.from_numpy(np.array(images)).float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def by_hand(config: Config, task: Task) -> Iterator[float]:
    """A plain PyTorch loop of the same training; the AUROC on validation after each epoch."""
    torch.manual_seed(config.seed)
    drawn = select(task, config)[0]
    images, labels = in_memory(task.train.images[drawn]), torch.from_numpy(task.train.labels[drawn])
    val_images, val_labels = in_memory(task.val.images), task.val.labels
    model = resnet50()
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items() if not name.startswith("fc.")}, strict=False)
    model.fc = torch.nn.Linear(2048, 2)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = [model.fc] + ([model.layer4] if config.unfreeze == "last_1" else [])
    model.requires_grad_(False)
    for module in training:
        module.requires_grad_(True)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    for _ in range(config.epochs):
        model.eval()
        for module in training:
            module.train()
        for batch in torch.randperm(len(images)).split(config.batch_size):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            scores = torch.cat([model(each).softmax(dim=1)[:, 1] for each in val_images.split(config.batch_size)])
        yield float(roc_auc_score(val_labels, scores.numpy()))


def rows_of(config: Config, task: Task, places: Places, repeats: int) -> list[Row]:
    """Warm epochs of the three sides in turn."""
    cached, uncached = Side(with_tlray(config, places, True)), Side(with_tlray(config, places, False))
    plain = Side(by_hand(config, task))
    for side in (cached, uncached, plain):
        side.epoch()
    for _ in range(repeats):
        for side in (cached, uncached, plain):
            side.measure()
    took = extraction_seconds(places)
    rows = []
    for name, other in (("the same loop without the cache", uncached), ("a plain PyTorch loop", plain)):
        detail = (
            f"{seconds_text(cached.seconds)} an epoch against {seconds_text(other.seconds)}; validation AUROC after {1 + repeats} epochs "
            f"{cached.auroc:.4f} and {other.auroc:.4f}; extraction, once, {took:.3g} s"
        )
        values = ratios(cached.seconds, other.seconds)
        rows.append(Row(f"{config.unfreeze}: epoch from the cache over {name}", values, at_most=AT_MOST[config.unfreeze], detail=detail))
    return rows


def extraction_seconds(places: Places) -> float:
    """What the extractions of the newest two splits (train and validation) took."""
    lines = Path(places.folder("features"), RECORD).read_text().splitlines()
    return sum(json.loads(line)["seconds"] for line in lines[-2:])


def difference_rows(config: Config, task: Task, places: Places) -> list[Row]:
    """Cached features of the first training images against those computed anew."""
    model = new_model(config, task, places)[0].eval()
    stages = model.backbone.stage_names
    above = phases(config, stages)[0].first_trainable(stages)
    drawn = select(task, config)[0]
    wanted = 2 if above == len(stages) else 4
    found = [np.load(file, mmap_mode="r") for file in places.folder("features").glob("*/features.npy")]
    cached = next(each for each in found if len(each) == len(drawn) and each.ndim == wanted)[:COMPARED]
    rows, same = [], extraction_batch(config.size, torch.device("cpu"))
    for what, step, most in (("as large", same, 0.0), ("larger", LARGER, 1e-5)):
        fresh = []
        for start in range(0, len(cached), step):
            images = torch.from_numpy(task.train.images[drawn[start : min(start + step, len(cached))]])
            with torch.no_grad():
                maps = model.backbone.forward_stages(model.normalise(images), 0, above)
                fresh.append((model.pool(maps) if wanted == 2 else maps.permute(0, 2, 3, 1)).numpy())
        apart = np.abs(np.concatenate(fresh) - cached).max() / np.abs(cached).max()
        detail = f"batches of {step} against {same}, {len(cached)} images of {int(np.prod(cached.shape[1:])):,} numbers"
        title = f"{config.unfreeze}: largest difference of cached and new features over the largest value, batches {what}"
        rows.append(Row(title, [float(apart)], at_most=most, detail=detail))
    return rows


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small images, once, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if missing := [path for path in (PNEUMONIA, WEIGHTS) if not path.is_file()]:
        sys.exit(f"{missing[0]} is missing: this benchmark needs it")
    base, repeats = (replace(BASE, size=32, samples=64, epochs=2), 1) if quick else (BASE, REPEATS)
    rows, differences = [], []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        task = open_task(base.task, base.size, places)
        for unfreeze in AT_MOST:
            config = replace(base, unfreeze=unfreeze)
            rows += rows_of(config, task, places, repeats)
            differences += difference_rows(config, task, places)
    notes = [
        "The extraction uses the cores that are idle, one thread for each batch; all epochs have one thread.",
        "An epoch from the cache holds the same steps on the same network above the boundary; its metrics equal those without the cache.",
    ]
    (show if quick else record)(Benchmark("frozen_features", "Frozen features, computed once", [*rows, *differences], notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

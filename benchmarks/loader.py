"""How many images a second reach the network, against a Dataset of PIL images and a DataLoader?

    python benchmarks/loader.py

The loader alone, no network behind it: whole shuffled epochs in batches of 128, normalised float32 in the network's layout. Ours is what
`fit` does for each batch: the next indices of the epoch's permutation, these rows of the memory-mapped uint8 array, their labels, and
normalisation of the whole batch. Against it stands the usual Dataset, as in torchvision's MNIST and the medmnist package: the arrays in
memory, for each image PIL's Image.fromarray, ToTensor and Normalize, and a DataLoader with 0 or 2 persistent worker processes,
whichever is faster. MNIST as one channel, for a small network, and PneumoniaMNIST as three, for one from torchvision. One thread in the
main process.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from measure import SHARED, Benchmark, Row, in_turn, number, ratios, record, seconds_of, show
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tlray.cache import Places
from tlray.config import Config
from tlray.data.loader import epoch_batches
from tlray.data.task import Split, open_task
from tlray.models.classifier import Classifier, build_classifier
from tlray.models.weights import IMAGENET_MEAN, IMAGENET_STD, PLAIN_MEAN, PLAIN_STD

PNEUMONIA = SHARED / "data" / "npz" / "pneumonia_28.npz"
BATCH, REPEATS = 128, 5
WORKERS = (0, 2)


@dataclass(frozen=True)
class Case:
    """Images of a task for a backbone, with its normalisation."""

    name: str
    task: str
    backbone: str
    mean: Sequence[float]
    std: Sequence[float]


CASES = (
    Case("MNIST, one channel", "mnist", "small_cnn", PLAIN_MEAN, PLAIN_STD),
    Case("PneumoniaMNIST, three channels", f"npz:{PNEUMONIA}", "mobilenet_v2", IMAGENET_MEAN, IMAGENET_STD),
)


class Images(Dataset):
    """An item is (float32 [C, H, W], label), decoded by PIL as in torchvision's own data sets."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, as_rgb: bool, transform: Callable):
        self.images, self.labels, self.as_rgb, self.transform = images, labels, as_rgb, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index])
        return self.transform(image.convert("RGB") if self.as_rgb else image), int(self.labels[index])


def tlray_epochs(split: Split, model: Classifier, passes: int) -> None:
    """Whole epochs of batches as `fit` cuts them."""
    labels = torch.from_numpy(split.labels)
    for epoch in range(1, passes + 1):
        for batch in epoch_batches(len(split), BATCH, None, seed=0, epoch=epoch):
            model.normalise(torch.from_numpy(split.images[batch]))
            labels.index_select(0, torch.from_numpy(batch))


def usual_epoch(loader: DataLoader) -> None:
    """A whole epoch of batches in channels-last layout, as the network wants them."""
    for images, _ in loader:
        images.contiguous(memory_format=torch.channels_last)


def usual_loader(split: Split, case: Case, workers: int) -> DataLoader:
    """The usual one, with so many worker processes that stay."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(case.mean, case.std)])
    dataset = Images(np.array(split.images)[:, 0], split.labels, len(case.mean) == 3, transform)
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def row_of(case: Case, places: Places, passes: int, repeats: int) -> Row:
    """Images/s of both sides, ours over theirs. passes: epochs of ours in each repeat, so that it takes long enough to be timed."""
    task = open_task(case.task, Config().size, places)
    images, split = len(task.train), task.train
    model = build_classifier(case.backbone, task.kind, len(task.classes), task.channels, 0.0, case.mean, case.std)
    loaders = {workers: usual_loader(split, case, workers) for workers in WORKERS}
    for loader in loaders.values():
        usual_epoch(loader)  # starts its processes
    tried = {workers: seconds_of(lambda each=loader: usual_epoch(each)) for workers, loader in loaders.items()}
    best = min(WORKERS, key=lambda workers: tried[workers])
    tlray_epochs(split, model, 1)
    ours, theirs = in_turn(
        lambda: seconds_of(lambda: tlray_epochs(split, model, passes)) / passes,
        lambda: seconds_of(lambda: usual_epoch(loaders[best])),
        repeats,
    )
    rates = [images / statistics.median(side) for side in (ours, theirs)]
    workers = ", ".join(f"{number(images / tried[each])} with {each}" for each in WORKERS)
    detail = f"{number(rates[0])} images/s against {number(rates[1])} with {best} workers (tried once: {workers})"
    return Row(f"{case.name}: images/s of tlray over PIL, ToTensor and DataLoader", ratios(theirs, ours), at_least=20, detail=detail)


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once, the small data set alone, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if not PNEUMONIA.is_file():
        sys.exit(f"{PNEUMONIA} is missing: this benchmark needs it")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), str(Path(work, "cache")), True)
        rows = [row_of(case, places, 1 if quick else 20, 1 if quick else REPEATS) for case in (CASES[1:] if quick else CASES)]
    notes = [
        "The arrays of ours are files of the page cache, written once when the task was prepared; those of the other side are in memory."
    ]
    (show if quick else record)(Benchmark("loader", "The loader alone", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

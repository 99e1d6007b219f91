"""How much faster does `fit` train a small network than a loop in the style of torchvision's references?

    python benchmarks/reference_loop.py

small_cnn (two convolutions, 256 features) on MNIST at 28 px, batches of 128, AdamW at a rate that follows half a cosine, validation and a
checkpoint after each epoch on both sides. The other side is written as torchvision's `references/classification/train.py` is: a Dataset of
PIL images with the last three transforms of its presets (PILToTensor, ConvertImageDtype, Normalize), a DataLoader with 0 or 2
persistent workers, whichever trains faster, loss and top-1 and top-5 accuracy of every step read by `.item()`, the learning rate
stepped once an epoch, an evaluation, and a checkpoint by torch.save. The network, its first values and its normalisation are the
same. The claim is the row in which each side has the number of threads with which it is the faster one; the rows below say how both do
with the same number, and in the memory layout that is `fit`'s own (the references know torch's alone).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from measure import SHARED, Benchmark, Row, in_turn, ratios, record, seconds_of, seconds_text, show
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tlray.cache import Places
from tlray.config import Config
from tlray.data.subsets import select
from tlray.data.task import Split, Task, open_task
from tlray.models.weights import PLAIN_MEAN, PLAIN_STD
from tlray.training.checkpoint import save_checkpoint
from tlray.training.fit import fit
from tlray.training.setup import available_threads, new_model, set_up_process

REPEATS = 5
WORKERS = (0, 2)
BASE = Config(task="mnist", size=28, backbone="small_cnn", epochs=1 + REPEATS, batch_size=128, monitor="accuracy")


@dataclass
class Meter:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def update(self, value: float, images: int) -> None:
        """Add the mean of so many images."""
        self.total += value * images
        self.count += images

    @property
    def mean(self) -> float:
        """Over all images so far."""
        return self.total / self.count


class Images(Dataset):
    """An item is (float32 [1, 28, 28], label)."""

    def __init__(self, split: Split, drawn: np.ndarray):
        self.images, self.labels = split.images[drawn, 0], split.labels[drawn]
        normalise = transforms.Normalize(PLAIN_MEAN, PLAIN_STD)
        self.transform: Callable[[Image.Image], Tensor] = transforms.Compose(
            [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float), normalise]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def top(outputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Top-1 and top-5 accuracy in %, of logits [N, K] and labels [N]."""
    with torch.inference_mode():
        found = outputs.topk(5).indices == labels[:, None]
        return [found[:, :k].sum() * 100.0 / len(labels) for k in (1, 5)]


def train_one_epoch(
    model: nn.Module, loader: DataLoader, criterion: nn.Module, optimizer: torch.optim.Optimizer, layout: torch.memory_format
) -> None:  # fmt: skip
    """One pass over the training images."""
    model.train()
    meters = {name: Meter() for name in ("loss", "top1", "top5")}
    for images, labels in loader:
        outputs = model(images.contiguous(memory_format=layout))
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in zip(meters, (loss, *top(outputs, labels)), strict=True):
            meters[name].update(value.item(), len(labels))


def evaluate(model: nn.Module, loader: DataLoader, criterion: nn.Module, layout: torch.memory_format) -> float:
    """Top-1 accuracy on the validation images, 0..1."""
    model.eval()
    meters = {name: Meter() for name in ("loss", "top1", "top5")}
    with torch.inference_mode():
        for images, labels in loader:
            outputs = model(images.contiguous(memory_format=layout))
            for name, value in zip(meters, (criterion(outputs, labels), *top(outputs, labels)), strict=True):
                meters[name].update(value.item(), len(labels))
    return meters["top1"].mean / 100


def reference(config: Config, task: Task, places: Places, workers: int, layout: torch.memory_format, folder: Path) -> Iterator[float]:
    """The references' loop; the accuracy on validation after each epoch."""
    folder.mkdir(parents=True)
    whole = new_model(config, task, places)[0]
    model = nn.Sequential(whole.backbone, whole.head).to(memory_format=layout)  # type: ignore[call-overload]
    drawn, validation, _ = select(task, config)
    train_loader, val_loader = (
        DataLoader(images, config.batch_size, shuffle, num_workers=workers, persistent_workers=workers > 0)
        for images, shuffle in ((Images(task.train, drawn), True), (Images(task.val, validation), False))
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    for epoch in range(config.epochs):
        set_up_process(config)  # between two epochs the other side trains with threads of its own
        train_one_epoch(model, train_loader, criterion, optimizer, layout)
        schedule.step()
        accuracy = evaluate(model, val_loader, criterion, layout)
        state = {"model": model, "optimizer": optimizer, "lr_scheduler": schedule}
        torch.save({**{name: each.state_dict() for name, each in state.items()}, "epoch": epoch}, folder / "checkpoint.pth")
        yield accuracy


def ours(config: Config, places: Places, folder: Path) -> Iterator[float]:
    """`fit` with a checkpoint of each epoch, as a trial writes them; the accuracy on validation after each epoch."""
    for epoch in fit(config, places):
        save_checkpoint(folder, epoch.state())
        yield epoch.metrics["val_accuracy"]


@dataclass
class Side:
    """A training that goes on by one epoch at a time. accuracy: on validation, of the newest epoch."""

    epochs: Iterator[float]
    accuracy: float = 0.0

    def epoch(self) -> None:
        """Train one epoch more."""
        self.accuracy = next(self.epochs)

    def seconds(self) -> float:
        """Of one epoch more."""
        return seconds_of(self.epoch)


def second_epoch(epochs: Iterator[float]) -> float:
    """Seconds of a training's second epoch; it is given up then, with its loader's processes."""
    side = Side(epochs)
    side.epoch()
    return side.seconds()


def counted(number: int, thing: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def row_of(
    base: Config, task: Task, places: Places, threads: Sequence[int], layout: torch.memory_format, folder: Path, at_least: float | None
) -> Row:  # fmt: skip
    """The seconds of epochs of both sides in turn, after a first one of each; each with its fastest of `threads`, and of WORKERS."""
    configs = {number: replace(base, threads=number) for number in threads}
    mine = {number: second_epoch(ours(config, places, folder / f"probe-{number}")) for number, config in configs.items()}
    theirs = {
        (number, workers): second_epoch(reference(config, task, places, workers, layout, folder / f"probe-{number}-{workers}"))
        for number, config in configs.items() for workers in WORKERS
    }  # fmt: skip
    own, (number, workers) = min(mine, key=lambda each: mine[each]), min(theirs, key=lambda each: theirs[each])
    sides = (
        Side(ours(configs[own], places, folder / "ours")),
        Side(reference(configs[number], task, places, workers, layout, folder / "theirs")),
    )
    for side in sides:
        side.epoch()
    seconds = in_turn(sides[0].seconds, sides[1].seconds, base.epochs - 1)
    tried = [f"fit with {counted(each, 'thread')} {took:.3g} s" for each, took in mine.items()] if len(mine) > 1 else []
    tried += [f"the reference with {counted(a, 'thread')} and {counted(b, 'worker')} {took:.3g} s" for (a, b), took in theirs.items()]
    detail = (
        f"{seconds_text(seconds[0])} an epoch with {counted(own, 'thread')} against {seconds_text(seconds[1])} with "
        f"{counted(number, 'thread')} and {counted(workers, 'worker')} (tried once: {', '.join(tried)}); accuracy on validation after "
        f"{base.epochs} epochs {sides[0].accuracy:.4f} and {sides[1].accuracy:.4f}"
    )
    which = counted(threads[0], "thread") if len(threads) == 1 else f"each with the faster of {' and '.join(map(str, threads))} threads"
    channels_last = ", channels-last layout too" if layout is torch.channels_last else ""
    what = f"{which}: epoch of the reference's loop{channels_last} over that of fit"
    return Row(what, ratios(seconds[1], seconds[0]), at_least=at_least, detail=detail)


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one epoch, one row, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: it holds the data that this benchmark trains on")
    every = available_threads()
    cases = [
        (tuple(dict.fromkeys((1, every))), torch.contiguous_format, 1.8),
        ((every,), torch.contiguous_format, None),
        ((every,), torch.channels_last, None),
        ((1,), torch.contiguous_format, None),
    ]
    base = replace(BASE, samples=1280, epochs=2) if quick else BASE
    rows = []
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        task = open_task(BASE.task, BASE.size, places)
        for number, (threads, layout, at_least) in enumerate(cases[:1] if quick else cases):
            rows.append(row_of(base, task, places, threads, layout, Path(work, str(number)), at_least))
    notes = [
        "A checkpoint of ours is synced to disk, that of the reference's loop is not.",
        "AdamW is torch's as it comes on the side of the reference; ours is the same rule in its fused form.",
    ]
    (show if quick else record)(Benchmark("reference_loop", "Training against the style of torchvision's references", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What does `fit` add to the barest loop that trains the same network?

    python benchmarks/fit_loop.py

Whole epochs of `fit`, one after another, against a loop of seven lines over the same images (uint8, in memory), which only takes a
random batch, normalises it, and does forward pass, cross-entropy, backward pass, optimizer step and scheduler step: no metric, no
validation, no checkpoint. The network, its first values, its channels-last layout and its normalisation are tlray's on both sides, and
so is AdamW, at a rate that follows half a cosine. `fit` cannot do without validation, so its data set has 20 validation images.
MNIST, batches of 128, one thread: small_cnn at 28 px, all of it training, and MobileNetV2 at 32 px.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import SHARED, Benchmark, Row, in_turn, ratios, record, seconds_of, seconds_text, show

from tlray.cache import Places
from tlray.config import Config
from tlray.data.task import Split, Task, open_task
from tlray.models.autoencoder import Network
from tlray.registry import OPTIMIZERS
from tlray.training.fit import fit
from tlray.training.setup import new_model, set_up_process

REPEATS = 25
FEW = 20
"""Validation images; as many for the test split, which nobody opens."""
JUDGED = 1000
"""Images of MNIST's validation split that both networks are judged on at the end."""
STEPS = {"small_cnn": 200, "mobilenet_v2": 30}
"""Steps of an epoch: a few seconds of either network, so that both sides meet the same moods of a shared machine."""
BASE = Config(size=28, backbone="small_cnn", epochs=1 + REPEATS, batch_size=128, monitor="accuracy", threads=1)


def write_npz(path: Path, mnist: Split, images: int) -> None:
    """The first images of MNIST's train split as train, and a few more as val and test."""
    arrays, start = {}, 0
    for name, count in (("train", images), ("val", FEW), ("test", FEW)):
        arrays[f"{name}_images"] = mnist.images[start : start + count, 0]
        arrays[f"{name}_labels"] = mnist.labels[start : start + count]
        start += count
    np.savez(path, **arrays)


def fitted(config: Config, places: Places, model: Network) -> Iterator[None]:
    """`fit`, epoch by epoch; after the last one `model` has what was learnt."""
    for epoch in fit(config, places):
        if epoch.last:
            tensors = epoch.state().tensors
            model.load_state_dict({key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")})
        yield


def bare(config: Config, task: Task, model: Network) -> Iterator[None]:
    """The loop that nobody can do without, epoch by epoch, on `model`."""
    set_up_process(config)
    images, labels = torch.from_numpy(np.array(task.train.images)), torch.from_numpy(task.train.labels)
    optimizer = OPTIMIZERS[config.optimizer]([{"params": list(model.parameters()), "weight_decay": config.weight_decay}], config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * len(images) // config.batch_size)
    model.train()
    for _ in range(config.epochs):
        for batch in torch.randperm(len(images)).split(config.batch_size):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield


@torch.no_grad()
def accuracy(model: Network, split: Split) -> float:
    """Of images that neither side has seen."""
    outputs = model.eval()(torch.from_numpy(np.array(split.images[:JUDGED])))
    return float((outputs.argmax(dim=1).numpy() == split.labels[:JUDGED]).mean())


def row_of(config: Config, task: Task, places: Places) -> Row:
    """The seconds of epochs of both sides in turn, after a first one of each."""
    models = [new_model(config, task, places)[0] for _ in range(2)]
    ours, theirs = fitted(config, places, models[0]), bare(config, task, models[1])
    next(ours)
    next(theirs)
    seconds = in_turn(lambda: seconds_of(lambda: next(ours)), lambda: seconds_of(lambda: next(theirs)), config.epochs - 1)
    steps = len(task.train) // config.batch_size
    each = [seconds_text([value / steps for value in side]) for side in seconds]
    judges = open_task("mnist", config.size, places).val
    right = [accuracy(model, judges) for model in models]
    detail = f"{each[0]} a step against {each[1]}; accuracy after {config.epochs} epochs {right[0]:.3f} and {right[1]:.3f}"
    return Row(
        f"{config.backbone}, {config.size} px: epoch of fit over that of the bare loop", ratios(*seconds), at_most=1.05, detail=detail
    )


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, once, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: it holds the data that this benchmark trains on")
    rows = []
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        mnist = open_task("mnist", 28, places).train
        for backbone, size in (("small_cnn", 28), ("mobilenet_v2", 32)):
            file = Path(work, f"{backbone}.npz")
            write_npz(file, mnist, BASE.batch_size * (2 if quick else STEPS[backbone]))
            config = replace(BASE, task=f"npz:{file}", backbone=backbone, size=size, epochs=2 if quick else BASE.epochs)
            rows.append(row_of(config, open_task(config.task, size, places), places))
    notes = [
        f"Within the seconds of `fit`, and not of the bare loop, are also the validation on {FEW} images with all its metrics, the loss "
        "and accuracy on the training images, and the parameter groups for layer-wise rates."
    ]
    (show if quick else record)(Benchmark("fit_loop", "The training loop against the barest one", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

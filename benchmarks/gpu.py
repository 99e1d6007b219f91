"""What a GPU makes of `fit`: ResNet-50 at 224 px, batch 128, bfloat16, channels-last, alone and several at once.

    python benchmarks/gpu.py                        on a machine with a GPU of 40 GB or more; exit status 2 where there is none
    python benchmarks/gpu.py --quick --device cpu   tiny, to see that it works

It needs torch, but no Ray; `PYTHONPATH=.` before it where tlray is not installed. The images are made here: noise with a bright square
in one of four corners. `fit` validates on 64 of them after each epoch; the bare loop has the same network, optimizer, precision and
batches, all images on the GPU, and neither validation nor schedule. Seconds are those of whole epochs, the first left out, all sides in
turn. Operations of a training step are counted by torch's FlopCounterMode, an addition and a multiplication as two; the peak is the one
that the maker publishes, without sparsity.
"""

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from measure import Benchmark, Row, ratios, record, seconds_of, seconds_text, show
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from tlray.cache import Places
from tlray.config import Config
from tlray.models.weights import save_weights
from tlray.registry import OPTIMIZERS
from tlray.training.feature_files import evict
from tlray.training.fit import fit, load
from tlray.training.setup import available_threads, prepare
from tlray.training.world import World

NO_GPU = 2
CORNERS = 4
PEAKS = {
    "B200": 2250, "GH200": 989, "H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312, "A40": 150,
    "A30": 165, "A10": 125, "L40S": 362, "L40": 181, "L4": 121,
}  # fmt: skip
"""Words of a card's name -> dense bf16 TFLOP/s as NVIDIA publishes them; the first whose words all occur is meant."""


@dataclass(frozen=True)
class Setting:
    """What all measurements share."""

    device: torch.device
    places: Places
    base: Config
    images: int
    repeats: int
    processes: tuple[int, ...]
    head_epochs: int

    @property
    def card(self) -> str:
        """The GPU's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "a CPU"

    def rates(self, seconds: Sequence[float]) -> list[float]:
        """Images per second of epochs that took so long."""
        return [self.images / each for each in seconds]


def write_images(path: Path, train: int, rest: int, size: int) -> None:
    """An npz of MedMNIST's layout: `train` images uint8 [size, size, 3], `rest` in val and in test; the label is the bright corner."""
    random, side, arrays = np.random.default_rng(0), size // 4, {}
    for split, count in (("train", train), ("val", rest), ("test", rest)):
        images = random.integers(0, 120, (count, size, size, 3), dtype=np.uint8)
        labels = random.permutation(np.arange(count) % CORNERS)
        for corner in range(CORNERS):
            top, left = (size - side) * (corner // 2), (size - side) * (corner % 2)
            images[labels == corner, top : top + side, left : left + side] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    np.savez(path, **arrays)


def setting(quick: bool, device: str, work: Path) -> Setting:
    """The full size, or a tiny one; the images are written and prepared."""
    train, rest, size = (64, 16, 32) if quick else (40 * 128, 64, 224)
    write_images(work / "corners.npz", train, rest, size)
    places = Places(None, str(work / "cache"), True)
    base = Config(task=f"npz:{work / 'corners.npz'}", size=size, backbone="resnet50", batch_size=128, epochs=100,
                  precision="bfloat16", scheduler="constant", lr=3e-4)  # fmt: skip
    base = replace(base, backbone="small_cnn", batch_size=16, threads=1) if quick else base
    prepare(base, places)
    repeats, processes, head_epochs = (2, (1, 2), 2) if quick else (5, (1, 2, 4), 8)
    return Setting(torch.device(device), places, base, train, repeats, processes, head_epochs)


class Training:
    """A training through `fit`, epoch by epoch; its first, in which libraries are loaded and memory is taken, is over."""

    def __init__(self, config: Config, places: Places, world: World):
        self._epochs = fit(config, places, world=world)
        self.epoch = next(self._epochs)

    def seconds(self) -> float:
        """Of one epoch more, with its validation."""
        self.epoch = next(self._epochs)
        return self.epoch.metrics["seconds"]

    @property
    def loss(self) -> float:
        """Mean training loss of the last epoch."""
        return self.epoch.metrics["train_loss"]


class BareLoop:
    """The same training without `fit`: what must be done and nothing else. Its first epoch is over.

    Args:
        tuned: whether cuDNN tries its algorithms and takes the fastest (`fit` leaves that off).
        replicated: whether DistributedDataParallel stands around the network.
    """

    def __init__(self, config: Config, places: Places, device: torch.device, tuned: bool = False, replicated: bool = False):
        prepared = prepare(config, places)
        self.device, self.tuned, self.batch, self.bfloat16 = device, tuned, config.batch_size, config.precision == "bfloat16"
        model = prepared.model.to(device).train()
        self.network: nn.Module = DistributedDataParallel(model) if replicated else model
        group = {"params": list(model.parameters()), "weight_decay": config.weight_decay}
        self.optimizer = OPTIMIZERS[config.optimizer]([group], config.lr)
        self.images = torch.from_numpy(np.array(prepared.task.train.images)).to(device)
        self.labels = torch.from_numpy(np.array(prepared.task.train.labels)).to(device)
        self.loss = float("nan")
        self.seconds()

    def seconds(self) -> float:
        """Of one epoch."""
        torch.backends.cudnn.benchmark = self.tuned
        return seconds_of(self._epoch)

    def _epoch(self) -> None:
        total = torch.zeros((), device=self.device)
        batches = torch.randperm(len(self.images), device=self.device).split(self.batch)
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                outputs = self.network(self.images[batch])
            loss = F.cross_entropy(outputs.float(), self.labels[batch])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.loss = total.item() / len(batches)  # waits for the GPU


def in_turns(sides: Sequence[Training | BareLoop], repeats: int) -> list[list[float]]:
    """Seconds of each side's epochs, all sides in turn."""
    rounds = [[side.seconds() for side in sides] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds, strict=True)]


def step_operations(config: Config, places: Places) -> float:
    """Operations of training on one image: forward and backward pass."""
    prepared = prepare(config, places)
    images = torch.from_numpy(np.array(prepared.task.train.images[:2]))
    with FlopCounterMode(display=False) as counter:
        prepared.model.train()(images).sum().backward()
    return counter.get_total_flops() / len(images)


def peak(card: str) -> float | None:
    """Dense bf16 operations per second of a card by its name; None for one that is not known, and for a slice of a card."""
    words = set(re.findall(r"\w+", card))
    return next((1e12 * tera for name, tera in PEAKS.items() if set(name.split()) <= words), None) if "MIG" not in words else None


def share_row(shared: Setting, seconds: Sequence[float]) -> tuple[list[Row], list[str]]:
    """The share of the card's peak, where that is known."""
    operations, most = step_operations(shared.base, shared.places), peak(shared.card)
    noted = f"Training on one image takes {operations / 1e9:.3g} GFLOP"
    if most is None:
        return [], [f"{noted}; peak unknown for {shared.card}."]
    shares = [100 * operations * rate / most for rate in shared.rates(seconds)]
    return [Row("share of the card's dense bf16 peak", shares, unit=" %")], [
        f"{noted}; {shared.card} has a peak of {most / 1e12:.0f} TFLOP/s."
    ]


def one_process(shared: Setting, world: World, weights: Path) -> tuple[list[Row], list[str]]:
    """`fit` against the bare loop, bf16 against float32, waits for the GPU; writes the weights that come out."""
    sides = Training(shared.base, shared.places, world), *(BareLoop(shared.base, shared.places, shared.device, on) for on in (False, True))
    whole, bare, tuned = in_turns(sides, shared.repeats)
    losses = "training loss at the end " + ", ".join(f"{side.loss:.2g}" for side in sides)
    detail = f"an epoch of {shared.images} images: {seconds_text(whole)}, {seconds_text(bare)}, tuned {seconds_text(tuned)}; {losses}"
    rows = [
        Row("training through fit", shared.rates(whole), unit=" images/s", detail="bf16, channels-last; " + losses.split(",")[0]),
        *(shares := share_row(shared, whole))[0],
        Row("fit over a bare loop with all images on the GPU, time", ratios(whole, bare), detail=detail),
        Row("fit over the bare loop with cuDNN's tuning, time", ratios(whole, tuned)),
        *waits(shared, sides[0]),
    ]
    save_trained(shared, sides[0], weights)
    half, single = in_turns([sides[0], Training(replace(shared.base, precision="float32"), shared.places, world)], shared.repeats)
    detail = f"float32: {statistics.median(shared.rates(single)):.4g} images/s"
    rows.append(Row("bf16 over float32, time", ratios(half, single), detail=detail))
    return rows, [*shares[1], "float32 is float32 in convolutions too, not TF32."]


def waits(shared: Setting, training: Training) -> list[Row]:
    """How often a step makes the host wait for the GPU; the few waits of an epoch's end and its validation are counted in."""
    if shared.device.type != "cuda":
        return []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        training.seconds()
        torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    places = {f"{Path(warning.filename).name}:{warning.lineno}" for warning in found}
    steps = shared.images // shared.base.batch_size
    return [Row("times that a training step waits for the GPU", [len(found) / steps], at_most=0.5, detail=", ".join(sorted(places)))]


def save_trained(shared: Setting, training: Training, path: Path) -> None:
    """The backbone as it stands after the training's last epoch."""
    prepared = prepare(shared.base, shared.places)
    load(prepared, training.epoch.state())
    save_weights(path, prepared.model, {}, with_head=False)


def together(count: int, config: Config, places: Places, device: str, repeats: int, barrier: Any) -> list[tuple[float, float]]:
    """In a process of its own: start and end of each epoch, all `count` processes starting each at once."""
    try:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1 / count)
        training, moments = Training(config, places, World(0, 1, torch.device(device))), []
        for _ in range(repeats):
            barrier.wait()
            started = time.monotonic()
            training.seconds()
            moments.append((started, time.monotonic()))
        return moments
    except BaseException:
        barrier.abort()  # or the others would wait for ever
        raise


def several(shared: Setting, count: int) -> list[float] | str:
    """Images per second of so many processes in all, or why they could not run."""
    context = multiprocessing.get_context("spawn")
    config = replace(shared.base, threads=shared.base.threads or max(1, available_threads() // count))
    with context.Manager() as manager, ProcessPoolExecutor(count, mp_context=context) as pool:
        arguments = (count, config, shared.places, shared.device.type, shared.repeats, manager.Barrier(count))
        futures = [pool.submit(together, *arguments) for _ in range(count)]
        if errors := [error for future in futures if (error := future.exception()) and not isinstance(error, BrokenBarrierError)]:
            return f"{count} processes at once: {type(errors[0]).__name__}: {str(errors[0]).splitlines()[0]}"
        epochs = zip(*(future.result() for future in futures), strict=True)
    return [count * shared.images / (max(end for _, end in epoch) - min(start for start, _ in epoch)) for epoch in epochs]


def sharing(shared: Setting) -> tuple[list[Row], list[str]]:
    """1, 2, 4 processes on one GPU."""
    found = {count: several(shared, count) for count in shared.processes}
    rates = {count: each for count, each in found.items() if not isinstance(each, str)}
    rows = []
    for count, each in rates.items():
        times = f"{statistics.median(each) / statistics.median(rates[1]):.2f} times one process" if count > 1 and 1 in rates else ""
        rows.append(Row(f"{count} process{'es' * (count > 1)} of fit at once, in all", each, unit=" images/s", detail=times))
    limit = "Of several processes each may take its share of the memory (set_per_process_memory_fraction)."
    return rows, [limit, *(each for each in found.values() if isinstance(each, str))]


def head_trials(shared: Setting, world: World, weights: Path) -> list[Row]:
    """A head-only trial from the cached features against one that computes them in each epoch."""
    config = replace(shared.base, weights=str(weights), unfreeze="head", epochs=shared.head_epochs, lr=1e-3)
    before, scores = os.environ.get("TLRAY_FEATURES_GIB"), {}

    def trial(room: str) -> float:
        os.environ["TLRAY_FEATURES_GIB"] = room  # none: no features are cached
        started = time.perf_counter()
        last = list(fit(config, shared.places, world=world))[-1]
        scores[room] = f"{last.metrics['val_auroc']:.3f}"
        return time.perf_counter() - started

    times = []
    for _ in range(shared.repeats):
        evict(shared.places.folder("features"), 0)
        times.append([trial("8"), trial("8"), trial("0")])
    os.environ.pop("TLRAY_FEATURES_GIB") if before is None else os.environ.update(TLRAY_FEATURES_GIB=before)
    first, further, uncached = (list(column) for column in zip(*times, strict=True))
    rows = []
    for name, seconds in (("the first, with extraction", first), ("a further one", further)):
        what = f"a head-only trial of {shared.head_epochs} epochs, {name}, over an uncached one, time"
        detail = f"{seconds_text(seconds)}, {seconds_text(uncached)} uncached; validation AUROC {scores['8']} and {scores['0']}"
        rows.append(Row(what, ratios(seconds, uncached), detail=detail))
    return rows


def one_rank(shared: Setting, work: Path) -> list[Row]:
    """torch.distributed with one rank: what `fit` and DistributedDataParallel take more inside a group than outside."""
    backend = "nccl" if shared.device.type == "cuda" else "gloo"
    sides = [Training(shared.base, shared.places, World(0, 1, shared.device)), BareLoop(shared.base, shared.places, shared.device)]
    dist.init_process_group(backend, init_method=f"file://{work / 'rendezvous'}", rank=0, world_size=1)
    try:
        sides.append(Training(shared.base, shared.places, World.current()))
        sides.append(BareLoop(shared.base, shared.places, shared.device, replicated=True))
        alone, bare, grouped, replicated = in_turns(sides, shared.repeats)
    finally:
        dist.destroy_process_group()
    return [
        Row(f"fit in a {backend} group of one rank over fit alone, time", ratios(grouped, alone)),
        Row(f"the bare loop in DistributedDataParallel on {backend}, one rank, over without, time", ratios(replicated, bare)),
    ]


def main() -> int:
    """Measure and record."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it works; writes nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu for --quick where there is no GPU")
    asked = parser.parse_args()
    if asked.device == "cpu" and not asked.quick:
        parser.error("--device cpu goes with --quick")
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("This machine has no GPU that torch can use, so there is nothing to measure.", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shared = setting(asked.quick, asked.device, work)
        world = World(0, 1, shared.device)
        rows, notes = one_process(shared, world, work / "trained.safetensors")
        rows += head_trials(shared, world, work / "trained.safetensors") + one_rank(shared, work)
        torch.cuda.empty_cache()
        more, said = sharing(shared)
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}." if asked.device == "cuda" else "No GPU."
    title = f"{shared.base.backbone} at {shared.base.size} px on {shared.card}, batch {shared.base.batch_size}"
    (show if asked.quick else record)(Benchmark("gpu", title, [*rows, *more], [*notes, *said, versions]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

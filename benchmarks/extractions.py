"""Frozen features are extracted once, whoever asks, and never read half-made.

    python benchmarks/extractions.py

ResNet-50 at 32 px on pneumonia, CIFAR-10 weights, head-only. First, four processes that ask at the same moment, their cache empty: how
often were the same features extracted, and did all four train on the same numbers? Then a process that is killed (SIGKILL) when half of
the training images are done, and started again: what would a reader have found in between, and are the features in the end those of the
first part, bit by bit? The benchmark `searches` counts the extractions of whole searches.
"""

import argparse
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
from baselines.sides import extractions, most_per_key
from measure import SHARED, Benchmark, Row, record, show

from tlray.cache import Places, array_digest
from tlray.config import Config
from tlray.data.task import open_task
from tlray.training.fit import fit

DATA = SHARED / "data" / "npz" / "pneumonia_28.npz"
ASKERS, REPEATS = 4, 3
STRIDE = 8
"""One row in so many is looked at to see how far an extraction is."""
_together: list[Barrier] = []


@dataclass(frozen=True)
class Read:
    """What a process found.

    features: content of the features in the cache, key -> digest. losses: of its epoch on them, training and validation.
    """

    features: dict[str, str]
    losses: tuple[float, float]


def config_of(quick: bool) -> Config:
    """Head-only for one epoch; a quick one with a smaller network."""
    backbone = "mobilenet_v2" if quick else "resnet50"
    weights = SHARED / "weights" / f"{backbone}-cifar10.safetensors"
    return Config(task=f"npz:{DATA}", size=32, backbone=backbone, weights=str(weights), unfreeze="head", epochs=1, threads=1)


def meet_at(barrier: Barrier) -> None:
    """Give a new process the barrier at which it waits for the others."""
    _together.append(barrier)


def read(config: Config, cache: Path) -> Read:
    """Train an epoch of the head, extracting the features if nobody has; starts when all processes have come this far."""
    places = Places(cache=str(cache), offline=True)
    open_task(config.task, config.size, places)
    for barrier in _together:
        barrier.wait()
    metrics = list(fit(config, places))[-1].metrics
    if not metrics["cached"]:
        raise SystemExit("the epoch did not read its features from the cache")
    return Read(whole_features(cache), (metrics["train_loss"], metrics["val_loss"]))


def whole_features(cache: Path) -> dict[str, str]:
    """Every array of features that a reader would find, key -> digest."""
    found = sorted(path for path in (cache / "features").glob("*/features.npy") if not path.parent.name.startswith("."))
    return {path.parent.name: array_digest(np.load(path, mmap_mode="r", allow_pickle=False)) for path in found}


def in_processes(count: int, config: Config, cache: Path) -> list[Read]:
    """`read` in so many processes at the same moment."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, meet_at, (context.Barrier(count),)) as pool:
        return list(pool.map(read, [config] * count, [cache] * count))


def kill_half_way(config: Config, cache: Path, images: int) -> float:
    """Kill a process that extracts when half of the training images are done; the share that was done."""
    context: SpawnContext = multiprocessing.get_context("spawn")
    process = context.Process(target=read, args=(config, cache))
    process.start()
    share = 0.0
    while share < 0.5:
        process.join(0.01)
        if not process.is_alive():
            raise SystemExit("the process ended before half of the images were seen to be done")
        share = share_done(cache, images)
    end(process)
    return share


def end(process: SpawnProcess) -> None:
    """Kill it and wait until it is gone."""
    process.kill()
    process.join()


def share_done(cache: Path, images: int) -> float:
    """How much of the training images' features is written, of those that are being made; 0 when none are."""
    for path in (cache / "features").glob(".*.making-*/features.npy"):
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, FileNotFoundError):  # its header is not written yet, or it is whole by now
            continue
        if len(rows) == images:
            return float((rows[::STRIDE] != 0).any(axis=1).mean())
    return 0.0


@dataclass(frozen=True)
class Repeat:
    """What one repeat found: extractions of the same features and different answers among the askers; after the kill, how much was
    done, how many arrays a reader would have found, and the share of features that are those of the askers in the end."""

    most: int
    different: int
    done: float
    readable: int
    equal: float
    seconds: float


def repeat(config: Config, work: Path) -> Repeat:
    """Four askers with one cache, then a kill and a restart with another."""
    shared, broken = work / "shared", work / "broken"
    images = len(open_task(config.task, config.size, Places(cache=str(broken), offline=True)).train)
    answers = in_processes(ASKERS, config, shared)
    lines = extractions(shared)
    done = kill_half_way(config, broken, images)
    readable = len(whole_features(broken))
    again = in_processes(1, config, broken)[0].features
    first = answers[0].features
    different = len({(tuple(sorted(each.features.items())), each.losses) for each in answers})
    equal = sum(again.get(key) == content for key, content in first.items()) / len(first)
    most = max(most_per_key(lines), most_per_key(extractions(broken)))
    return Repeat(most, different, done, readable, equal, sum(line["seconds"] for line in lines))


def main() -> int:
    """Measure, and write the result unless it was only a quick look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once, with a smaller network, to see that it works; writes nothing")
    quick = parser.parse_args().quick
    config = config_of(quick)
    for path in (DATA, Path(config.weights)):
        if not path.is_file():
            raise SystemExit(f"{path} is missing: this benchmark needs the real data and weights")
    found = []
    for _ in range(1 if quick else REPEATS):
        with tempfile.TemporaryDirectory(prefix="extractions-") as work:
            found.append(repeat(config, Path(work)))
    took = f"{found[0].seconds:.1f} s for training and validation images"
    done = f"killed with {', '.join(f'{each.done:.0%}' for each in found)} of the training images done"
    rows = [
        Row(
            f"extractions of the same features, {ASKERS} processes asking at once", [float(each.most) for each in found], 1, 1, detail=took
        ),
        Row(f"different answers among the {ASKERS} (features and losses, bit by bit)", [float(each.different) for each in found], 1, 1),
        Row("features that a reader finds after a kill", [float(each.readable) for each in found], 0, 0, detail=done),
        Row("share of features that are whole and equal, bit by bit, after a restart", [each.equal for each in found], 1, 1),
    ]
    (show if quick else record)(Benchmark("extractions", "One extraction for each key, whole or not at all", rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

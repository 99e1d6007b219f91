"""Is a data set in memory once, however many processes train on it, and does a process that runs a hundred trials stay as large as it was?

    python benchmarks/memory.py

Anonymous memory as Linux counts it (`/proc/<pid>/smaps_rollup`): what a process has to itself, without the files that it maps. First, a
process that has no part in preparing the data trains small_cnn for some steps on 100 images of 28 px, and another one on 100 MB of them;
both validate on as many images, one batch, so that the difference is the data's. Read at the end of each epoch, with the training alive,
after the C library has given back what nobody holds (what it keeps for the next step is up to 10 MB of luck); the largest.
Second, a hundred trials of ResNet-50 at 32 px on BreastMNIST (full, head, last stage, LP-FT; two epochs each, a checkpoint after every
epoch) run one after the other on Ray as in a search, in one reused process, which is looked at ten times a second; a trial counts
by its mean.
"""

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import SHARED, Benchmark, Row, record, show

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.cluster.tuning import Book, grid
from tlray.config import Config
from tlray.data.task import open_task
from tlray.results import FINISHED, Trial
from tlray.training.fit import fit

WEIGHTS = SHARED / "weights" / "resnet50-cifar10.safetensors"
PIXELS = 28
FEW, MANY = 100, 100_000_000 // PIXELS**2
"""Training images: a hundred, and 100 MB of them."""
VALIDATED = 256
REPEATS = 5
TRIALS = 100
SETTLE, WINDOW = 10, 10
"""Trials that a new process is given to settle, and how many together are one figure."""
LOOK_SECONDS = 0.1
SMALL = Config(backbone="small_cnn", size=PIXELS, epochs=2, steps_per_epoch=10, batch_size=32, threads=1)
LARGE = Config(
    task="breastmnist", size=32, samples=128, backbone="resnet50", weights=str(WEIGHTS), epochs=2, threads=1
)  # fmt: skip
SCHEDULES = ("full", "head", "last_1", "head", "head_then_full")


def anonymous(pid: int | str) -> float | None:
    """Anonymous memory of a process in MB; None when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Anonymous:")), None)


def write_noise(path: Path, images: int) -> None:
    """An npz of noise with labels 0 and 1 in turn: so many training images, and VALIDATED others."""
    random, arrays = np.random.default_rng(0), {}
    for name, count in (("train", images), ("val", VALIDATED), ("test", VALIDATED)):
        arrays[f"{name}_images"] = random.integers(0, 256, (count, PIXELS, PIXELS), dtype=np.uint8)
        arrays[f"{name}_labels"] = np.arange(count) % 2
    np.savez(path, **arrays)


def largest(config: Config, places: Places) -> tuple[float, float]:
    """Anonymous memory in MB of this process while it trains: what it holds, and with what the C library keeps; largest over the epochs."""
    library, held, kept = ctypes.CDLL(None), [], []
    for _ in fit(config, places):
        kept.append(anonymous("self") or 0.0)
        library.malloc_trim(0)
        held.append(anonymous("self") or 0.0)
    return max(held), max(kept)


def data_rows(work: Path, places: Places, repeats: int) -> list[Row]:
    """How much larger a process is that trains on 100 MB than one that trains on 100 images."""
    found: dict[int, list[tuple[float, float]]] = {FEW: [], MANY: []}
    configs = {}
    for images in found:
        write_noise(work / f"noise-{images}.npz", images)
        configs[images] = replace(SMALL, task=f"npz:{work}/noise-{images}.npz")
        open_task(configs[images].task, PIXELS, places)
    for _ in range(repeats):
        for images, config in configs.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[images].append(pool.submit(largest, config, places).result())
    rows = []
    for which, (how, at_most) in enumerate((("held by", 5), ("of", None))):
        few, many = ([sizes[which] for sizes in found[images]] for images in (FEW, MANY))
        detail = f"{statistics.median(few):.1f} MB with {FEW} images, {statistics.median(many):.1f} MB with {MANY:,}"
        apart = [more - less for less, more in zip(few, many, strict=True)]
        what = f"anonymous memory {how} a further process: 100 MB of images less 100 images" + (
            "" if at_most else ", with what malloc keeps"
        )
        rows.append(Row(what, apart, at_most=at_most, unit=" MB", detail=detail))
    return rows


@dataclass
class Watch:
    """Follows the trials of a cell and the memory of the processes that run them.

    samples: MB by trial, in the order of time. pids: of the processes that have reported.
    """

    current: int = 0
    samples: dict[int, list[float]] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)

    def trial_started(self, cell: str, trial: Trial) -> None:
        """The next looks are at this trial."""
        self.current = trial.number

    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None:
        """Learn which process reports."""
        self.pids.add(result["pid"])

    def trial_ended(self, cell: str, trial: Trial) -> None:
        """Every trial must come to its end."""
        if trial.status != FINISHED:
            raise RuntimeError(f"trial {trial.number} ended as {trial.status}: {trial.reason}")

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the processes for the length of the block."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(LOOK_SECONDS):
                sizes = [size for pid in list(self.pids) if (size := anonymous(pid)) is not None]
                self.samples.setdefault(self.current, []).extend(sizes)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def of(self, numbers: Sequence[int]) -> tuple[float, float]:
        """Mean over these trials of each one's mean, and the largest sample; MB."""
        each = [found for number in numbers if (found := self.samples.get(number))]
        return statistics.fmean(map(statistics.fmean, each)), max(map(max, each))


def trials_rows(work: Path, places: Places, trials: int, settle: int, window: int) -> list[Row]:
    """How large the process is over its last trials against its first ones after it has settled."""
    watch = Watch()
    # a cycle of ten trials, so that each ten hold the same
    configs = [
        replace(LARGE, unfreeze=SCHEDULES[number % len(SCHEDULES)], batch_size=(64, 32)[number // len(SCHEDULES) % 2], lr=1e-4)
        for number in range(trials)
    ]
    job = Job("memory", work / "cell", "memory-breastmnist-resnet50", places, Resources(0, 1, 1, 0.0))
    with started(cpus=1), watch.looking():
        grid(Book(job, LARGE.minimise, watch), [("", config) for config in configs])
    early, late = watch.of(range(settle, settle + window)), watch.of(range(trials - window, trials))
    detail = f"mean {early[0]:.0f} and {late[0]:.0f} MB, largest {early[1]:.0f} and {late[1]:.0f} MB"
    names = [f"{first + 1} to {first + window}" for first in (trials - window, settle)]
    return [
        Row(f"anonymous memory in trials {names[0]} over that in trials {names[1]}", [late[0] / early[0]], at_most=1.05, detail=detail),
        Row("processes that ran them", [float(len(watch.pids))], at_most=1),
    ]


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once, four trials, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if not WEIGHTS.is_file():
        sys.exit(f"{WEIGHTS} is missing: this benchmark needs it")
    if not Path("/proc/self/smaps_rollup").is_file():
        sys.exit("this system does not say how much anonymous memory a process has: /proc/self/smaps_rollup is missing")
    with tempfile.TemporaryDirectory() as folder:
        work, places = Path(folder), Places(str(SHARED / "data"), f"{folder}/cache", True)
        rows = data_rows(work, places, 1 if quick else REPEATS)
        rows += trials_rows(work, places, *((4, 1, 1) if quick else (TRIALS, SETTLE, WINDOW)))
    notes = ["Labels and permutations, 8 bytes an image each, are a process's own; pixels and features are files that all processes map."]
    (show if quick else record)(Benchmark("memory", "Memory of trial processes", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How many epochs does tlray's search need to come as far as 32 random configurations trained whole?

    python benchmarks/search_quality.py [--work runs/search_quality]

Both sides draw from one space (head or last_1, learning rate, weight decay, dropout, scheduler, layer decay, label smoothing; no
augmentation, no known recipes first) for MobileNetV2 at 32 px from the CIFAR-10 weights, and train with the same seed and draw of images;
pneumonia on 1,200 training images of its 4,708. Random: 32 configurations of a seeded uniform sampler, all their epochs. tlray:
`tlray.cluster.tuning.search` (TPE and ASHA) over 32 trials, one at a time so that the figures can be had again; counted are its epochs,
in the order of time, until its best validation AUROC is within .005 of the best of the random ones. A search that never comes there
counts as 1. Beside it stands how many epochs the random configurations themselves take until one is as near, in the mean over orders in
which they might have been trained. Five seeds; with --work an interrupted benchmark goes on where it was.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
from measure import SHARED, Benchmark, Row, record, show
from optuna.distributions import BaseDistribution, CategoricalDistribution

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.sampler import Sampler, relevant
from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.cluster.tuning import Book, grid, search
from tlray.config import Config
from tlray.data.task import open_task
from tlray.results import FAILED, Trial
from tlray.runs.planning import SPACE

TARGET, NEAR, ORDERS = 1 / 3, 0.005, 1000
WEIGHTS, PNEUMONIA = SHARED / "weights" / "mobilenet_v2-cifar10.safetensors", SHARED / "data" / "npz" / "pneumonia_28.npz"
TASKS = {"breast": {"task": "breastmnist"}, "pneumonia": {"task": f"npz:{PNEUMONIA}", "samples": 1200}}
Space = dict[str, BaseDistribution]


@dataclass(frozen=True)
class Found:
    """What one seed came to: epochs until near enough (None: never; the random ones' mean), all epochs and the best AUROC of each side."""

    until: int | None
    random_until: float
    ours: int
    theirs: int
    best: float
    random_best: float

    @property
    def ratio(self) -> float:
        """Our epochs until then over all of theirs; 1 for a search that never came there."""
        return 1.0 if self.until is None else self.until / self.theirs


def space() -> Space:
    """The default space, of what keeps cached features in use."""
    return {**{name: each for name, each in SPACE.items() if name != "augment"}, "unfreeze": CategoricalDistribution(("head", "last_1"))}


def random_configs(base: Config, count: int, seed: int) -> list[Config]:
    """So many configurations drawn uniformly; what means nothing under a drawn schedule keeps the base's value."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    configs = []
    for _ in range(count):
        drawn = study.ask(space()).params
        schedule = replace(base, unfreeze=drawn["unfreeze"])
        configs.append(replace(base, **{name: value for name, value in drawn.items() if relevant(name, schedule)}))
    return configs


def compared(base: Config, count: int, folder: Path, places: Places, label: str) -> Found:
    """Both sides under one seed; takes up what an interrupted call left in `folder`. Ray must run."""

    def book(side: str, concurrent: int) -> Book:
        return Book(Job("search_quality", folder / side, f"{label}-{side}", places, Resources(0, concurrent, 1, 0.0)), base.minimise)

    drawn = [(f"{number}", config) for number, config in enumerate(random_configs(base, count, base.seed))]
    trained = grid(book("random", 2), drawn)
    theirs = rows_in_time(trained)
    ours = rows_in_time(search(book("search", 1), Sampler(base, space(), (), count, base.seed)))
    goal = max(theirs) - NEAR
    until = next((number for number, value in enumerate(ours, start=1) if value >= goal), None)
    return Found(until, mean_until(trained, goal), len(ours), len(theirs), max(ours), max(theirs))


def mean_until(trials: Sequence[Trial], goal: float) -> float:
    """Epochs until one of these trials reaches `goal`, one after another; the mean over ORDERS of their orders. One of them must."""
    reached = [next((row["epoch"] for row in trial.history if row["monitor"] >= goal), None) for trial in trials]
    generator, total = np.random.default_rng(0), 0
    for _ in range(ORDERS):
        for number in generator.permutation(len(trials)):
            if (at := reached[number]) is not None:
                total += at
                break
            total += len(trials[number].history)
    return total / ORDERS


def rows_in_time(trials: Sequence[Trial]) -> list[float]:
    """The validation AUROC of every epoch, in the order in which the epochs ended. Ends the benchmark when a trial failed."""
    if failed := [trial for trial in trials if trial.status == FAILED]:
        sys.exit(f"trial {failed[0].number} failed: {failed[0].reason}")
    return [row["monitor"] for row in sorted((row for trial in trials for row in trial.history), key=lambda row: row["time"])]


def rows_of(name: str, found: Sequence[Found]) -> list[Row]:
    """The two rows of a data set."""
    never = sum(each.until is None for each in found)
    until = " ".join("never" if each.until is None else str(each.until) for each in found)
    whole = f"searches whole {' '.join(str(each.ours) for each in found)}"
    themselves = f"the random ones themselves {' '.join(f'{each.random_until:.0f}' for each in found)}"
    detail = f"{until} of {found[0].theirs} epochs, {never} of {len(found)} never came there; {themselves}; {whole}"
    bests = " ".join(f"{each.best:.4f}/{each.random_best:.4f}" for each in found)
    return [
        Row(f"{name}: epochs of the search over those of the random ones", [each.ratio for each in found], TARGET, detail=detail),
        Row(f"{name}: best validation AUROC of the search less that of the random ones",
            [each.best - each.random_best for each in found], detail=bests),
    ]  # fmt: skip


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", metavar="DIR", help="keep the trials there, and take up those that are there")
    parser.add_argument("--quick", action="store_true", help="4 trials, one seed, and nothing is written: to see that it works")
    arguments = parser.parse_args()
    if missing := [path for path in (WEIGHTS, PNEUMONIA) if not path.is_file()]:
        sys.exit(f"{missing[0]} is missing: this benchmark needs it")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials, epochs, seeds = (4, 2, 1) if arguments.quick else (32, 8, 5)
    base = Config(backbone="mobilenet_v2", size=32, weights=str(WEIGHTS), unfreeze="head", epochs=epochs, threads=1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary, started(cpus=2):
        work = Path(arguments.work or temporary).resolve()
        places = Places(str(SHARED / "data"), str(work / "cache"), True, str(work))
        for name, fields in TASKS.items():
            open_task(fields["task"], base.size, places)
            found = []
            for seed in range(seeds):
                label = f"{name}-{trials}x{epochs}-seed-{seed}"
                found.append(compared(replace(base, seed=seed, **fields), trials, work / label, places, label))
                print(f"{label}: {found[-1]}", flush=True)
            rows += rows_of(name, found)
    notes = [
        "Epochs are counted alike whatever they cost; the features of both sides come from one cache.",
        f"Pneumonia: trained on {TASKS['pneumonia']['samples']:,} images, drawn by the seed.",
    ]
    (show if arguments.quick else record)(Benchmark("search_quality", "Search quality per cost", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

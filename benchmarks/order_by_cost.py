"""Is it worth running cheap trials first, or costly ones, and sharing the heads that LP-FT trains in its first phase?

    python benchmarks/order_by_cost.py

Order: one grid of 8 head-only, 4 last_1, 2 LP-FT and 3 full trainings (MobileNetV2, 32 px, 400 images of BreastMNIST, 4 epochs, from
the CIFAR-10 weights) on two slots through `tlray.cluster.tuning.grid`, cheap first, costly first and shuffled as a search would propose
them; features cached before, in turn. Heads: the share of an LP-FT training of 6 epochs that its head-only phase takes with cached
features, which is the most that sharing it could save.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measure import SHARED, Benchmark, Row, ratios, record, show

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.cluster.tuning import Book, grid
from tlray.config import Config
from tlray.results import FINISHED
from tlray.training.fit import fit

WEIGHTS = SHARED / "weights"
BASE = Config(
    task="breastmnist", samples=400, backbone="mobilenet_v2", size=32, weights=str(WEIGHTS / "mobilenet_v2-cifar10.safetensors"),
    epochs=4, threads=1,
)  # fmt: skip
COUNTS = {"head": 8, "last_1": 4, "head_then_full": 2, "full": 3}
"""Schedule -> trainings, from the cheapest to the costliest."""
NEAR = 0.005
ORDERS = ("shuffled", "cheap first", "costly first")
Outcome = tuple[float, float, float]


def arms(order: str, base: Config) -> list[tuple[str, Config]]:
    """Every training, named, in the order that is asked for."""
    cheap = [(f"{name}-{seed}", replace(base, unfreeze=name, seed=seed)) for name, count in COUNTS.items() for seed in range(count)]
    if order == "shuffled":
        random.Random(0).shuffle(cheap)
    return cheap[::-1] if order == "costly first" else cheap


def run(order: str, base: Config, folder: Path, places: Places) -> Outcome:
    """One grid: its wall time in s, when its best validation AUROC was reached within NEAR (s), and that best. Ray must run."""
    job = Job("order_by_cost", folder, "order_by_cost", places, Resources(0, 2, 1, 0.0))
    begun, clock = time.time(), time.perf_counter()
    trials = grid(Book(job, base.minimise), arms(order, base))
    seconds = time.perf_counter() - clock
    if bad := [trial for trial in trials if trial.status != FINISHED]:
        sys.exit(f"trial {bad[0].arm} ended as {bad[0].status}: {bad[0].reason}")
    rows = [row for trial in trials for row in trial.history]
    best = max(row["monitor"] for row in rows)
    return seconds, min(row["time"] for row in rows if row["monitor"] >= best - NEAR) - begun, best


def head_share(config: Config, places: Places) -> tuple[float, float, float]:
    """Of one LP-FT training in this process: the head-only phase in % of its epochs' time, then the seconds of both phases."""
    phases = [0.0, 0.0]
    for epoch in fit(replace(config, unfreeze="head_then_full"), places):
        phases[epoch.phase] += epoch.metrics["seconds"]
    return 100 * phases[0] / sum(phases), phases[0], phases[1]


def order_rows(runs: dict[str, list[Outcome]]) -> list[Row]:
    """Each order against the shuffled one: wall time, and time to the best value."""
    rows, shuffled = [], runs["shuffled"]
    for order in ORDERS[1:]:
        for what, index in (("wall time of the grid", 0), ("time until its best AUROC", 1)):
            ours, theirs = ([each[index] for each in side] for side in (runs[order], shuffled))
            bests = f"; best AUROC {runs[order][0][2]:.3f} and {shuffled[0][2]:.3f}" if index else ""
            detail = f"{_seconds(ours)} against {_seconds(theirs)}{bests}"
            rows.append(Row(f"{order} over shuffled: {what}", ratios(ours, theirs), detail=detail))
    return rows


def _seconds(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3g}" for value in values) + " s"


def head_rows(configs: dict[str, Config], repeats: int, places: Places) -> list[Row]:
    """The share of the head in LP-FT, for each named configuration."""
    rows = []
    for name, config in configs.items():
        next(fit(replace(config, unfreeze="head_then_full"), places))  # extracts the features
        shares = [head_share(config, places) for _ in range(repeats)]
        detail = f"{_seconds([each[1] for each in shares])} of {_seconds([each[1] + each[2] for each in shares])}"
        rows.append(Row(f"share of the head in LP-FT, {name}", [each[0] for each in shares], unit=" %", detail=detail))
    return rows


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 images, 2 epochs, once, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    resnet = replace(BASE, backbone="resnet50", size=28, weights=str(WEIGHTS / "resnet50-cifar10.safetensors"))
    for needed in (BASE.weights, resnet.weights):
        if not Path(needed).is_file():
            sys.exit(f"{needed} is missing: this benchmark needs it and the data beside it")
    repeats, samples, epochs, lpft_epochs = (1, 200, 2, 2) if quick else (3, 400, 4, 6)
    base = replace(BASE, samples=samples, epochs=epochs)
    networks = {"MobileNetV2, 32 px": BASE, "ResNet-50, 28 px": resnet}
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        alone = {name: replace(each, samples=samples, epochs=lpft_epochs) for name, each in networks.items()}
        heads = head_rows(alone, repeats, places)
        for schedule in ("head", "last_1"):
            next(fit(replace(base, unfreeze=schedule), places))
        runs: dict[str, list[Outcome]] = {order: [] for order in ORDERS}
        with started(cpus=2):
            for repeat in range(repeats):
                for order in ORDERS:
                    runs[order].append(run(order, base, Path(work, f"{order}-{repeat}"), places))
    notes = ["Ratios below 1 are in favour of the order; the wall time of a grid holds the start of its two processes."]
    (show if quick else record)(
        Benchmark("order_by_cost", "Cheap or costly trials first, and shared heads", order_rows(runs) + heads, notes)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

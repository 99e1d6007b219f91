"""Does wall time grow as a line with the number of trials, and with the number of images?

    python benchmarks/growth.py

Trials: whole searches (`tlray.cluster.tuning.search`, TPE, with the start of their processes) of 4 to 64 head-only trials of two
epochs in batches of 4 (a trial shall take longer than the noise of a start), MobileNetV2 on PneumoniaMNIST from the CIFAR-10 weights,
its features cached before; two epochs are the least that ASHA lets a trial have, so none is stopped and all do the same work.
Images: `fit` in this process, a small CNN on 1,000 to 16,000 images of MNIST, all of it training, two epochs. Every other repeat goes
from the largest size to the smallest, so that a machine that slows down or warms up does not look like growth. Printed are, for each
repeat, R^2 of its straight line, how far a size is from it at most, and the exponent p of a + b n^p where that fits best; R^2 over all
repeats stands beside, which their scatter lowers even where each is a line. `results/growth.svg` is the picture.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from measure import RESULTS, SHARED, Benchmark, Row, record, show
from optuna.distributions import BaseDistribution, FloatDistribution

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.sampler import Sampler
from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.cluster.tuning import Book, search
from tlray.config import Config
from tlray.report.style import BLUE, MUTED, Picture, standalone
from tlray.results import FINISHED
from tlray.training.fit import fit

PNEUMONIA = SHARED / "data" / "npz" / "pneumonia_28.npz"
WEIGHTS = SHARED / "weights" / "mobilenet_v2-cifar10.safetensors"
TRIALS, SAMPLES = (4, 8, 16, 32, 64), (1000, 2000, 4000, 8000, 16000)
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.5),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
}
POWERS = np.linspace(0.5, 2, 151)


@dataclass(frozen=True)
class Growth:
    """Wall times in s, [repeats][sizes], of what comes in `sizes`."""

    what: str
    sizes: Sequence[int]
    seconds: list[list[float]]

    def line(self, times: Sequence[Sequence[float]]) -> tuple[float, float]:
        """Constant and slope of the straight line by least squares through the repeats `times`."""
        slope, constant = np.polyfit(np.tile(self.sizes, len(times)), np.ravel(times), 1)
        return float(constant), float(slope)

    def on_line(self, times: Sequence[Sequence[float]]) -> np.ndarray:
        """What the line through `times` says for each size, float64 [sizes]."""
        constant, slope = self.line(times)
        return constant + slope * np.asarray(self.sizes)

    def r_squared(self, times: Sequence[Sequence[float]]) -> float:
        """Share of the variance of `times` that the line explains."""
        found = np.asarray(times)
        return float(1 - ((found - self.on_line(times)) ** 2).sum() / ((found - found.mean()) ** 2).sum())

    def deviation(self, times: Sequence[float]) -> float:
        """Largest distance of a size from the line of one repeat, in % of the line."""
        return float(100 * np.abs(np.asarray(times) / self.on_line([times]) - 1).max())

    def exponent(self, times: Sequence[float]) -> float:
        """The p of POWERS for which a constant plus a multiple of size^p is nearest to one repeat; 1 is linear."""
        sizes = np.asarray(self.sizes) / max(self.sizes)

        def misfit(power: float) -> float:
            columns = np.stack([np.ones_like(sizes), sizes**power], axis=1)
            return float(((columns @ np.linalg.lstsq(columns, times)[0] - times) ** 2).sum())

        return float(min(POWERS, key=misfit))

    def rows(self) -> list[Row]:
        """Its figures."""
        constant, slope = self.line(self.seconds)
        medians = ", ".join(f"{size:,}: {value:.3g}" for size, value in zip(self.sizes, np.median(self.seconds, axis=0), strict=True))
        detail = f"s, median of {len(self.seconds)}: {medians}; line {constant:.3g} s + {1e3 * slope:.3g} ms each"
        against = f"wall time against {self.what}"
        return [
            Row(f"{against}: R² of a line", [self.r_squared([each]) for each in self.seconds], at_least=0.99, detail=detail),
            Row(f"{against}: exponent", [self.exponent(each) for each in self.seconds], at_most=1.1),
            Row(f"{against}: farthest from the line", [self.deviation(each) for each in self.seconds], unit=" %"),
            Row(f"{against}: R² of one line through all repeats", [self.r_squared(self.seconds)]),
        ]


def to_and_fro(repeats: int, sizes: Sequence[int], measure: Callable[[int, int], float]) -> list[list[float]]:
    """What measure(repeat, size) gives, [repeats][sizes]; every other repeat is measured from the last size to the first."""
    seconds = []
    for repeat in range(repeats):
        order = sizes[::-1] if repeat % 2 else sizes
        took = {size: measure(repeat, size) for size in order}
        seconds.append([took[size] for size in sizes])
    return seconds


def searched(trials: int, folder: Path, places: Places) -> float:
    """Wall time of a search, s. Ray must run."""
    config = Config(
        task=f"npz:{PNEUMONIA}", backbone="mobilenet_v2", weights=str(WEIGHTS), unfreeze="head", batch_size=4, epochs=2, threads=1
    )  # fmt: skip
    job = Job("growth", folder, "growth", places, Resources(0, 2, 1, 0.0))
    begun = time.perf_counter()
    done = search(Book(job, config.minimise), Sampler(config, SPACE, (), trials, seed=0))
    seconds = time.perf_counter() - begun
    if bad := [trial for trial in done if trial.status != FINISHED]:
        sys.exit(f"trial {bad[0].number} ended as {bad[0].status}: {bad[0].reason}")
    return seconds


def fitted(samples: int, places: Places) -> float:
    """Wall time of a training in this process, s."""
    config = Config(task="mnist", samples=samples, backbone="small_cnn", epochs=2, threads=1)
    begun = time.perf_counter()
    for _ in fit(config, places):
        pass
    return time.perf_counter() - begun


def picture(growths: Sequence[Growth]) -> str:
    """Every repeat and the line, a panel for each of `growths`; SVG of a file of its own."""
    with Picture("Wall time grows as a line", width=6.6, height=2.8, columns=len(growths)) as drawn:
        for axes, growth in zip(drawn.axes, growths, strict=True):
            constant, slope = growth.line(growth.seconds)
            ends = np.array([0, max(growth.sizes)])
            axes.plot(ends, constant + slope * ends, color=MUTED, lw=1.2)
            axes.scatter(np.tile(growth.sizes, len(growth.seconds)), np.ravel(growth.seconds), s=18, color=BLUE, alpha=0.7, lw=0)
            axes.set(xlabel=growth.what, ylabel="wall time, s", ylim=(0, None), title=f"R² {growth.r_squared(growth.seconds):.4f}")
            ticks = [0, *growth.sizes[-3:]]
            axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    return standalone(drawn.svg)


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three small sizes, once, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if missing := [path for path in (WEIGHTS, PNEUMONIA) if not path.is_file()]:
        sys.exit(f"{missing[0]} is missing: this benchmark needs it")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials, samples, repeats = ((2, 4, 6), (100, 200, 400), 1) if quick else (TRIALS, SAMPLES, 5)
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        fitted(samples[0], places)  # prepares the data, and warms torch
        by_samples = to_and_fro(repeats, samples, lambda _, size: fitted(size, places))
        with started(cpus=2):
            searched(2, Path(work, "first"), places)  # extracts the features
            by_trials = to_and_fro(repeats, trials, lambda repeat, size: searched(size, Path(work, f"{repeat}-{size}"), places))
    growths = [Growth("trials", trials, by_trials), Growth("training images", samples, by_samples)]
    rows = [row for growth in growths for row in growth.rows()]
    notes = [
        "The constant of a search is the start of its two processes, that of a training the validation on 6,000 images.",
        "Targets are our own. Until 2026-11-22 R² was that of one line through all repeats, which three runs on busier days missed.",
    ]
    drawing = picture(growths)
    if quick:
        show(Benchmark("growth", "Growth", rows, notes))
        return 0
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.svg").write_text(drawing)
    record(Benchmark("growth", "Wall time grows as a line", rows, notes, ["growth.svg"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

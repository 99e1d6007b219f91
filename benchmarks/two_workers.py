"""Do two TorchTrainer workers of one thread train twice as fast as one?

    python benchmarks/two_workers.py

ResNet-50 at 64 px from scratch, all of it training, global batch 128 (64 for each of two workers), float32, through
`tlray.cluster.distributed.train_distributed` as `--workers-per-trial` does. BreastMNIST resized; validation is one of 100 folds, a
few images, so that the seconds of an epoch are those of training. Steps per second of all epochs but the first. The last row is what
the machine itself allows: two processes side by side that train batches of 64 and know nothing of each other.
"""

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

from measure import SHARED, Benchmark, Row, ratios, record, show

from tlray.cache import Places
from tlray.cluster.distributed import train_distributed
from tlray.cluster.resources import Resources
from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.config import Config
from tlray.data.task import open_task
from tlray.training.fit import fit

BASE = Config(
    task="breastmnist", size=64, folds=100, fold=0, backbone="resnet50", batch_size=128, steps_per_epoch=3, epochs=4, threads=1
)  # fmt: skip


def warm_rate(config: Config, seconds: Sequence[float]) -> float:
    """Steps per second over all epochs but the first, which starts the process's threads and memory."""
    assert config.steps_per_epoch is not None
    return config.steps_per_epoch * (len(seconds) - 1) / sum(seconds[1:])


def with_workers(workers: int, config: Config, places: Places) -> tuple[float, float]:
    """Steps per second in a TorchTrainer of so many workers of one thread, and the last epoch's training loss. Ray must run."""
    with tempfile.TemporaryDirectory(dir=Path(places.cache).parent) as folder:
        job = Job("two_workers", Path(folder), f"two_workers-{workers}", places, Resources(workers, 1, 1, 0.0))
        history = train_distributed(job, config).history
    return warm_rate(config, [row["seconds"] for row in history]), history[-1]["train_loss"]


def alone(config: Config, places: Places) -> float:
    """Steps per second of `fit` in this process."""
    return warm_rate(config, [epoch.metrics["seconds"] for epoch in fit(config, places)])


def side_by_side(config: Config, places: Places) -> float:
    """Steps per second of two processes that each train half of every batch, on their own."""
    half = replace(config, batch_size=config.batch_size // 2)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        rates = list(pool.map(alone, [half, replace(half, seed=1)], [places, places]))
    return sum(rates) / 2


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network, once, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: it holds the data that this benchmark trains on")
    config = replace(BASE, backbone="small_cnn", epochs=2) if quick else BASE
    one, two, free = [], [], []
    with tempfile.TemporaryDirectory() as work:
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        open_task(config.task, config.size, places)
        for _ in range(1 if quick else 3):
            with started(cpus=2):
                one.append(with_workers(1, config, places))
                two.append(with_workers(2, config, places))
            free.append(side_by_side(config, places))
    rates = [[rate for rate, _ in runs] for runs in (one, two)]
    steps = [" ".join(f"{1 / rate:.3g}" for rate in each) for each in (*rates, free)]
    losses = f"training loss {one[-1][1]:.3f} and {two[-1][1]:.3f}"
    rows = [
        Row("steps/s, two workers over one", ratios(rates[1], rates[0]), at_least=1.7,
            detail=f"{steps[1]} s a step against {steps[0]} s; {losses}"),
        Row("steps/s, two processes on their own over one worker", ratios(free, rates[0]), detail=f"{steps[2]} s a step"),
    ]  # fmt: skip
    notes = [
        "Batch-norm is per worker, so the two trainings see different statistics and their losses are alike, not equal.",
        "Validation (six images) is within the seconds of an epoch, checkpoints are not.",
    ]
    (show if quick else record)(Benchmark("two_workers", "Two TorchTrainer workers against one", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

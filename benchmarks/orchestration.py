"""64 trials that compute for one second each, two at a time: how much longer than the 32 s that the computing alone takes?

    python benchmarks/orchestration.py

tlray's own in-process trials (`tlray.cluster.tuning.grid`, with the dashboard, checkpoints and trial files of every run) of a small
CNN on 32 images, whose one epoch burns one second of CPU time on one thread. CPU time and not wall time, so that whatever Ray's
own processes take from the two cores counts as well. Warm: the clock of a slot starts when its first trial, which waits for a
process and for torch, has ended. Also printed: where the time goes that is not computing.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from measure import SHARED, Benchmark, Row, record, show
from torch import Generator, Tensor

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.cluster.tuning import Book, grid
from tlray.config import Config
from tlray.registry import AUGMENTS
from tlray.results import FINISHED, Trial

SLOTS, COMPUTE_S = 2, 1.0
NOTES = "TLRAY_BENCHMARK_NOTES"
"""Environment variable: the folder where each trial process notes the wall time of its computing, a line a trial."""


@AUGMENTS.register("one_second")
def one_second(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Changes nothing, but takes COMPUTE_S seconds of CPU time on this thread; notes how long that took by the clock."""
    begun, until = time.perf_counter(), time.thread_time() + COMPUTE_S
    work = torch.ones(128, 128)
    while time.thread_time() < until:
        work = (work @ work).clamp(-1, 1)
    with Path(os.environ[NOTES], str(os.getpid())).open("a") as file:
        file.write(f"{time.perf_counter() - begun}\n")
    return images, targets


@dataclass(frozen=True)
class BusyJob(Job):
    """A Job whose unpickling imports this module, so that the trials' processes know `one_second`."""


@dataclass
class Clock:
    """Notes, in seconds since the epoch, when the driver hears of a trial's start, of its epoch and of its end."""

    started: dict[int, float] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)

    def trial_started(self, cell: str, trial: Trial) -> None:
        """Its file is on disk; a process is given it next."""
        self.started[trial.number] = time.time()

    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None:
        """Its checkpoint is on disk."""
        self.heard[number] = time.time()

    def trial_ended(self, cell: str, trial: Trial) -> None:
        """Its process is free."""
        self.ended[trial.number] = time.time()


def computing_by_the_clock() -> float:
    """Sum of what the trials' processes noted, s, but for the first trial of each; clears the notes."""
    total = 0.0
    for file in Path(os.environ[NOTES]).iterdir():
        total += sum(float(line) for line in file.read_text().splitlines()[1:])
        file.unlink()
    return total


def measured(folder: Path, places: Places, count: int) -> tuple[float, dict[str, float]]:
    """One grid of SLOTS + `count` trials: wall time of the warm ones, and where it goes (both in s, per slot). Ray must run."""
    clock, places = Clock(), Places(places.data, places.cache, True, str(folder))
    job = BusyJob("orchestration", folder, "orchestration", places, Resources(0, SLOTS, 1, 0.0))
    base = Config(task="breastmnist", samples=32, batch_size=32, epochs=1, backbone="small_cnn", augment="one_second", threads=1)
    arms = [(f"{seed}", replace(base, seed=seed)) for seed in range(SLOTS + count)]
    trials = grid(Book(job, False, clock), arms)
    if bad := [trial for trial in trials if trial.status != FINISHED]:
        sys.exit(f"trial {bad[0].number} ended as {bad[0].status}: {bad[0].reason}")
    ready = sum(clock.ended[number] for number in range(SLOTS)) / SLOTS
    wall = max(clock.ended.values()) - ready
    warm = [(trial.number, trial.history[0]) for trial in trials[SLOTS:]]
    computing = computing_by_the_clock()
    parts = {
        "computing": COMPUTE_S * count,
        "computing interrupted, as Ray's own processes need the cores too": computing - COMPUTE_S * count,
        "the rest of the epoch (network, optimizer, validation)": sum(row["seconds"] for _, row in warm) - computing,
        "checkpoint, the trial's file and its report": sum(clock.heard[number] - row["time"] for number, row in warm),
        "end of the trial in the driver": sum(clock.ended[number] - clock.heard[number] for number, _ in warm),
        "start of the trial": sum(row["time"] - row["seconds"] - clock.started[number] for number, row in warm),
    }
    parts["between trials, and a slot that idles at the end"] = SLOTS * wall - sum(parts.values())
    return wall, {name: seconds / SLOTS for name, seconds in parts.items()}


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="8 trials, once, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: it holds the data that this benchmark trains on")
    count, repeats = (8, 1) if quick else (64, 3)
    floor = COMPUTE_S * count / SLOTS
    with tempfile.TemporaryDirectory() as work:
        os.environ[NOTES] = tempfile.mkdtemp(dir=work)  # before Ray starts, so that its processes know it
        places = Places(str(SHARED / "data"), f"{work}/cache", True)
        with started(cpus=SLOTS):
            runs = [measured(Path(work, f"run-{repeat}"), places, count) for repeat in range(repeats)]
    walls = [wall for wall, _ in runs]
    detail = f"{' '.join(f'{wall:.2f}' for wall in walls)} s against {floor:.0f} s"
    rows = [
        Row(f"{count} trials of {COMPUTE_S:.0f} s, {SLOTS} slots, over the minimum", [wall / floor for wall in walls], 1.1, detail=detail)
    ]
    for name in runs[0][1]:
        if name != "computing":
            rows.append(Row(f"of that: {name}", [100 * parts[name] / floor for _, parts in runs], unit=" %"))
    notes = ["A slot's clock starts when its first trial has ended; parts are sums over the warm trials, in % of the minimum."]
    (show if quick else record)(Benchmark("orchestration", "What running trials on Ray costs", rows, notes))
    return 0


if __name__ == "__main__":
    from orchestration import main as imported  # the trials' processes can import this module, but not __main__

    sys.exit(imported())

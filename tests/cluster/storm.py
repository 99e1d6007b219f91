"""The kill storm: small searches, each with one `kill -9` of a random process at a random moment, then the same command with --resume.

    make storm ARGS="--runs 30 --seed 0"

Every run must end with the uninterrupted run's winner and histories, bit for bit (one trial at a time), no finished trial trained
again, and its results complete. About a minute a run. Only processes that descend from the run's own command are killed.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cluster_toys import without_clock  # noqa: E402
from processes import Process, family  # noqa: E402
from toy_data import write_toy  # noqa: E402

from tlray.results import Trial, read_results, read_summary, read_trials, trial_folder  # noqa: E402

TRIALS, EPOCHS, PATIENCE = 3, 5, 240.0
VICTIMS = ("driver", "trial", "worker", "raylet", "controller")
OF_TRAINERS = ("worker", "controller")
"""Victims that only a search with workers has."""


@dataclass(frozen=True)
class Search:
    """A search on toy data, `workers` per trial (0: in process)."""

    npz: Path
    storage: Path
    name: str
    workers: int

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    @property
    def argv(self) -> list[str]:
        return [
            sys.executable, str(ROOT / "experiments" / "tune_backbones.py"), "--tasks", f"npz:{self.npz}", "--backbones", "small_cnn",
            "--weights", "none", "--trials", str(TRIALS), "--epochs", str(EPOCHS), "--concurrent", "1", "--cpus-per-trial", "1",
            "--workers-per-trial", str(self.workers), "--storage", str(self.storage), "--name", self.name, "--offline",
        ]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        with open(self.storage / f"{self.name}.log", "a") as log:
            return subprocess.Popen([*self.argv, *more], stdout=log, stderr=log, start_new_session=True)

    def trials(self) -> list[Trial]:
        cells = list(self.folder.glob("*-small_cnn"))
        return read_trials(cells[0]) if cells else []

    def ended(self) -> dict[int, bytes]:
        """Number -> its file, of every trial that has ended."""
        cells = list(self.folder.glob("*-small_cnn"))
        return {each.number: (trial_folder(cells[0], each.number) / "trial.json").read_bytes() for each in self.trials() if each.ended}


def wait(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` gives as soon as it is true."""
    deadline, pause = time.monotonic() + PATIENCE, threading.Event()
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {PATIENCE:g} s")
        pause.wait(0.05)
    return answer


def find(victim: str, driver: int, name: str) -> Process | None:
    """The process of that kind in the driver's family: the newest, where there are several."""
    mine = family(driver)
    if victim == "driver":
        return mine[0] if mine else None
    marks = {
        "trial": (f"ray::{name}-", "ray::ImplicitFunc"),  # in process, and what drives a TorchTrainer
        "worker": ("ray::RayTrainWorker",), "raylet": ("/raylet/raylet ",), "controller": ("ray::TrainController",),
    }  # fmt: skip
    found = [each for each in mine if any(mark in each.name for mark in marks[victim])]
    return max(found, key=lambda each: int(each.started), default=None)


def figures(search: Search) -> tuple[Any, ...]:
    """All that a search gives, without what the clock and the stopwatch gave it."""
    summary = read_summary(search.folder)
    assert not summary["partial"], "the summary is partial"
    (cell,) = summary["cells"]
    trials = [(each.number, each.config, each.status, without_clock(each.history)) for each in search.trials()]
    told = {key: cell[key] for key in ("winner", "validation", "test", "temperature", "threshold", "trials", "epochs")}
    return trials, told, len(read_results(search.folder))


@dataclass(frozen=True)
class Whole:
    """An uninterrupted search: what it gave, and how long it took from its first trial to its end in seconds."""

    figures: tuple[Any, ...]
    seconds: float


def uninterrupted(npz: Path, storage: Path, workers: int) -> Whole:
    """Run a search to its end."""
    search = Search(npz, storage, f"whole-{workers}", workers)
    process = search.start()
    wait(lambda: search.trials() or process.poll() is not None, "the first trial")
    begun = time.monotonic()
    status = process.wait(timeout=PATIENCE)
    assert status == 0, (storage / f"{search.name}.log").read_text()
    return Whole(figures(search), time.monotonic() - begun)


def strike(search: Search, victim: str, moment: float) -> str:
    """Start a search, kill one of its processes `moment` seconds after its first trial began, and see it to its end; what happened.

    "" where it was over before.
    """
    process = search.start()
    wait(lambda: search.trials() or process.poll() is not None, "the first trial")
    begun = time.monotonic()
    wait(lambda: time.monotonic() - begun >= moment or process.poll() is not None, "the moment")
    ended: dict[int, bytes] = {}

    def struck() -> bool:
        found = find(victim, process.pid, search.name)
        ended.update(search.ended())
        if found is None:
            return False
        try:
            os.kill(found.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return False
        return True

    outcome = wait(lambda: "struck" if struck() else process.poll() is not None and "over", f"a {victim}")
    if outcome == "over":
        assert process.returncode == 0, "it ended before it was struck"
        return ""
    status = process.wait(timeout=PATIENCE)
    note = f"ended with {status}"
    if status != 0:
        again = search.start("--resume").wait(timeout=PATIENCE)
        assert again == 0, f"--resume ended with {again}"
        note += ", resumed"
    after = search.ended()
    repeated = [number for number, content in ended.items() if after.get(number) != content]
    assert not repeated, f"finished trials {repeated} were touched again"
    return f"{note}, {len(ended)} of {TRIALS} had finished, {sum(each.lost for each in search.trials())} lost"


def blow(search: Search, victim: str, moment: float, whole: Whole) -> str:
    """One run of the storm; raises AssertionError with what is wrong."""
    while not (note := strike(search, victim, moment)):  # the machine was busier when the whole search was measured
        moment, search = moment / 2, replace(search, name=f"{search.name}-sooner")
        assert moment > 0.1, f"no {victim} was seen"
    assert figures(search) == whole.figures, "its results are not the uninterrupted run's"
    for left in ("report.html", "results.parquet"):
        assert (search.folder / left).is_file(), f"{left} is missing"
    return f"struck at {moment:5.1f} s, {note}"


def draw(seed: int, wholes: dict[int, Whole]) -> tuple[int, str, float]:
    """(workers, victim, moment) of a seed."""
    seeded = random.Random(seed)
    workers = seeded.choice(sorted(wholes))
    victim = seeded.choice([each for each in VICTIMS if workers or each not in OF_TRAINERS])
    return workers, victim, seeded.uniform(0.0, 0.9 * wholes[workers].seconds)


def main() -> int:
    """The storm; 0 when every run came through."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="workers per trial that are drawn from")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        os.environ |= {"TLRAY_CACHE": f"{folder}/cache", "PYTHONPATH": str(ROOT)}
        npz = write_toy(Path(folder) / "toy.npz", train=1024, val=64, test=64, seed=3)
        wholes = {workers: uninterrupted(npz, Path(folder), workers) for workers in arguments.workers}
        for number in range(arguments.seed, arguments.seed + arguments.runs):
            workers, victim, moment = draw(number, wholes)
            begun = time.monotonic()
            search = Search(npz, Path(folder), f"storm-{number}", workers)
            try:
                said = blow(search, victim, moment, wholes[workers])
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failures += 1
                logs = sorted(search.storage.glob(f"{search.name}*.log"))
                said = "\n".join([f"FAILED: {error}", *(log.read_text()[-3000:] for log in logs)])
            seconds = time.monotonic() - begun
            print(f"{number:4d}  {workers} workers  {victim:10}  {seconds:5.1f} s  {said}", flush=True)
        print(f"{arguments.runs - failures} of {arguments.runs} came through")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

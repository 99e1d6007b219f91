"""What the tests of Ray share: augmentations that go wrong in a trial's process, a scripted sampler, jobs, waiting.

Trials run in other processes; a pickled `ToyJob` makes them import this module, which registers the augmentations there too.
"""

import contextlib
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from processes import family
from torch import Generator, Tensor
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.trial import Job
from tlray.config import Config
from tlray.registry import AUGMENTS
from tlray.results import Trial, read_trials

KILLED_AT_BATCH = 5
_batches = {"count": 0, "told": 0}


@AUGMENTS.register("toy_raises")
def raises(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """A bug of ours: no user's error."""
    raise RuntimeError("this augmentation is broken\nsecond line")


@AUGMENTS.register("toy_nan")
def nan(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Makes the loss NaN."""
    return images * float("nan"), targets


@AUGMENTS.register("toy_killed")
def killed(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Changes nothing, but the first process to come to its fifth batch here dies at once, as by `kill -9`."""
    _batches["count"] += 1
    marker = killed_marker()
    if _batches["count"] >= KILLED_AT_BATCH and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return images, targets


@AUGMENTS.register("toy_always_killed")
def always_killed(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Every process that comes here dies at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    return images, targets


@AUGMENTS.register("toy_told_to_go")
def told_to_go(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Changes nothing, but the first process to come to its third batch here is told that its machine goes away; writes who came when."""
    _batches["told"] += 1
    with open(told_marker(), "a") as file:
        file.write(f"{os.getpid()} {_batches['told']}\n")
    thirds = [line.split()[0] for line in told_marker().read_text().splitlines() if line.endswith(" 3")]
    if _batches["told"] == 3 and thirds[0] == str(os.getpid()):  # two workers may both have written theirs by now
        os.kill(os.getpid(), signal.SIGTERM)
    return images, targets


@AUGMENTS.register("toy_too_large")
def too_large(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Asks for more memory than there is, as a batch that is too large does."""
    return torch.empty(1 << 50), targets


@AUGMENTS.register("toy_slow")
def slow(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Changes nothing, but takes as long as work on a larger network does, until somebody hurries it."""
    until = time.monotonic() + 0.5
    while time.monotonic() < until and not hurry_marker().exists():
        images = images + 0
    return images, targets


@AUGMENTS.register("toy_where")
def where(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Changes nothing, slowly, and leaves a file named by the node it runs on."""
    import ray

    (Path(os.environ["TLRAY_CACHE"]) / f"toy-where-{ray.get_runtime_context().get_node_id()}").touch()
    return slow(images, targets, generator)


@AUGMENTS.register("toy_noted")
def noted(images: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Changes nothing, but notes its process."""
    with open(noted_marker(), "a") as file:
        file.write(f"{os.getpid()}\n")
    return images, targets


def noted_marker() -> Path:
    """Where `toy_noted` writes a line for each batch."""
    return Path(os.environ["TLRAY_CACHE"]) / "toy-noted"


def killed_marker() -> Path:
    """The file that says that `toy_killed` has killed."""
    return Path(os.environ["TLRAY_CACHE"]) / "toy-killed"


def told_marker() -> Path:
    """Where `toy_told_to_go` writes a line "<process> <batch>" for each batch."""
    return Path(os.environ["TLRAY_CACHE"]) / "toy-told"


def hurry_marker() -> Path:
    """The file that makes `toy_slow` fast."""
    return Path(os.environ["TLRAY_CACHE"]) / "toy-hurry"


@dataclass(frozen=True)
class ToyJob(Job):
    """A Job whose unpickling imports this module."""


@dataclass(frozen=True)
class LateJob(ToyJob):
    """A Job of two processes, of which the one that starts last is not ready before three trials have ended.

    driver: the process that makes it, which waits for nobody.
    """

    driver: int = field(default_factory=os.getpid)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if os.getpid() == self.driver:
            return
        first = Path(str(self.cell)) / "first"
        with contextlib.suppress(FileExistsError), open(first, "x") as file:
            file.write(str(os.getpid()))
        wait_until(lambda: first.read_text() == str(os.getpid()) or sum(trial.ended for trial in read_trials(self.cell)) >= 3)


def toy_job(folder: Path, places: Places, workers: int = 0, run: str = "toy", concurrent: int = 1) -> ToyJob:
    """A cell at `folder`, `concurrent` trials at a time with one CPU per process."""
    return ToyJob(run, folder, f"{run}-{folder.name}", places, Resources(workers, concurrent, 1, 0.0))


@dataclass(frozen=True)
class Scripted:
    """Proposes the given configurations in their order; remembers what it was told."""

    configs: Sequence[Config]
    first: tuple[dict[str, Any], ...] = ()
    told: list[list[Trial]] = field(default_factory=list)

    @property
    def base(self) -> Config:
        return self.configs[0]

    @property
    def trials(self) -> int:
        return len(self.configs)

    def propose(self, number: int, known: Sequence[Trial]) -> Config:
        self.told.append(list(known))
        return self.configs[number]


def toy_config(file: Path, **changes: Any) -> Config:
    """small_cnn on an npz file, two batches per epoch, one thread."""
    base = Config(task=f"npz:{file}", backbone="small_cnn", lr=1e-3, epochs=3, batch_size=32, threads=1)
    return replace(base, **changes)


def without_clock(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without what the wall clock gave it."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "time")} for row in history]


def all_cpus_free() -> bool:
    """Whether nothing holds a CPU of the joined Ray."""
    import ray

    return ray.available_resources().get("CPU", 0.0) == ray.cluster_resources()["CPU"]


def kill_controllers() -> int:
    """Kill what drives the TorchTrainers of this process's Ray, as the end of a node does; how many there were."""
    found = [each for each in family(os.getpid()) if "ray::TrainController" in each.name]
    for each in found:
        os.kill(each.pid, signal.SIGKILL)
    return len(found)


def get(url: str, token: str | None = None) -> tuple[int, bytes]:
    """Status and body of a page of a dashboard."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

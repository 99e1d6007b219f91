"""A side of a search: a script that is asked in one JSON file, answers in another, and has a fresh process to itself.

The clock runs from the start of that process to the moment at which it knows its winner.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlray.cache import write_json

HERE = Path(__file__).resolve().parent
CHANCE = 0.5
"""AUROC of a trial that came to no epoch."""


@dataclass(frozen=True)
class Found:
    """What a side found.

    started, finished: seconds since the epoch, of its process's start and of the winner being known. rows: a dict for each epoch with
    trial, epoch, val_auroc and time (at its end). trials: how many it ran.
    """

    started: float
    finished: float
    rows: list[dict[str, Any]]
    trials: int

    @property
    def seconds(self) -> float:
        """From the process's start to the winner."""
        return self.finished - self.started

    @property
    def best_of_trials(self) -> list[float]:
        """The best validation AUROC of each trial."""
        found = dict.fromkeys(range(self.trials), CHANCE)
        for row in self.rows:
            found[row["trial"]] = max(found[row["trial"]], row["val_auroc"])
        return list(found.values())

    @property
    def best(self) -> float:
        """The winner's validation AUROC."""
        return max(self.best_of_trials)

    def seconds_until(self, auroc: float) -> float:
        """From the process's start to the end of the first epoch with at least this validation AUROC; infinite when there is none."""
        return min((row["time"] for row in self.rows if row["val_auroc"] >= auroc), default=float("inf")) - self.started

    def quality(self) -> str:
        """Best and median validation AUROC over the trials, in words."""
        return f"validation AUROC best {self.best:.4f}, median {statistics.median(self.best_of_trials):.4f}"


def read_request() -> dict[str, Any]:
    """What this process, a side, is asked."""
    return json.loads(Path(sys.argv[1]).read_text())


def write_answer(**answer: Any) -> None:
    """Answer the question of `read_request`."""
    write_json(sys.argv[2], answer)


def ask(script: str, request: dict[str, Any], folder: Path, cache: Path) -> tuple[float, dict[str, Any]]:
    """Let a script of this folder answer in a process of its own; when it was started (seconds since the epoch), and its answer.

    Args:
        folder: of its own, for the question, the answer, what it prints and what it makes; made here.
        cache: tlray's cache, for it alone.

    Raises SystemExit with the last lines that it printed when it fails.
    """
    return wait_for(start(script, request, folder, cache))


@dataclass(frozen=True)
class Asked:
    """A script at work."""

    script: str
    process: subprocess.Popen
    folder: Path
    started: float


def start(script: str, request: dict[str, Any], folder: Path, cache: Path) -> Asked:
    """As `ask`, but does not wait for the answer."""
    folder.mkdir(parents=True)
    write_json(folder / "request.json", {**request, "folder": str(folder)})
    command = [sys.executable, str(HERE / script), str(folder / "request.json"), str(folder / "answer.json")]
    # the path is for Ray's workers, which import the loop by name
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TLRAY_CACHE": str(cache), "PYTHONPATH": path}
    with open(folder / "log.txt", "wb") as log:
        started = time.time()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    return Asked(script, process, folder, started)


def wait_for(asked: Asked) -> tuple[float, dict[str, Any]]:
    """When it was started, and its answer. Raises SystemExit as `ask` does."""
    try:
        status = asked.process.wait()
    except BaseException:
        asked.process.terminate()
        asked.process.wait()
        raise
    if status:
        last = "\n".join((asked.folder / "log.txt").read_text(errors="replace").splitlines()[-30:])
        raise SystemExit(f"{asked.script} ended with status {status}; the last that it printed:\n{last}")
    return asked.started, json.loads((asked.folder / "answer.json").read_text())


def search(script: str, request: dict[str, Any], folder: Path, cache: Path) -> Found:
    """What a side finds that answers with rows, finished and trials. Its folder, gigabytes of checkpoints, is deleted."""
    started, answer = ask(script, request, folder, cache)
    shutil.rmtree(folder)
    return Found(started, answer["finished"], answer["rows"], answer["trials"])


def extractions(cache: Path) -> list[dict[str, Any]]:
    """The record of every extraction of frozen features in a cache. Raises FileNotFoundError when there was none."""
    return [json.loads(line) for line in (cache / "features" / "extractions.jsonl").read_text().splitlines()]


def most_per_key(record: Sequence[dict[str, Any]]) -> int:
    """How often the features that were extracted most often were."""
    keys = [each["key"] for each in record]
    return max(keys.count(key) for key in keys)

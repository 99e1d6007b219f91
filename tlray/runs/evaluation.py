"""What a comparison measures of each training: probabilities on training, validation and test images, and what it cost."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlray.cache import DAMAGED, Places, write_bytes
from tlray.data.held_out import open_test
from tlray.data.loader import mix
from tlray.data.task import Split, Task
from tlray.deploy.package import measure_latency
from tlray.errors import RunError, raise_unless_of_the_file
from tlray.models.classifier import describe
from tlray.models.kinds import KINDS
from tlray.results import Trial, trial_folder
from tlray.runs.delivery import assemble, logits_of
from tlray.storage import AnyPath
from tlray.training.calibration import operating_threshold
from tlray.training.metrics import evaluate
from tlray.training.setup import Prepared

TRAIN_IMAGES = 1000
"""Most training images that are scored again after training, in eval mode and without augmentation; drawn by the seed."""
SPLITS = ("train", "val", "test")


class TestDoor:
    """Opens the test split of each task once for all trainings of a comparison, and only when one is still to be scored."""

    __test__ = False  # pytest takes it for a test otherwise

    def __init__(self, ledger: AnyPath, purpose: str):
        self.ledger, self.purpose = ledger, purpose
        self._opened: dict[Path, Split] = {}

    def split(self, task: Task) -> Split:
        """The test split of `task`."""
        if task.folder not in self._opened:
            self._opened[task.folder] = open_test(task, self.ledger, self.purpose)
        return self._opened[task.folder]


@dataclass(frozen=True)
class Scored:
    """A training at its best validation epoch.

    probabilities, labels: of the splits in SPLITS, float [N, K] and int [N] or [N, K]. groups: of the test split. facts: parameters,
    megabytes, ms_per_image.
    """

    kind: str
    probabilities: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    groups: np.ndarray | None
    facts: dict[str, float]

    def metrics(self, split: str) -> dict[str, float]:
        """Every metric at threshold .5."""
        return evaluate(self.kind, self.probabilities[split], self.labels[split])

    def at_threshold(self) -> dict[str, float] | None:
        """Test metrics at the threshold with the highest Youden index on validation; None where the top class decides."""
        threshold = operating_threshold(self.kind, self.probabilities["val"], self.labels["val"])
        return None if threshold is None else evaluate(self.kind, self.probabilities["test"], self.labels["test"], threshold)


def score(cell: AnyPath, trial: Trial, minimise: bool, places: Places, door: TestDoor) -> Scored:
    """Score a training, or read what an interrupted run has scored before.

    Raises RunError when its checkpoint or its file is damaged.
    """
    row = trial.best_row(minimise)
    assert row is not None, "only trainings that came to their end are scored"
    file = trial_folder(cell, trial.number) / "scored.npz"
    if not file.is_file():
        prepared = assemble(cell, trial, row["epoch"], places)
        write_bytes(file, _packed(_arrays(prepared, door.split(prepared.task)), _facts(prepared)))
    return _read(file)


def _arrays(prepared: Prepared, test: Split) -> dict[str, np.ndarray]:
    task, kind = prepared.task, KINDS[prepared.task.kind]
    chosen = prepared.train
    if len(chosen) > TRAIN_IMAGES:
        rng = np.random.default_rng(mix("scored", prepared.config.seed))
        chosen = np.sort(rng.choice(chosen, TRAIN_IMAGES, replace=False))
    parts = {
        "train": (task.train.images[chosen], task.train.labels[chosen]),
        "val": (prepared.val_split.images[prepared.val], prepared.val_split.labels[prepared.val]),
        "test": (test.images, test.labels),
    }
    arrays = {"kind": np.array(task.kind)}
    for name, (images, labels) in parts.items():
        arrays[f"{name}_labels"] = np.asarray(labels)
        arrays[f"{name}_probabilities"] = kind.probabilities(logits_of(prepared.model, task, images)).numpy().astype(np.float32)
    return arrays | ({"test_groups": test.groups} if test.groups is not None else {})


_latency: dict[tuple, float] = {}
"""(backbone, outputs, channels, size) -> ms per image: measured once per process, as it does not depend on the weights."""


def _facts(prepared: Prepared) -> dict[str, float]:
    model, task = prepared.model, prepared.task
    key = (prepared.config.backbone, model.linear.out_features, task.channels, task.size)
    if key not in _latency:
        _latency[key] = measure_latency(model, task.channels, task.size)
    return {**describe(model), "ms_per_image": _latency[key]}


def _packed(arrays: dict[str, np.ndarray], facts: dict[str, float]) -> bytes:
    buffer = io.BytesIO()
    stored: dict[str, Any] = arrays | {f"fact_{name}": np.array(value) for name, value in facts.items()}
    np.savez(buffer, **stored)
    return buffer.getvalue()


def _read(file: AnyPath) -> Scored:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        facts = {name.removeprefix("fact_"): float(value) for name, value in arrays.items() if name.startswith("fact_")}
        probabilities = {name: arrays[f"{name}_probabilities"].astype(np.float64) for name in SPLITS}
        labels = {name: arrays[f"{name}_labels"] for name in SPLITS}
        return Scored(str(arrays["kind"]), probabilities, labels, arrays.get("test_groups"), facts)
    except DAMAGED as error:
        raise_unless_of_the_file(error, file)
        raise RunError(f"{file} is damaged ({error}): remove it and resume, it is made anew") from None


def costs(trials: Sequence[Trial], minimise: bool) -> dict[str, list[float]]:
    """Wall times of each training in seconds: median epoch, up to and with the best epoch, in all."""
    found: dict[str, list[float]] = {"epoch_seconds": [], "to_best_seconds": [], "seconds": []}
    for trial in trials:
        seconds, row = [each["seconds"] for each in trial.history], trial.best_row(minimise)
        found["epoch_seconds"].append(float(np.median(seconds)))
        found["to_best_seconds"].append(float(sum(seconds[: row["epoch"]])) if row else float(sum(seconds)))
        found["seconds"].append(float(sum(seconds)))
    return found


def deviation(trial: Trial) -> float:
    """Standard deviation of validation accuracy over the epochs of a training; NaN for a single epoch."""
    values = [row["val_accuracy"] for row in trial.history]
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

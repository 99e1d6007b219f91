"""Using a delivered model: on image files, and on another data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlray.cache import Places
from tlray.data.held_out import open_test
from tlray.data.images import read_image, resize
from tlray.data.task import Task, open_task
from tlray.deploy.model import Model
from tlray.errors import DataError
from tlray.report.stats import bootstrap
from tlray.storage import AnyPath
from tlray.training.metrics import evaluate

DECIDED = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity")
"""Metrics that the operating threshold changes."""


def predict_files(model: Model, paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """What the model says about image files, in their order.

    One entry per file: `file`; `class`, the likeliest, and its calibrated `probability`; `probabilities` of all by name; and, where
    the model has an operating threshold, `threshold` and the `decision` by it: a class, or the list of findings called present.
    Raises DataError, naming the file, when one is no image; then nothing is predicted.
    """
    images = [resize(read_image(path, model.channels)[None], model.size) for path in paths]
    if not images:
        return []
    return [_answer(model, str(path), row) for path, row in zip(paths, model.predict(np.concatenate(images)), strict=True)]


def _answer(model: Model, path: str, probabilities: np.ndarray) -> dict[str, Any]:
    top = int(probabilities.argmax())
    answer: dict[str, Any] = {
        "file": path,
        "class": model.classes[top],
        "probability": float(probabilities[top]),
        "probabilities": dict(zip(model.classes, probabilities.tolist(), strict=True)),
    }
    if model.threshold is None:
        return answer
    answer["threshold"] = model.threshold
    if model.kind == "binary":
        answer["decision"] = model.classes[int(probabilities[1] > model.threshold)]
    else:
        present = np.flatnonzero(probabilities > np.asarray(model.threshold))
        answer["decision"] = [model.classes[index] for index in present]
    return answer


def evaluate_task(model: Model, task: str, places: Places, split: str = "test", ledger: AnyPath | None = None) -> dict[str, Any]:
    """Score a model on a data set it may never have seen, on calibrated probabilities.

    Args:
        task: as in Config.task; its images are prepared at the model's size.
        split: test, or val. The test split is opened through `open_test`, which writes to `ledger`.
        ledger: where the opening is written down; by default `test_ledger.jsonl` in the model's folder.

    Returns:
        {"task", "split", "images", "metrics": {name: {"value", "low", "high", "interval"}} at threshold .5, "at_threshold": the
        same for the metrics that the model's operating threshold changes, or None, "threshold", "notes": sentences}.

    Raises DataError when kind, number of classes or colour do not fit, or the classes are the model's in another order.
    """
    opened = open_task(task, model.size, places)
    notes = fitting(model, opened)
    if split == "test":
        purpose = f"evaluate {model.folder}"
        data = open_test(opened, ledger or model.folder / "test_ledger.jsonl", purpose)
    elif split == "val":
        data = opened.val
    else:
        raise DataError(f"there is no split {split!r} to score: choose test or val")
    probabilities, labels = model.predict(data.images), np.asarray(data.labels)
    names = list(evaluate(model.kind, probabilities, labels))
    decided = None
    if model.threshold is not None:
        decided = bootstrap(model.kind, probabilities, labels, DECIDED, groups=data.groups, threshold=model.threshold)
    return {
        "task": opened.name,
        "split": split,
        "images": len(labels),
        "metrics": bootstrap(model.kind, probabilities, labels, names, groups=data.groups),
        "at_threshold": decided,
        "threshold": model.threshold,
        "notes": notes,
    }


def fitting(model: Model, task: Task) -> list[str]:
    """Sentences about what differs between a task and the one the model was trained on; DataError when it cannot be scored."""
    name, ours, theirs = task.name, list(model.classes), list(task.classes)
    if task.kind != model.kind or len(theirs) != len(ours):
        raise DataError(
            f"{name} is {task.kind} with {len(theirs)} classes, but the model is {model.kind} with {len(ours)}: name another task"
        )
    if task.channels == 3 and model.channels == 1:
        raise DataError(f"{name} has colour images, but the model was trained on grey ones: convert them first")
    notes = []
    if theirs != ours:
        if sorted(theirs) == sorted(ours):
            raise DataError(f"{name} has the model's classes in another order ({', '.join(theirs)}): number them as {', '.join(ours)}")
        named = f"({', '.join(theirs)}) are named differently from the model's ({', '.join(ours)})"
        notes.append(f"The classes of {name} {named}: they are matched by number.")
    if task.channels == 1 and model.channels == 3:
        notes.append(f"{name} has grey images, but the model was trained on colour ones.")
    if task.source.get("phantom") and not model.config["data"].get("phantom"):
        notes.append(f"{name} is phantom data, drawn by a generator: its figures say nothing about patients.")
    return notes

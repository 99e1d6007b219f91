"""From the trials of a cell to what is handed over: the winner by validation, its model, its test figures, its line in the summary."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tlray.cache import Places, write_bytes
from tlray.config import Config
from tlray.data.held_out import open_test
from tlray.data.task import Split, Task, open_task
from tlray.deploy.model import Model
from tlray.deploy.package import save_model
from tlray.deploy.predict import DECIDED
from tlray.models.classifier import Classifier
from tlray.models.kinds import KINDS
from tlray.report.stats import bootstrap, t_interval
from tlray.results import FINISHED, Trial, trial_folder, winner
from tlray.storage import AnyPath
from tlray.training.calibration import fit_temperature, operating_threshold
from tlray.training.checkpoint import checkpoint_of_epoch
from tlray.training.fit import load
from tlray.training.metrics import evaluate
from tlray.training.setup import Prepared, prepare, set_up_process

SEED_METRICS = ("accuracy", "auroc", "balanced_accuracy", "f1")
"""Test metrics that are given over the seeds of the winning configuration."""


def assemble(cell: AnyPath, trial: Trial, epoch: int, places: Places) -> Prepared:
    """The whole model of one epoch of a trial, in eval mode and float32: frozen stages from `weights`, the rest from its checkpoint.

    Raises RunError when the checkpoint is missing or damaged, or the weights have changed.
    """
    prepared = prepare(Config(**trial.config), places)
    load(prepared, checkpoint_of_epoch(trial_folder(cell, trial.number) / "checkpoints", epoch))
    prepared.model.float().eval()
    return prepared


def logits_of(model: Classifier, task: Task, images: np.ndarray) -> torch.Tensor:
    """Logits float64 [N, outputs] of images uint8 [N, C, H, W], as the delivered model gives them."""
    about = {"kind": task.kind, "classes": task.classes, "channels": task.channels, "size": task.size}
    return Model(model, about, {}, Path()).logits(images).double()


def deliver(cell: AnyPath, trials: list[Trial], places: Places, ledger: AnyPath, banner: list[str], rule: str) -> dict[str, Any]:
    """Choose the winner by validation, open the test split once for it, write `model/` and `predictions.npz`; its entry's figures.

    One of the trials must have had an epoch. Raises RunError when the winner's checkpoint is missing or damaged.
    """
    minimise = Config(**trials[0].config).minimise
    found = winner(trials, minimise)
    assert found is not None, "the caller checks that a trial has an epoch"
    trial, row = found
    prepared = assemble(cell, trial, row["epoch"], places)
    set_up_process(prepared.config)
    task, kind = prepared.task, KINDS[prepared.task.kind]
    held = _chosen(prepared.val_split, prepared.val)
    val_logits = logits_of(prepared.model, task, held.images)
    temperature = fit_temperature(task.kind, val_logits, held.labels)
    calibrated = kind.probabilities(val_logits / temperature).numpy()
    threshold = operating_threshold(task.kind, calibrated, held.labels, rule)
    test = open_test(task, ledger, f"winner of {cell.name}: trial {trial.number}, epoch {row['epoch']}")
    test_logits = logits_of(prepared.model, task, test.images)
    probabilities = kind.probabilities(test_logits / temperature).numpy()
    uncalibrated = evaluate(task.kind, kind.probabilities(test_logits).numpy(), np.asarray(test.labels))
    figures = _figures(task.kind, probabilities, test, threshold)
    validation = evaluate(task.kind, kind.probabilities(val_logits).numpy(), held.labels)
    chosen = {"temperature": temperature, "threshold": threshold, "threshold_rule": None if threshold is None else rule}
    weights = {**prepared.encoder_source, "notes": list(prepared.notes)}
    card = {
        "task": task.name, "kind": task.kind, "classes": list(task.classes), "channels": task.channels, "size": task.size, **chosen,
        "config": trial.config, "data": task.source, "weights": weights, "validation": validation,
        "validation_calibrated": evaluate(task.kind, calibrated, held.labels), "test": figures["test"], "banner": banner,
    }  # fmt: skip
    save_model(cell / "model", prepared.model, card)
    write_predictions(cell / "predictions.npz", calibrated, held.labels, probabilities, np.asarray(test.labels))
    best = {"trial": trial.number, "epoch": row["epoch"], "config": trial.config, "monitor": row["monitor"]}
    return {"winner": best, "weights": weights, "validation": validation, **chosen, **figures, "uncalibrated": uncalibrated}


def _chosen(split: Split, indices: np.ndarray) -> Split:
    return Split(split.images[indices], np.asarray(split.labels[indices]), None)


def _figures(kind: str, probabilities: np.ndarray, test: Split, threshold: Any) -> dict[str, Any]:
    """Test figures with intervals: at threshold .5, and at the operating threshold where there is one."""
    labels = np.asarray(test.labels)
    names = list(evaluate(kind, probabilities, labels))
    decided = bootstrap(kind, probabilities, labels, DECIDED, groups=test.groups, threshold=threshold) if threshold is not None else None
    return {"test": bootstrap(kind, probabilities, labels, names, groups=test.groups), "test_at_threshold": decided}


def write_predictions(path: AnyPath, val: np.ndarray, val_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> None:
    """Calibrated probabilities and labels of the winner, from which the report draws its curves."""
    buffer = io.BytesIO()
    np.savez(buffer, val_probabilities=val, val_labels=val_labels, test_probabilities=test, test_labels=test_labels)
    write_bytes(path, buffer.getvalue())


def seed_figures(cell: AnyPath, repeats: list[Trial], first: dict[str, float], places: Places, ledger: AnyPath) -> dict[str, Any] | None:
    """Test metrics of the winning configuration over its seeds, with a t-interval; the winner itself is the first of them.

    Each is judged at its own best validation epoch, at threshold .5, on uncalibrated probabilities. Intervals end at 0 and 1, as the
    metrics do, and say which repeats broke off: those are left out. None without repeats.
    """
    values = {name: [first[name]] for name in SEED_METRICS}
    broken = [trial for trial in repeats if trial.status != FINISHED]
    for trial in repeats:
        row = trial.best_row(Config(**trial.config).minimise)
        if trial in broken or row is None:
            continue
        prepared = assemble(cell / "seeds", trial, row["epoch"], places)
        test = open_test(prepared.task, ledger, f"repeat of the winner of {cell.name} with seed {trial.config['seed']}")
        probabilities = KINDS[prepared.task.kind].probabilities(logits_of(prepared.model, prepared.task, test.images)).numpy()
        metrics = evaluate(prepared.task.kind, probabilities, np.asarray(test.labels))
        for name in SEED_METRICS:
            values[name].append(metrics[name])
    if not repeats:
        return None
    intervals = {name: t_interval(each) for name, each in values.items()}
    if broken:
        missing = ", ".join(str(trial.config["seed"]) for trial in broken)
        intervals = {name: {**each, "interval": f"{each['interval']}; broke off: seed {missing}"} for name, each in intervals.items()}
    return {
        name: each if each["low"] is None else {**each, "low": max(0.0, each["low"]), "high": min(1.0, each["high"])}
        for name, each in intervals.items()
    }


def repeats_of(trial: Trial, count: int) -> list[tuple[str, Config]]:
    """The winning configuration under the next count - 1 seeds."""
    config = Config(**trial.config)
    return [(f"seed {config.seed + step}", replace(config, seed=config.seed + step)) for step in range(1, count)]


def describe_task(spec: str, size: int, places: Places) -> dict[str, Any]:
    """What the summary says about a cell's data."""
    task = open_task(spec, size, places)
    return {"task": task.name, "kind": task.kind, "classes": list(task.classes), "data": task.source, "audit": task.audit}

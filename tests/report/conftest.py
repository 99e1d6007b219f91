"""A whole run directory made of plausible numbers, by the contract that `tlray.runs` writes, without any training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tlray.config import FIELDS
from tlray.report.stats import bootstrap, t_interval

METRICS = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "ece", "loss")
HOSTILE = "<script>alert('class')</script>"
"""A class name that must come out as text."""


def sample(kind: str, classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident probabilities float [count, classes] and the labels they belong to."""
    random = np.random.default_rng(seed)
    if kind == "multilabel":
        labels = (random.random((count, classes)) < np.linspace(0.08, 0.4, classes)).astype(np.uint8)
        return 1 / (1 + np.exp(-(3.2 * labels - 2.6 + 1.6 * random.normal(size=labels.shape)))), labels
    labels = random.choice(classes, size=count, p=np.linspace(1, 2, classes) / np.linspace(1, 2, classes).sum())
    logits = 3.4 * np.eye(classes)[labels] + 1.9 * random.normal(size=(count, classes))
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


def trial_rows(cell: str, task: str, backbone: str, trials: int, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Rows of results.parquet: some trials finish, some are stopped, one becomes non-finite, one fails before its first epoch."""
    random, rows = np.random.default_rng(seed), []
    for number in range(trials):
        unfreeze = "full" if number == 0 else str(random.choice(["full", "last_2", "head_then_full", "gradual"]))
        config = {name: field.default for name, field in FIELDS.items()} | {
            "task": task, "backbone": backbone, "weights": "phantom_chest", "unfreeze": unfreeze, "epochs": epochs, "seed": 0,
            "lr": 1e-3 if number == 0 else float(10 ** random.uniform(-4.3, -2)),
            "weight_decay": float(10 ** random.uniform(-6, -2)),
            "dropout": float(random.uniform(0, 0.6)), "scheduler": str(random.choice(["constant", "cosine", "one_cycle"])),
            "label_smoothing": float(random.choice([0.0, 0.1])),
        }  # fmt: skip
        good = 0.95 - 0.09 * abs(np.log10(config["lr"]) + 3.1) - 0.03 * (unfreeze == "last_2")
        status = "finished" if number < 4 or random.random() < 0.4 else "stopped"
        status = {trials - 2: "nonfinite", trials - 1: "failed"}.get(number, status) if trials > 5 else status
        length = {"finished": epochs, "failed": 0, "nonfinite": 1}.get(status, int(random.integers(2, max(3, epochs - 1))))
        reasons = {"stopped": "at rung 2", "nonfinite": "loss NaN in epoch 1", "failed": "out of memory: <b>1 GB</b>"}
        about = {
            "cell": cell, "task": task, "backbone": backbone, "arm": f"arm {number % 3}", "trial": number, "status": status,
            "reason": reasons.get(status, ""),
            **{f"config/{name}": value for name, value in config.items()},
        }  # fmt: skip
        curve = good - 0.25 * np.exp(-np.arange(1, length + 1) / 2) + 0.012 * random.normal(size=length)
        for epoch, value in enumerate(curve, start=1):
            rows.append(about | {
                "epoch": epoch, "phase": int(epoch > 2 and unfreeze != "full"), "train_loss": 0.7 * np.exp(-epoch / 3) + 0.02,
                "train_accuracy": 1 - 0.3 * np.exp(-epoch / 3), "val_loss": 0.75 - 0.55 * value + 0.01 * max(0, epoch - 5),
                "val_auroc": value, "val_accuracy": value - 0.05, "monitor": value, "best": curve[:epoch].max(), "seconds": 2.5,
                "cached": epoch <= 2 and unfreeze != "full", "time": 1.75e9 + 10 * number + epoch,
            })  # fmt: skip
        if length == 0:
            rows.append(about | {"epoch": 0})
    return rows


def audit_of(classes: list[str], seed: int) -> dict[str, Any]:
    """An audit as `tlray.data.audit` writes it, with a leak into the test split."""
    random = np.random.default_rng(seed)
    counts = {
        split: {name: int(random.integers(20, 90) * size) for name in classes} for split, size in (("train", 9), ("val", 1), ("test", 2))
    }
    return {
        "images": {split: sum(each.values()) for split, each in counts.items()}, "classes": counts,
        "duplicates": {
            "within": {split: {"images": 18 * (split == "train"), "in_sets": 33, "examples": []} for split in counts},
            "across": {"train-val": {"images": 8, "examples": [[1, 2]]}, "train-test": {"images": 3, "examples": [[4, 5]]},
                       "val-test": {"images": 0, "examples": []}},
            "label_conflicts": 1,
        },
        "groups": None, "without_positive": {"val": [classes[0]]},
    }  # fmt: skip


def write_cell(run: Path, task: str, backbone: str, kind: str, classes: list[str], seed: int, trials: int = 14) -> tuple[dict, list]:
    """Write one cell's files; returns its entry of summary.json and its rows of results.parquet."""
    cell, epochs = f"{task}-{backbone}", 8
    rows = trial_rows(cell, task, backbone, trials, epochs, seed)
    best = max((row for row in rows if row["epoch"]), key=lambda row: row["monitor"])
    probabilities, labels = sample(kind, len(classes), 400, seed)
    val_probabilities, val_labels = sample(kind, len(classes), 150, seed + 1)
    temperature, threshold = 1.37, {"binary": 0.412, "multilabel": [0.3] * len(classes)}.get(kind)
    test = bootstrap(kind, probabilities, labels, METRICS, resamples=200)
    decided = bootstrap(kind, probabilities, labels, ("accuracy", "recall"), resamples=200, threshold=threshold or 0.5)
    (run / cell / "model").mkdir(parents=True)
    np.savez(
        run / cell / "predictions.npz", val_probabilities=val_probabilities, val_labels=val_labels,
        test_probabilities=probabilities, test_labels=labels,
    )  # fmt: skip
    model = {"parameters": 2_226_434, "megabytes": 9.1, "ms_per_image": 6.4}
    (run / cell / "model" / "metrics.json").write_text(json.dumps(model | {"temperature": temperature, "threshold": threshold}))
    statuses = pd.DataFrame(rows).groupby("trial")["status"].last().value_counts().to_dict()
    values = {name: test[name]["value"] for name in METRICS}
    seeds = {name: t_interval([values[name], values[name] - 0.011, values[name] + 0.006]) for name in ("accuracy", "auroc")}
    summary = {
        "cell": cell, "task": task, "backbone": backbone, "kind": kind, "classes": classes, "minimise": False,
        "monitor": "auroc", "data": {"file": f"{task}.npz", "pixels": 28, "sha256": "0" * 16, "phantom": "phantom" in task},
        "audit": audit_of(classes, seed), "weights": {"weights": "phantom_chest", "note": "pretrained by tlray"},
        "winner": {"trial": best["trial"], "epoch": best["epoch"], "monitor": best["monitor"],
                   "config": {name.removeprefix("config/"): value for name, value in best.items() if name.startswith("config/")}},
        "validation": {name: values[name] - 0.004 for name in METRICS}, "temperature": temperature, "threshold": threshold,
        "threshold_rule": "youden", "test": test, "test_at_threshold": decided if threshold else None,
        "seeds": seeds if kind == "binary" else None, "trials": statuses,
        "epochs": sum(row["epoch"] > 0 for row in rows), "seconds": 312.4, "model": model,
    }  # fmt: skip
    return summary, rows


CELLS = (
    ("phantom_pneumonia", "mobilenet_v2", "binary", ["normal", HOSTILE]),
    ("bloodmnist", "small_cnn", "multiclass", [f"cell type {k}" for k in range(8)]),
    ("chestmnist", "resnet18", "multilabel", [f"finding {k}" for k in range(10)]),
    ("retinamnist", "resnet18", "ordinal", [f"grade {k}" for k in range(5)]),
)


def write_run(run: Path, cells: tuple = CELLS, kind: str = "search", partial: bool = False) -> Path:
    """Write a whole run directory and return it."""
    run.mkdir(parents=True)
    entries, rows = [], []
    for seed, cell in enumerate(cells):
        entry, part = write_cell(run, *cell, seed=seed)
        entries.append(entry)
        rows += part
    pd.DataFrame(rows).to_parquet(run / "results.parquet")
    summary = {
        "run": run.name, "kind": kind, "partial": partial, "created": "2026-03-01T10:20:30",
        "command": "python experiments/tune_backbones.py --set 'x<y'",
        "banner": ["PHANTOM DATA: drawn by a seeded generator & shows no patient.", "No claim of quality rests on it."],
        "versions": {"tlray": "0.1.0", "torch": "2.15.0", "ray": "2.60.0", "python": "3.11.2"},
        "hardware": {"cpus": 2, "gpus": 0, "memory": "8 GB"}, "seconds": 640.0, "cells": entries,
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "run.json").write_text(json.dumps({"command": summary["command"]}))
    lines = [{"task": entry["task"], "purpose": f"winner of {entry['cell']}", "time": 1.75e9, "images": 400} for entry in entries]
    (run / "test_ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """`make_run(folder, cells=..., kind="search", partial=False)` writes a run directory and returns it."""
    return write_run


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """`make_sample(kind, classes, count, seed)` gives probabilities and labels."""
    return sample


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search over four cells, one of each kind. Tests read it and leave it as it is."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")

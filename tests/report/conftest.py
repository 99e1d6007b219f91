"""A whole run directory made of plausible numbers, by the contract that `tlray.runs` writes, without any training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tlray.config import FIELDS
from tlray.report.comparing import compare_arms, conclusion, corrected_t_interval
from tlray.report.stats import Draws, bootstrap, mean_spreads, t_interval
from tlray.report.style import Picture

METRICS = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "ece", "loss")
HOSTILE = "<script>alert('class')</script>"
"""A class name that must come out as text."""

ARMS = (("dropout=0.0", "pneumonia"), ("dropout=0.1 <b>", "pneumonia"), ("dropout=0.5", "pneumonia"))


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


def comparison_arm(arm: str, task: str, good: float, replicates: list[tuple[int, int | None]], epochs: int, first: int) -> list[dict]:
    """Rows of results.parquet of one arm's trainings, numbered from `first`."""
    rows, config = [], {name: field.default for name, field in FIELDS.items()} | {"task": task, "backbone": "small_cnn", "epochs": epochs}
    for number, (seed, fold) in enumerate(replicates, start=first):
        random = np.random.default_rng([seed, fold or 0, len(arm)])
        own = config | {"seed": seed, "fold": fold, "dropout": good - 0.5}
        about = {
            "cell": "comparison", "task": task, "backbone": "small_cnn", "arm": arm, "trial": number, "status": "finished", "reason": "",
            **{f"config/{name}": value for name, value in own.items()},
        }  # fmt: skip
        curve = good - 0.3 * np.exp(-np.arange(1, epochs + 1) / 2) + 0.02 * random.normal(size=epochs)
        rows += [
            about | {
                "epoch": epoch, "phase": 0, "cached": False, "train_loss": (1.6 - good) * np.exp(-epoch / 3) + 0.05,
                "val_loss": 1.1 - 0.9 * value,
                "train_accuracy": 1 - 0.35 * np.exp(-epoch / 3), "val_accuracy": value - 0.05, "val_auroc": value, "monitor": value,
                "best": curve[:epoch].max(), "seconds": 1.5 + random.random(), "time": 1.75e9 + epoch,
            }
            for epoch, value in enumerate(curve, start=1)
        ]  # fmt: skip
    return rows


def write_comparison(
    run: Path, arms: tuple[tuple[str, str], ...] = ARMS, seeds: int = 5, folds: int | None = None, partial: bool = False, epochs: int = 8
) -> Path:
    """Write the directory of a comparison of (arm, task) pairs, better from arm to arm, and return it; all tasks have the same images."""
    replicates = [(seed, fold) for seed in range(seeds) for fold in (range(folds) if folds else (None,))]
    metrics, (_, labels) = ("auroc", "accuracy", "balanced_accuracy"), sample("binary", 2, 300, 1)
    (run / "pictures").mkdir(parents=True)
    draws, entries, rows, values, spreads = Draws("binary", labels, 200), [], [], {}, {}

    def over(numbers: list[float]) -> dict[str, Any]:
        return corrected_t_interval(numbers, 1 / (folds - 1), folds, seeds) if folds else t_interval(numbers)

    for place, (arm, task) in enumerate(arms):
        own = comparison_arm(arm, task, 0.75 + 0.2 * place / len(arms), replicates, epochs, place * len(replicates))
        rows += own
        scores = [np.random.default_rng([place, *map(int, (seed, fold or 0))]) for seed, fold in replicates]
        sharp = 0.6 + 1.6 * place / len(arms)
        ones = [1 / (1 + np.exp(-sharp * (2 * labels - 1) - 1.2 * random.normal(size=len(labels)))) for random in scores]
        given = [np.stack([1 - one, one], axis=1) for one in ones]
        spreads[arm] = mean_spreads(draws, given, metrics)
        each = [bootstrap("binary", one, labels, metrics, resamples=2) for one in given]
        values[arm] = {name: [one[name]["value"] for one in each] for name in metrics}
        test = {name: over(values[arm][name]) for name in metrics}
        best = pd.DataFrame(own).groupby("trial")["best"].last().to_list()
        entries.append({
            "arm": arm, "task": task, "config": {"backbone": "small_cnn", "dropout": place / 10, "lr": 1e-3, "task": task},
            "statuses": {"finished": len(replicates)}, "validation": over(best), "train": test, "val": test, "test": test,
            "test_noise": {name: spread.summary() for name, spread in mean_spreads(draws, given, metrics).items()}, "at_threshold": test,
            "gap": over([0.08 + 0.01 * seed for seed, _ in replicates]), "deviation": over([0.02] * len(replicates)),
            "cost": {name: over([seconds + seed for seed, _ in replicates])
                     for name, seconds in (("epoch_seconds", 1.6), ("to_best_seconds", 9.5), ("seconds", 70.0))}
            | {"parameters": 94_410, "megabytes": 0.4, "ms_per_image": 1.234, "cached": place == 0},
        })  # fmt: skip
    pairs = [(arm, arms[0][0]) for arm, task in arms[1:] if task == arms[0][1]]
    share = 1 / (folds - 1) if folds else None
    compared = [
        row
        for name in metrics
        for row in compare_arms(name, pairs, {a: v[name] for a, v in values.items()}, {a: s[name] for a, s in spreads.items()}, share)
    ]
    tasks = list(dict.fromkeys(task for _, task in arms))
    about = {
        "title": "Does <dropout> help?", "question": "Is more dropout better at 300 images & five seeds?",
        "monitor": "auroc", "minimise": False, "metrics": list(metrics), "seeds": list(range(seeds)), "folds": folds,
        "tasks": {task: {"task": task, "kind": "binary", "classes": ["normal", HOSTILE], "data": {"file": f"{task}.npz"},
                         "audit": audit_of(["normal", HOSTILE], 3), "images_test": 300} for task in tasks},
        "chosen": {task: [arm for arm, its in arms if its == task][-1] for task in tasks}, "arms": entries, "comparisons": compared,
        "conclusion": conclusion(compared, "auroc", seeds, 300, folds),
        "claims": [{"id": "R2b", "claim": "results are sensitive to <dropout>", "measured": "+0.031 (0.010 to 0.052)", "verdict": "holds"},
                   {"id": "R9", "claim": "nothing matters", "measured": "+0.031", "verdict": "does not hold"}],
    }  # fmt: skip
    if partial:
        about |= {"comparisons": None, "conclusion": None, "claims": []}
        for name in ("test", "test_noise"):
            about["arms"] = [{key: value for key, value in entry.items() if key != name} for entry in about["arms"]]
    with Picture("lines") as picture:
        picture.axes.plot([1, 2, 4], [0.5, 0.62, 0.68])
    (run / "pictures" / "lines.svg").write_text(picture.svg)
    summary = {
        "run": run.name, "kind": "compare", "partial": partial, "created": "2026-03-01 10:20:30 +0000",
        "command": "python experiments/x.py", "banner": [], "versions": {"tlray": "0.1.0"},
        "hardware": {"cpus": 2, "gpus": "none"}, "seconds": 640.0, "cells": [],
        "comparison": about, "pictures": [{"file": "pictures/lines.svg", "title": "Accuracy <line>", "caption": "Means & bands."}],
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    pd.DataFrame(rows).to_parquet(run / "results.parquet")
    line = {"task": tasks[0], "purpose": "comparison: all trainings", "time": 1.75e9, "images": 300}
    (run / "test_ledger.jsonl").write_text("" if partial else json.dumps(line) + "\n")
    return run


@pytest.fixture(scope="session")
def make_comparison() -> Callable[..., Path]:
    """`make_comparison(folder, arms=..., seeds=5, folds=None, partial=False, epochs=8)` writes the directory of a comparison."""
    return write_comparison


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

"""How hard are the phantoms? The limits were set before any method of tlray was compared on them, so the loop here is plain torch.

    python benchmarks/phantom_difficulty.py

At 28 px, on one thread: logistic regression on pixels has at most .75 test AUROC on each set, small_cnn at least .88 on all of
phantom_pneumonia, and pretraining on phantom_chest gains at least .03 at 300 samples, its 95 % t-interval over five paired seeds above
zero.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import Benchmark, Row, record, show
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits

from tlray.cache import Places
from tlray.data.held_out import open_test
from tlray.data.task import open_task
from tlray.models.classifier import build_classifier

EPOCHS, LR, BATCH, SAMPLES, SEEDS = 30, 2e-3, 32, 300, range(100, 105)
Part = tuple[np.ndarray, np.ndarray]  # uint8 images [N, 1, 28, 28], labels [N, K] of 0/1


class Fitted(NamedTuple):
    """The best epoch by validation: its validation and test AUROC and the backbone's weights."""

    val: float
    test: float
    backbone: dict[str, torch.Tensor]


def load(name: str, places: Places) -> dict[str, Part]:
    """Images and labels of train, val and test."""
    task = open_task(name, 28, places)
    splits = {"train": task.train, "val": task.val, "test": open_test(task, Path(places.cache) / "ledger.jsonl", "difficulty")}
    return {key: (np.array(split.images), np.asarray(split.labels).reshape(len(split.labels), -1)) for key, split in splits.items()}


def linear(data: dict[str, Part]) -> float:
    """Macro test AUROC of logistic regression on standardised pixels, its C chosen on validation for each finding."""
    pixels = {key: images.reshape(len(images), -1) / 255 for key, (images, _) in data.items()}
    mean, std = pixels["train"].mean(0), pixels["train"].std(0) + 1e-6
    pixels = {key: (values - mean) / std for key, values in pixels.items()}
    chosen = []
    for k in range(data["train"][1].shape[1]):
        tried = [LogisticRegression(C=c, max_iter=300).fit(pixels["train"], data["train"][1][:, k]) for c in (1e-4, 1e-3, 1e-2, 0.1)]
        scores = [[roc_auc_score(data[key][1][:, k], m.decision_function(pixels[key])) for key in ("val", "test")] for m in tried]
        chosen.append(max(scores)[1])
    return float(np.mean(chosen))


def train(data: dict[str, Part], seed: int, epochs: int, rows: np.ndarray | None = None, backbone: dict | None = None) -> Fitted:
    """small_cnn by AdamW on `rows` of train (all), from `backbone` weights (none)."""
    torch.manual_seed(seed)
    tensors = {key: (torch.from_numpy(images), torch.from_numpy(labels).float()) for key, (images, labels) in data.items()}
    images, labels = tensors["train"]
    model = build_classifier("small_cnn", "multilabel", labels.shape[1], 1, 0.0, (0.5,), (0.5,))
    if backbone:
        model.backbone.load_state_dict(backbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-4)
    rows_left, best = torch.from_numpy(np.arange(len(images)) if rows is None else rows), Fitted(-1, -1, {})
    for _ in range(epochs):
        model.train()
        for batch in rows_left[torch.randperm(len(rows_left))].split(BATCH):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            val, test = (float(roc_auc_score(tensors[key][1], model(tensors[key][0]))) for key in ("val", "test"))
        if val > best.val:
            best = Fitted(val, test, {key: value.clone() for key, value in model.backbone.state_dict().items()})
    return best


def gain(target: dict[str, Part], backbone: dict[str, torch.Tensor], seeds: Sequence[int], epochs: int) -> tuple[float, float]:
    """Mean gain in test AUROC at SAMPLES images by starting from `backbone`, paired over seeds, and half its 95 % t-interval."""
    gains = []
    for seed in seeds:
        rows = np.random.default_rng(seed).permutation(len(target["train"][0]))[:SAMPLES]
        without, pretrained = train(target, seed, epochs, rows).test, train(target, seed, epochs, rows, backbone).test
        print(f"  seed {seed}: from scratch {without:.3f}, pretrained {pretrained:.3f}", flush=True)
        gains.append(pretrained - without)
    half = float(student.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5)
    return float(np.mean(gains)), half


def main() -> int:
    """Measure and record."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epoch, two seeds, and nothing is written: to see that it works")
    quick = parser.parse_args().quick
    seeds, epochs = (SEEDS[:2], 1) if quick else (SEEDS, EPOCHS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        sets = {name: load(name, Places(None, cache, True)) for name in ("phantom_pneumonia", "phantom_chest_binary", "phantom_chest")}
    rows = [Row(f"test AUROC of logistic regression on pixels, {name}", [linear(data)], at_most=0.75) for name, data in sets.items()]
    networks = {name: train(data, 0, epochs) for name, data in sets.items()}
    for name, fitted in networks.items():
        least = 0.88 if name == "phantom_pneumonia" else None
        rows.append(Row(f"test AUROC of small_cnn, {name}", [fitted.test], at_least=least))
    mean, half = gain(sets["phantom_pneumonia"], networks["phantom_chest"].backbone, seeds, epochs)
    what = f"gain in test AUROC by pretraining, phantom_pneumonia at {SAMPLES} samples"
    rows.append(Row(what, [mean], at_least=0.03, detail=f"mean of {len(seeds)} paired seeds"))
    rows.append(Row(f"{what}, lower end of the 95 % interval", [mean - half], at_least=0.0))
    notes = ["The limits were set before any method of tlray was compared on the phantoms. AUROCs and their differences, no ratios."]
    (show if quick else record)(Benchmark("phantom_difficulty", "How hard are the phantoms?", rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Learnable toy images, for tests and for what runs without pytest."""

from pathlib import Path

import numpy as np

TOY_LABELS = {"binary": 2, "multiclass": 3, "multilabel": 3}


def write_toy(path: Path, kind: str = "binary", train: int = 64, val: int = 32, test: int = 32, size: int = 28, seed: int = 0) -> Path:
    """Write a learnable npz of MedMNIST's layout and return its path.

    Grey noise uint8 [N, size, size]; label k is a bright square in the k-th corner. Binary: class 1 has one and class 0
    none. Multiclass: one of three corners. Multilabel: three findings, each there or not. Labels are uint8 [N, 1] or [N, 3].
    """
    random, labels_by_kind = np.random.default_rng(seed), TOY_LABELS[kind]
    arrays, side = {}, size // 4
    corners = [(1, 1), (1, size - side - 1), (size - side - 1, 1)]
    for split, count in (("train", train), ("val", val), ("test", test)):
        images = random.integers(0, 120, (count, size, size), dtype=np.uint8)
        if kind == "multilabel":
            labels = random.integers(0, 2, (count, labels_by_kind))
            labels[:2] = [[0] * labels_by_kind, [1] * labels_by_kind]
            present = labels
        else:
            labels = random.permutation(np.arange(count) % labels_by_kind)[:, None]
            present = labels if kind == "binary" else np.eye(labels_by_kind, dtype=int)[labels[:, 0]]
        for row, column in np.argwhere(present):
            top, left = corners[column]
            images[row, top : top + side, left : left + side] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.uint8)}
    np.savez(path, **arrays)
    return path

"""What a reader of results should know of the data: duplicates, leaks between splits, balance. Reported, never silently mended."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

EXAMPLES = 5
"""Pairs of indices shown per finding."""


def pixel_hashes(images: Iterable[np.ndarray]) -> np.ndarray:
    """int64 [N]: 64 bits of BLAKE2 over each image's shape and pixels; equal for equal images."""
    hashes = [hashlib.blake2b(repr(image.shape).encode() + image.tobytes(), digest_size=8).digest() for image in images]
    return np.frombuffer(b"".join(hashes), np.int64)


def audit(
    hashes: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray | None],
    kind: str,
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """JSON facts about a data set, per split ("train", "val", "test") and pair of splits ("train-val").

    images: number per split.  classes: images per class (multilabel: with the finding) and split.
    duplicates.within: images beyond the first of each set of pixel-identical images (N minus the distinct ones), and how many
    images those sets hold.  duplicates.across: distinct images that stand in both splits.  Both at the source's resolution, with a
    few [index, index] pairs.  duplicates.label_conflicts: sets of identical images, over all splits, whose labels differ.
    groups: number per split and number of those in both of a pair, or None.
    without_positive: classes or findings that no image of a split has.
    """
    counts = {name: _counts(each, kind, len(classes)) for name, each in labels.items()}
    return {
        "images": {name: len(each) for name, each in hashes.items()},
        "classes": {name: dict(zip(classes, each, strict=True)) for name, each in counts.items()},
        "duplicates": {
            "within": {name: _within(each) for name, each in hashes.items()},
            "across": {f"{one}-{two}": _across(hashes[one], hashes[two]) for one, two in combinations(hashes, 2)},
            "label_conflicts": _label_conflicts(hashes, labels),
        },
        "groups": _groups(groups),
        "without_positive": {name: [classes[i] for i, n in enumerate(each) if n == 0] for name, each in counts.items() if 0 in each},
    }


def _counts(labels: np.ndarray, kind: str, classes: int) -> list[int]:
    counts = labels.astype(np.int64).sum(0) if kind == "multilabel" else np.bincount(labels, minlength=classes)
    return counts.tolist()


def _within(hashes: np.ndarray) -> dict[str, Any]:
    _, first, code, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    surplus = np.setdiff1d(np.arange(len(hashes)), first)
    pairs = [[int(first[code[index]]), int(index)] for index in surplus[:EXAMPLES]]
    return {"images": len(surplus), "in_sets": int(counts[counts > 1].sum()), "examples": pairs}


def _across(one: np.ndarray, two: np.ndarray) -> dict[str, Any]:
    common, first, second = np.intersect1d(one, two, return_indices=True)
    pairs = sorted([int(i), int(j)] for i, j in zip(first, second, strict=True))
    return {"images": len(common), "examples": pairs[:EXAMPLES]}


def _label_conflicts(hashes: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> int:
    _, code = np.unique(np.concatenate(list(hashes.values())), return_inverse=True)
    every = np.concatenate([each.reshape(len(each), -1) for each in labels.values()])
    distinct = np.unique(np.column_stack([code, every]), axis=0)[:, 0]
    return int((np.bincount(distinct) > 1).sum())


def _groups(groups: Mapping[str, np.ndarray | None]) -> dict[str, Any] | None:
    known = {name: np.unique(each) for name, each in groups.items() if each is not None}
    if not known:
        return None
    across = {f"{one}-{two}": len(np.intersect1d(known[one], known[two])) for one, two in combinations(known, 2)}
    return {**{name: len(each) for name, each in known.items()}, "across": across}

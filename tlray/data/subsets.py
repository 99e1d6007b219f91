"""Which training and validation images a Config draws: all, a few by seed, or folds."""

import numpy as np

from tlray.cache import digest
from tlray.config import Config
from tlray.data.audit import pixel_hashes
from tlray.data.splits import deal, ties
from tlray.data.task import Split, Task
from tlray.errors import DataError

FOLD_SEED = 0
"""Folds are the same for every training, so that their results can be paired."""


def select(task: Task, config: Config) -> tuple[np.ndarray, np.ndarray, Split]:
    """The images that `config` trains and validates on.

    Returns (int64 indices into task.train, sorted; int64 indices of the validation images; the split these point into: task.val, or
    task.train with folds). The draw depends on seed and task alone: with one seed every configuration sees the same images.
    Single images are drawn, so a group may be drawn in part; training and validation never share one.
    Raises DataError when more is asked for than there is.
    """
    pool, validation, split = np.arange(len(task.train)), np.arange(len(task.val)), task.val
    if config.folds is not None:
        fold = _folds(task, config.folds)
        pool, validation, split = np.flatnonzero(fold != config.fold), np.flatnonzero(fold == config.fold), task.train
    if config.samples is None:
        return pool, validation, split
    rng = np.random.default_rng([config.seed, int(digest(task.fingerprint)[:16], 16)])
    order = rng.permutation(len(task.train))
    order = order[np.isin(order, pool)]
    return np.sort(_draw(task, config.samples, order)), validation, split


def _draw(task: Task, samples: int | str, order: np.ndarray) -> np.ndarray:
    """The first of `order` that make up `samples`: per class, or (multilabel) altogether."""
    there = f"task {task.name} has {len(order)} training images" + (" outside the fold" if len(order) < len(task.train) else "")
    if isinstance(samples, int) and samples > len(order):
        raise DataError(f"samples={samples}, but {there}")
    if task.kind == "multilabel":
        if isinstance(samples, str):
            raise DataError(f"samples={samples!r} needs one class per image, but {task.name} is multilabel: give a number")
        return order[:samples]
    classes = [order[task.train.labels[order] == number] for number in range(len(task.classes))]
    counts = np.array([len(each) for each in classes])
    if isinstance(samples, str):
        wanted = np.full(len(classes), int(samples.split("/")[0]))
        if (short := np.flatnonzero(counts < wanted)).size:
            listed = ", ".join(f"{counts[number]} of {task.classes[number]!r}" for number in short)
            raise DataError(f"samples={samples!r}, but {there} with only {listed}")
    else:
        wanted = _proportional(counts, samples)
    return np.concatenate([each[:number] for each, number in zip(classes, wanted, strict=True)])


def _proportional(counts: np.ndarray, total: int) -> np.ndarray:
    """Shares of `total` by the largest remainder; each class that is there gets at least one when there are enough to go round."""
    exact = counts * total / counts.sum()
    wanted = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - wanted), kind="stable")[: total - wanted.sum()]
    wanted[rest] += 1
    if total >= (counts > 0).sum():
        for number in np.flatnonzero((wanted == 0) & (counts > 0)):
            wanted[wanted.argmax()] -= 1
            wanted[number] = 1
    return wanted


def _folds(task: Task, folds: int) -> np.ndarray:
    """int64 [N]: the fold of every training image; groups and identical images stay in one.

    Raises DataError when a class has too few images (or groups) for every fold to get one, or a fold is of one class.
    """
    key = (task.fingerprint, folds)
    if key not in _known:
        tie = ties(pixel_hashes(task.train.images), task.train.groups)
        if task.kind != "multilabel":
            _check_classes(task, tie, folds)
        _known[key] = deal(task.train.labels, tie, folds, FOLD_SEED)
    fold = _known[key]
    for number in range(folds):
        labels = task.train.labels[fold == number]
        if not len(labels) or (task.kind != "multilabel" and len(np.unique(labels)) < 2):
            raise DataError(f"folds={folds}: fold {number} of task {task.name} would not have images of two classes: use fewer folds")
    return fold


def _check_classes(task: Task, tie: np.ndarray, folds: int) -> None:
    for number, name in enumerate(task.classes):
        of_class = task.train.labels == number
        sets = len(np.unique(tie[of_class]))
        if 0 < sets < folds:
            tied = "" if sets == of_class.sum() else f", in {sets} sets that must stay together"
            raise DataError(
                f"folds={folds}: class {name!r} of task {task.name} has {of_class.sum()} training images{tied}, too few for every fold "
                "to get one: use fewer folds"
            )


_known: dict[tuple[str, int], np.ndarray] = {}

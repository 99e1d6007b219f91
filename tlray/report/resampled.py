"""Metrics of many bootstrap resamples at once; their definitions are those of `tlray.training.metrics`.

A resample is a row of how often each image was drawn. Each metric is written for many such rows, so a thousand resamples of
600 images take a tenth of a second.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

Threshold = float | Sequence[float]
"""Above which yes is said: one number, or one per finding of a multi-label task."""


class Resampled:
    """Work that the metrics of one chunk of resamples share; `draws` is float [B, N], every property starts with B.

    A *view* is one question with the answers yes and no: the label 1 (binary), each class against the rest (multiclass,
    ordinal), each finding (multilabel).
    """

    def __init__(self, kind: str, probabilities: np.ndarray, labels: np.ndarray, draws: np.ndarray, threshold: Threshold):
        self.kind, self.probabilities, self.draws = kind, probabilities, draws
        self.multilabel = kind == "multilabel"
        self.labels = labels if self.multilabel else labels.reshape(-1).astype(int)
        if self.multilabel:
            self.truth, self.scores, self.decided = labels.astype(bool), probabilities, probabilities > np.asarray(threshold)
            return
        one_hot = np.eye(probabilities.shape[1], dtype=bool)
        self.top = (probabilities[:, 1] > threshold).astype(int) if kind == "binary" else probabilities.argmax(axis=1)
        first = 1 if kind == "binary" else 0
        self.truth, self.scores, self.decided = (each[:, first:] for each in (one_hot[self.labels], probabilities, one_hot[self.top]))

    def mean(self, per_image: np.ndarray) -> np.ndarray:
        """Mean over the drawn images of [N] values (or [N, V]: one mean per view)."""
        total = self.draws.sum(axis=1)
        return self.draws @ per_image / (total if per_image.ndim == 1 else total[:, None])

    def macro(self, values: np.ndarray) -> np.ndarray:
        """Mean of [B, V] over the views that count in a resample and have a value there."""
        counts = np.isfinite(values)
        if self.multilabel:
            counts &= (self.positives > 0) & (self.negatives > 0)
        elif self.kind != "binary":
            counts &= self.positives > 0
        return np.where(counts, values, 0).sum(axis=1) / counts.sum(axis=1)

    @cached_property
    def positives(self) -> np.ndarray:
        """Drawn images where yes is right, [B, V]."""
        return self.draws @ self.truth

    @cached_property
    def negatives(self) -> np.ndarray:
        """Drawn images where no is right, [B, V]."""
        return self.draws @ ~self.truth

    @cached_property
    def hits(self) -> np.ndarray:
        """Drawn images where yes is rightly said, [B, V]."""
        return self.draws @ (self.decided & self.truth)

    @cached_property
    def said(self) -> np.ndarray:
        """Drawn images where yes is said, [B, V]."""
        return self.draws @ self.decided

    @cached_property
    def recalls(self) -> np.ndarray:
        """Share of the positives found, [B, V]; NaN without positives."""
        return self.hits / self.positives

    @cached_property
    def specificities(self) -> np.ndarray:
        """Share of the negatives left alone, [B, V]; NaN without negatives."""
        return (self.negatives - self.said + self.hits) / self.negatives

    @cached_property
    def aurocs(self) -> np.ndarray:
        """Chance that a positive scores above a negative (ties count half), [B, V]; NaN without both."""
        areas = [(no * (yes.cumsum(axis=1) - yes / 2)).sum(axis=1) for yes, no in self.ranked]
        return np.stack(areas, axis=1) / (self.positives * self.negatives)

    @cached_property
    def confusion(self) -> np.ndarray:
        """Drawn images by label and decision, [B, K, K]."""
        classes = self.probabilities.shape[1]
        return (self.draws @ np.eye(classes * classes)[self.labels * classes + self.top]).reshape(-1, classes, classes)

    @cached_property
    def ranked(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per view the drawn positives and negatives of each distinct score, highest first, [B, G] each."""
        pairs = []
        for scores, truth in zip(self.scores.T, self.truth.T, strict=True):
            order = np.argsort(-scores, kind="stable")
            starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
            drawn = self.draws[:, order]
            pairs.append((np.add.reduceat(drawn * truth[order], starts, axis=1), np.add.reduceat(drawn * ~truth[order], starts, axis=1)))
        return pairs


def _loss(r: Resampled) -> np.ndarray:
    if r.multilabel:
        clipped = np.clip(np.where(r.truth, r.probabilities, 1 - r.probabilities), 1e-12, 1)
        return -np.log(clipped).mean(axis=1)
    return -np.log(np.clip(r.probabilities[np.arange(len(r.labels)), r.labels], 1e-12, 1))


def _accuracy(r: Resampled) -> np.ndarray:
    return (r.decided == r.truth).mean(axis=1) if r.multilabel else (r.top == r.labels).astype(float)


def _medmnist_acc(r: Resampled) -> np.ndarray:
    return ((r.scores > 0.5) == r.truth).mean(axis=1) if r.kind in ("binary", "multilabel") else _accuracy(r)


PER_IMAGE: dict[str, Callable[[Resampled], np.ndarray]] = {
    "loss": _loss,
    "accuracy": _accuracy,
    "mae": lambda r: np.abs(r.top - r.labels).astype(float),
    "medmnist_acc": _medmnist_acc,
}
"""Metrics that are means over images: what each image counts, float [N], whatever is drawn."""


def _balanced_accuracy(r: Resampled) -> np.ndarray:
    if r.kind in ("multiclass", "ordinal"):
        return r.macro(r.recalls)
    both = np.stack([r.recalls, r.specificities])
    known = np.isfinite(both)
    return r.macro(np.where(known, both, 0).sum(axis=0) / known.sum(axis=0))


def _average_precision(r: Resampled) -> np.ndarray:
    averages = []
    for yes, no in r.ranked:
        above = yes.cumsum(axis=1)
        precision = above / np.maximum(above + no.cumsum(axis=1), 1)
        averages.append((yes * precision).sum(axis=1))
    return r.macro(np.where(r.negatives > 0, np.stack(averages, axis=1) / r.positives, np.nan))


def _ece(r: Resampled, bins: int = 15) -> np.ndarray:
    if r.multilabel:
        pairs = list(zip(r.probabilities.T, r.truth.T, strict=True))
    else:
        pairs = [(r.probabilities.max(axis=1), r.probabilities.argmax(axis=1) == r.labels)]
    gaps = []
    for confidence, correct in pairs:
        which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        gaps.append(np.abs(r.mean(np.eye(bins)[which] * (confidence - correct)[:, None])).sum(axis=1))
    return np.mean(gaps, axis=0)


def _quadratic_kappa(r: Resampled) -> np.ndarray:
    classes = r.confusion.shape[1]
    penalty = (np.arange(classes)[:, None] - np.arange(classes)) ** 2
    expected = r.confusion.sum(axis=2)[:, :, None] * r.confusion.sum(axis=1)[:, None, :] / r.draws.sum(axis=1)[:, None, None]
    return 1 - (r.confusion * penalty).sum(axis=(1, 2)) / (expected * penalty).sum(axis=(1, 2))


RESAMPLED: dict[str, Callable[[Resampled], np.ndarray]] = {
    **{name: lambda r, one=one: r.mean(one(r)) for name, one in PER_IMAGE.items()},
    "balanced_accuracy": _balanced_accuracy,
    "f1": lambda r: r.macro(2 * r.hits / (r.positives + r.said)),
    "precision": lambda r: r.macro(r.hits / np.maximum(r.said, 1)),
    "recall": lambda r: r.macro(r.recalls),
    "specificity": lambda r: r.macro(r.specificities),
    "auroc": lambda r: r.macro(r.aurocs),
    "average_precision": _average_precision,
    "ece": _ece,
    "quadratic_kappa": _quadratic_kappa,
    "medmnist_auc": lambda r: r.aurocs.mean(axis=1),
}
"""Metrics that can be resampled, from a Resampled to float [B]."""

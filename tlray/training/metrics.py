"""Metrics of predicted probabilities against labels; each is registered under the name that `monitor` and the table use.

Conventions: an image is called positive where its probability lies above the threshold. Binary metrics are those of class 1.
Macro averages run over the classes (one against the rest) that occur in the labels; over the findings of a multilabel task that
hold both values. Where nothing is left to average, and for probabilities that are not finite, the value is NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sklearn
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from tlray.config import RECONSTRUCTION
from tlray.errors import ConfigError
from tlray.registry import METRICS

ORDINAL_ONLY = ("mae", "quadratic_kappa")
"""Metrics that only ordered classes have; absent for the other kinds."""

ECE_BINS = 15
"""Equal-width bins of the expected calibration error, as in Guo et al. 2017, arXiv:1706.04599."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities float64 [N, K] and labels of one split, with what several metrics share.

    Its columns are the yes-or-no questions that are asked of every image: class 1 (binary), each class, or each finding.
    """

    kind: str
    probabilities: np.ndarray
    labels: np.ndarray
    threshold: float | Sequence[float] = 0.5

    @cached_property
    def scores(self) -> np.ndarray:
        """Probability of yes, float64 [N, columns]."""
        return self.probabilities[:, 1:] if self.kind == "binary" else self.probabilities

    @cached_property
    def truth(self) -> np.ndarray:
        """Whether yes is right, bool [N, columns]."""
        if self.kind == "multilabel":
            return self.labels.astype(bool)
        return self.labels[:, None] == np.arange(self.probabilities.shape[1])[-self.scores.shape[1] :]

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class chosen for each image, int64 [N] (single-label kinds)."""
        if self.kind == "binary":
            return (self.probabilities[:, 1] > self.threshold).astype(np.int64)
        return self.probabilities.argmax(axis=1)

    @cached_property
    def answers(self) -> np.ndarray:
        """Whether yes is said, bool [N, columns]."""
        if self.kind in ("binary", "multilabel"):
            return self.scores > np.asarray(self.threshold)
        return self.predicted[:, None] == np.arange(self.scores.shape[1])

    @cached_property
    def positives(self) -> np.ndarray:
        """How often yes is right, [columns]."""
        return self.truth.sum(axis=0)

    @cached_property
    def negatives(self) -> np.ndarray:
        """How often no is right, [columns]."""
        return len(self.truth) - self.positives

    @cached_property
    def hits(self) -> np.ndarray:
        """How often yes is rightly said, [columns]."""
        return (self.truth & self.answers).sum(axis=0)

    @cached_property
    def said(self) -> np.ndarray:
        """How often yes is said, [columns]."""
        return self.answers.sum(axis=0)

    @cached_property
    def recalls(self) -> np.ndarray:
        """Share of the positives found, [columns]; NaN without positives."""
        return _ratio(self.hits, self.positives)

    @cached_property
    def specificities(self) -> np.ndarray:
        """Share of the negatives left alone, [columns]; NaN without negatives."""
        return _ratio(self.negatives - (self.said - self.hits), self.negatives)

    @cached_property
    def aurocs(self) -> np.ndarray:
        """Chance that a positive scores above a negative (ties count half), [columns]; NaN without both."""
        ranks = (rankdata(self.scores, axis=0) * self.truth).sum(axis=0)
        return _ratio(ranks - self.positives * (self.positives + 1) / 2, self.positives * self.negatives)

    def macro(self, values: np.ndarray) -> float:
        """Mean over the columns that count and have a value; NaN when there are none."""
        counts = ~np.isnan(values)
        if self.kind == "multilabel":
            counts &= (self.positives > 0) & (self.negatives > 0)
        elif self.kind != "binary":
            counts &= self.positives > 0
        return float(values[counts].mean()) if counts.any() else float("nan")


def evaluate(kind: str, probabilities: np.ndarray, labels: np.ndarray, threshold: float | Sequence[float] = 0.5) -> dict[str, float]:
    """Every registered metric of classes that the kind of task has, by name.

    Args:
        kind: binary, multiclass, multilabel or ordinal.
        probabilities: float [N, K], also [N, 2] for binary.
        labels: int64 [N], or 0/1 [N, K] for multilabel.
        threshold: above which class 1 (binary) or a finding (multilabel; one for all or one each) is called present.
    """
    others = RECONSTRUCTION if kind == "ordinal" else (*RECONSTRUCTION, *ORDINAL_ONLY)
    names = [name for name in METRICS.names() if name not in others]
    if not np.isfinite(probabilities).all():
        return dict.fromkeys(names, float("nan"))
    predictions = Predictions(kind, np.asarray(probabilities, np.float64), np.asarray(labels), threshold)
    return {name: METRICS[name](predictions) for name in names}


def monitor_value(metrics: dict[str, float], monitor: str) -> float:
    """The mean of the metrics named in `monitor`, joined by +.

    Raises ConfigError for a metric that this kind of task does not have.
    """
    names = monitor.split("+")
    if missing := [name for name in names if name not in metrics]:
        raise ConfigError(f"monitor={monitor!r}: {missing[0]} is not measured for this kind of task: choose from {', '.join(metrics)}")
    return float(np.mean([metrics[name] for name in names]))


def chance_metrics(kind: str, classes: int, labels: np.ndarray) -> dict[str, float]:
    """Every metric of equal probabilities for all classes (multilabel: 1/2 for every finding)."""
    value = 0.5 if kind == "multilabel" else 1 / classes
    return evaluate(kind, np.full((len(labels), classes), value), labels)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0)


@METRICS.register("loss")
def loss(p: Predictions) -> float:
    """Mean negative log-likelihood in nats; multilabel: mean binary cross-entropy. Probabilities below 1e-12 count as 1e-12."""
    if p.kind == "multilabel":
        right = np.where(p.truth, p.scores, 1 - p.scores)
    else:
        right = np.take_along_axis(p.probabilities, p.labels[:, None], axis=1)
    return float(-np.log(np.clip(right, 1e-12, 1)).mean())


@METRICS.register("accuracy")
def accuracy(p: Predictions) -> float:
    """Share of images whose class is right; multilabel: share of all findings of all images."""
    return float((p.answers == p.truth).mean() if p.kind == "multilabel" else (p.predicted == p.labels).mean())


@METRICS.register("balanced_accuracy")
def balanced_accuracy(p: Predictions) -> float:
    """Mean recall over the classes; multilabel: macro over findings of the mean of recall and specificity."""
    if p.kind in ("multiclass", "ordinal"):
        return p.macro(p.recalls)
    both = np.stack([p.recalls, p.specificities])
    known = ~np.isnan(both)
    return p.macro(_ratio(np.where(known, both, 0).sum(axis=0), known.sum(axis=0)))


@METRICS.register("f1")
def f1(p: Predictions) -> float:
    """Harmonic mean of precision and recall, macro."""
    return p.macro(_ratio(2 * p.hits, p.positives + p.said))


@METRICS.register("precision")
def precision(p: Predictions) -> float:
    """Share of those called positive that are, macro; 0 for a class that is never called."""
    return p.macro(p.hits / np.maximum(p.said, 1))


@METRICS.register("recall")
def recall(p: Predictions) -> float:
    """Sensitivity: share of the positives found, macro."""
    return p.macro(p.recalls)


@METRICS.register("specificity")
def specificity(p: Predictions) -> float:
    """Share of the negatives that are not called positive, macro."""
    return p.macro(p.specificities)


@METRICS.register("auroc")
def auroc(p: Predictions) -> float:
    """Area under the ROC curve; macro, one class against the rest."""
    return p.macro(p.aurocs)


@METRICS.register("average_precision")
def average_precision(p: Predictions) -> float:
    """Area under the precision-recall curve as scikit-learn sums it; macro, one class against the rest."""
    values = np.full(p.scores.shape[1], np.nan)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        for column in np.flatnonzero((p.positives > 0) & (p.negatives > 0)):
            values[column] = average_precision_score(p.truth[:, column], p.scores[:, column])
    return p.macro(values)


@METRICS.register("ece")
def ece(p: Predictions) -> float:
    """Expected calibration error of the top class; multilabel: mean over findings of that of the finding's probability."""
    if p.kind == "multilabel":
        return float(np.mean([_calibration_error(*column) for column in zip(p.scores.T, p.truth.T, strict=True)]))
    return _calibration_error(p.probabilities.max(axis=1), p.probabilities.argmax(axis=1) == p.labels)


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Mean gap between confidence and frequency over equal-width bins (low, high], weighted by the images in them."""
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=confidence - right, minlength=ECE_BINS)).sum() / len(confidence))


@METRICS.register("medmnist_auc")
def medmnist_auc(p: Predictions) -> float:
    """AUC of `medmnist.Evaluator`: the mean over all classes or findings, NaN as soon as one lacks positives or negatives."""
    return float(p.aurocs.mean())


@METRICS.register("medmnist_acc")
def medmnist_acc(p: Predictions) -> float:
    """ACC of `medmnist.Evaluator`: at threshold .5 whatever the chosen one; multilabel: elementwise."""
    if p.kind in ("binary", "multilabel"):
        return float(((p.scores > 0.5) == p.truth).mean())
    return accuracy(p)


@METRICS.register("mae")
def mae(p: Predictions) -> float:
    """Mean distance, in classes, between the predicted and the right class of an ordinal task."""
    return float(np.abs(p.predicted - p.labels).mean())


@METRICS.register("quadratic_kappa")
def quadratic_kappa(p: Predictions) -> float:
    """Cohen's kappa with quadratic weights of an ordinal task; NaN when labels and predictions are all one class."""
    count = p.probabilities.shape[1]
    observed = np.bincount(p.labels * count + p.predicted, minlength=count**2).reshape(count, count)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0)) / len(p.labels)
    distance = np.subtract.outer(np.arange(count), np.arange(count)) ** 2
    chance = (distance * expected).sum()
    return float(1 - (distance * observed).sum() / chance) if chance > 0 else float("nan")

"""Intervals and tests that say how far a figure can be trusted: bootstrap over images, t over seeds, paired t, Holm.

The bootstrap's point values equal those of `tlray.training.metrics.evaluate` (a test).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tlray.registry import did_you_mean
from tlray.report.resampled import PER_IMAGE, RESAMPLED, Resampled, Threshold

CHUNK = 1 << 19
"""Draws (resamples x images) held in memory at once."""
SINGLE_LABEL = ("binary", "multiclass", "ordinal")


class Draws:
    """Resamples of one test split, drawn once, so that whatever is scored on them is scored on the same resampled images."""

    def __init__(self, kind: str, labels: np.ndarray, resamples: int = 1000, seed: int = 0, groups: np.ndarray | None = None):
        """See `bootstrap`, which has the same arguments."""
        self.kind, self.labels = kind, np.asarray(labels)
        strata, units = _units(kind, self.labels, groups)
        rng, step = np.random.default_rng(seed), max(1, CHUNK // max(len(self.labels), 1))
        sizes = [min(step, resamples - start) for start in range(0, resamples, step)]
        # one image is drawn about once in each resample: 255 times is beyond chance
        self._chunks = [_draws(rng, strata, units, size).astype(np.uint8) for size in sizes]
        stratified = "stratified " if kind in SINGLE_LABEL else ""
        self.interval = f"95 % {stratified}bootstrap over test {'images' if groups is None else 'groups'}"

    def __iter__(self) -> Iterator[np.ndarray]:
        """How often each image is in each resample, float64 [rows, N] a chunk."""
        return (chunk.astype(np.float64) for chunk in self._chunks)


@dataclass(frozen=True)
class Spread:
    """A figure, its values in every resample float64 [B] (NaN where it has none), and which kind of interval they give."""

    value: float
    resamples: np.ndarray
    interval: str

    def summary(self) -> dict[str, Any]:
        """{"value", "low", "high", "interval"} of the 95 % percentile interval."""
        low, high = _percentiles(self.resamples)
        return {"value": self.value, "low": low, "high": high, "interval": self.interval}


def bootstrap(
    kind: str,
    probabilities: np.ndarray,
    labels: np.ndarray,
    metrics: Sequence[str],
    resamples: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
    threshold: Threshold = 0.5,
) -> dict[str, dict[str, Any]]:
    """95 % percentile bootstrap of metrics over test images, or over whole groups (patients) when there are any.

    Single-label kinds are drawn within each label (a group counts for its commonest label). Labels of a multi-label task that
    a resample leaves without both classes drop out of that resample's macro average.

    Args:
        kind: binary, multiclass, ordinal or multilabel.
        probabilities: float [N, K].
        labels: int [N], or [N, L] of 0/1.
        groups: int [N] or None.
        threshold: operating threshold, as in `evaluate`.

    Returns:
        {metric: {"value", "low", "high", "interval": which kind of interval it is}}.

    Raises:
        KeyError for a metric that has no resampled form.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    spreads = mean_spreads(Draws(kind, labels, resamples, seed, groups), [probabilities], metrics, [threshold])
    return {name: spread.summary() for name, spread in spreads.items()}


def mean_spreads(
    draws: Draws, probabilities: Sequence[np.ndarray], metrics: Sequence[str], thresholds: Sequence[Threshold] | None = None
) -> dict[str, Spread]:
    """The mean of each metric over several trainings, in every resample; every training is scored on the same resampled images.

    The same `draws` for several arms makes their spreads paired and saves drawing anew. Metrics that are means over images are
    averaged over the trainings first, so that many trainings cost as much as one. Raises KeyError for an unknown metric, and
    ValueError without a training.

    Args:
        probabilities: of each training, float [N, K].
        thresholds: of each training, as in `evaluate`; None is .5 for all.
    """
    for name in metrics:
        if name not in RESAMPLED:
            raise KeyError(f"no bootstrap of metric {name!r}{did_you_mean(name, RESAMPLED)}")
    if not probabilities:
        raise ValueError("a bootstrap needs at least one training")
    arrays = [np.asarray(each, np.float64) for each in probabilities]
    limits: Sequence[Threshold] = [0.5] * len(arrays) if thresholds is None else thresholds
    every = np.ones((1, len(draws.labels)))

    def resampled(counts: np.ndarray) -> list[Resampled]:
        return [Resampled(draws.kind, array, draws.labels, counts, limit) for array, limit in zip(arrays, limits, strict=True)]

    averages = {name: np.mean([PER_IMAGE[name](each) for each in resampled(every)], axis=0) for name in metrics if name in PER_IMAGE}
    others = [name for name in metrics if name not in PER_IMAGE]

    def values(counts: np.ndarray) -> np.ndarray:
        total, found = counts.sum(axis=1), {name: counts @ average for name, average in averages.items()}
        with np.errstate(divide="ignore", invalid="ignore"):
            scored = [[RESAMPLED[name](each) for name in others] for each in (resampled(counts) if others else [])]
            means = dict(zip(others, np.mean(scored, axis=0), strict=True)) if others else {}
            return np.stack([found[name] / total if name in found else means[name] for name in metrics])

    point = values(every)[:, 0]
    spread = np.concatenate([values(counts) for counts in draws], axis=1)
    what = draws.interval + (f", of the mean over {len(arrays)} trainings" if len(arrays) > 1 else "")
    return {name: Spread(float(value), row, what) for name, value, row in zip(metrics, point, spread, strict=True)}


def _percentiles(row: np.ndarray) -> tuple[float, float]:
    row = row[np.isfinite(row)]
    return (float(np.percentile(row, 2.5)), float(np.percentile(row, 97.5))) if len(row) else (np.nan, np.nan)


def _units(kind: str, labels: np.ndarray, groups: np.ndarray | None) -> tuple[list[np.ndarray], np.ndarray]:
    """Strata (lists of units that are drawn among themselves) and each image's unit, int [N]; a unit is an image or a group."""
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    number = int(units.max()) + 1 if len(units) else 0
    if kind not in SINGLE_LABEL:
        return [np.arange(number)], units
    tally = np.zeros((number, int(labels.max()) + 1))
    np.add.at(tally, (units, labels.reshape(-1).astype(int)), 1)
    stratum = tally.argmax(axis=1)
    return [np.flatnonzero(stratum == each) for each in np.unique(stratum)], units


def _draws(rng: np.random.Generator, strata: list[np.ndarray], units: np.ndarray, rows: int) -> np.ndarray:
    """How often each image is in each of `rows` resamples, float [rows, N]."""
    drawn = np.empty((rows, sum(map(len, strata))))
    for stratum in strata:
        drawn[:, stratum] = rng.multinomial(len(stratum), np.full(len(stratum), 1 / len(stratum)), size=rows)
    return drawn[:, units]


def t_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of repeated trainings with its 95 % t-interval: {"values", "mean", "low", "high", "interval"}; one value has none."""
    numbers = np.asarray(values, np.float64)
    count, mean = len(numbers), float(numbers.mean()) if len(numbers) else np.nan
    result = {"values": numbers.tolist(), "mean": mean}
    if count < 2:
        return {**result, "low": None, "high": None, "interval": "no interval from one seed"}
    half = float(stats.t.ppf(0.975, count - 1)) * standard_error(numbers)
    return {**result, "low": mean - half, "high": mean + half, "interval": f"95 % t-interval over {count} seeds"}


def standard_error(values: np.ndarray, test_share: float | None = None) -> float:
    """Standard error of the mean of [n] values; with a test_share, corrected for overlapping training images (Nadeau & Bengio 2003)."""
    return float(values.std(ddof=1) * np.sqrt(1 / len(values) + (test_share or 0.0)))


def paired_t(a: Sequence[float], b: Sequence[float], test_share: float | None = None) -> dict[str, Any]:
    """Paired t-test of a - b, the pairs being equal seeds (or folds): {"difference", "low", "high", "p", "pairs", "interval"}.

    `p` is two-sided. Equal differences other than zero, as steps of one image give them in few trainings, say nothing about their
    spread: then p, low and high are None. Raises ValueError for fewer than two pairs.

    Args:
        test_share: for cross-validated values, validation images divided by training images (`corrected_t_interval`).
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError(f"a paired t-test needs at least two pairs, not {count}")
    mean, error = float(differences.mean()), standard_error(differences, test_share)
    if error <= 1e-12 * abs(mean) and mean != 0:
        nothing = dict.fromkeys(("low", "high", "p"))
        return {"difference": mean, **nothing, "pairs": count, "interval": f"no interval from {count} equal differences"}
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if error > 0 else 1.0
    half = float(stats.t.ppf(0.975, count - 1)) * error
    what = f"95 % paired t-interval over {count} pairs" + ("" if test_share is None else ", Nadeau-Bengio corrected")
    return {"difference": mean, "low": mean - half, "high": mean + half, "p": p, "pairs": count, "interval": what}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, in the given order (Holm 1979, Scandinavian Journal of Statistics 6:65-70)."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def rescale(kind: str, probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature, from probabilities alone: those of logits / temperature, float64 [N, K].

    Softmax: p^(1/T), normalised. Multi-label: sigmoid(logit(p) / T). Ordinal: the same on each conditional
    P(y > k | y >= k) of the continuation-ratio model. Source: Guo et al. 2017, arXiv:1706.04599.
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-12, 1 - 1e-12)
    if kind == "multilabel":
        return 1 / (1 + ((1 - p) / p) ** (1 / temperature))
    if kind != "ordinal":
        powered = p ** (1 / temperature)
        return powered / powered.sum(axis=1, keepdims=True)
    beyond = np.clip(p[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], 1e-12, None)
    go_on = 1 / (1 + (p[:, :-1] / beyond) ** (1 / temperature))
    reached = np.cumprod(np.concatenate([np.ones((len(p), 1)), go_on], axis=1), axis=1)
    return reached * np.concatenate([1 - go_on, np.ones((len(p), 1))], axis=1)

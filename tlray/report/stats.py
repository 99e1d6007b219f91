"""Intervals and tests that say how far a figure can be trusted: bootstrap over images, t over seeds, paired t, Holm.

The bootstrap's point values equal those of `tlray.training.metrics.evaluate` (a test).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from tlray.registry import did_you_mean
from tlray.report.resampled import RESAMPLED, Resampled, Threshold

CHUNK = 1 << 19
"""Draws (resamples x images) held in memory at once."""
SINGLE_LABEL = ("binary", "multiclass", "ordinal")


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
    for name in metrics:
        if name not in RESAMPLED:
            raise KeyError(f"no bootstrap of metric {name!r}{did_you_mean(name, RESAMPLED)}")
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    count = len(labels)

    def values(draws: np.ndarray) -> np.ndarray:
        resampled = Resampled(kind, probabilities, labels, draws, threshold)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack([RESAMPLED[name](resampled) for name in metrics])

    point = values(np.ones((1, count)))[:, 0]
    rng, step = np.random.default_rng(seed), max(1, CHUNK // max(count, 1))
    strata, units = _units(kind, labels, groups)
    spread = np.concatenate(
        [values(_draws(rng, strata, units, min(step, resamples - start))) for start in range(0, resamples, step)], axis=1
    )
    what = ("stratified " if kind in SINGLE_LABEL else "") + "bootstrap over test " + ("images" if groups is None else "groups")
    return {
        name: {"value": float(value), **dict(zip(("low", "high"), _percentiles(row), strict=True)), "interval": f"95 % {what}"}
        for name, value, row in zip(metrics, point, spread, strict=True)
    }


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
    half = float(stats.t.ppf(0.975, count - 1) * numbers.std(ddof=1) / np.sqrt(count))
    return {**result, "low": mean - half, "high": mean + half, "interval": f"95 % t-interval over {count} seeds"}


def paired_t(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Paired t-test of a - b, the pairs being equal seeds (or folds): {"difference", "low", "high", "p", "pairs", "interval"}.

    `p` is two-sided; without spread in the differences it is 1 (all zero) or 0. Raises ValueError for fewer than two pairs.
    """
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError(f"a paired t-test needs at least two pairs, not {count}")
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(count))
    p = float(2 * stats.t.sf(abs(mean) / error, count - 1)) if error > 0 else float(mean == 0)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    what = f"95 % paired t-interval over {count} pairs"
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

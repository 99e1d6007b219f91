"""The figures of a comparison's summary: what validation says of each arm, then what the test split says, then pair by pair."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tlray.report.comparing import corrected_t_interval
from tlray.report.stats import Draws, Spread, mean_spreads, t_interval
from tlray.results import Trial
from tlray.runs.arms import Grid
from tlray.runs.evaluation import Scored, costs, deviation

Interval = Callable[[Sequence[float]], dict[str, Any]]


def interval_of(grid: Grid) -> Interval:
    """How the mean over an arm's trainings gets its interval: over seeds, or over folds with the correction for shared images."""
    share, folds, seeds = fold_share(grid), grid.folds, len(grid.seeds)
    if share is None or folds is None:
        return t_interval
    return lambda values: corrected_t_interval(values, share, folds=folds, seeds=seeds)


def fold_share(grid: Grid) -> float | None:
    """Images of a fold per image of the others, 1 / (K - 1), by which trainings overlap; None without folds.

    `samples` draws from the others: it makes trainings smaller, not more alike, so it does not count here.
    """
    return None if grid.folds is None else 1 / (grid.folds - 1)


def validated(grid: Grid, arm: str, trials: Sequence[Trial], task: str, interval: Interval) -> dict[str, Any]:
    """An arm's validation figures, times and settings; each of its trainings has come to its end."""
    minimise = grid.base.minimise
    best = [row["monitor"] for trial in trials if (row := trial.best_row(minimise))]
    statuses: dict[str, int] = {}
    for trial in trials:
        statuses[trial.status] = statuses.get(trial.status, 0) + 1
    cached = [bool(row["cached"]) for trial in trials for row in trial.history]
    times = {name: interval(values) for name, values in costs(trials, minimise).items()}
    return {
        "arm": arm, "task": task, "statuses": statuses,
        "config": {key: value for key, value in trials[0].config.items() if key not in ("seed", "fold", "threads")},
        "validation": interval(best), "deviation": interval([deviation(trial) for trial in trials]),
        "cost": {**times, "cached": float(np.mean(cached))},
    }  # fmt: skip


def chosen_arms(entries: Sequence[dict[str, Any]], minimise: bool) -> dict[str, str]:
    """Task -> its arm with the best mean on validation."""
    chosen: dict[str, str] = {}
    for entry in sorted(entries, key=lambda each: each["validation"]["mean"] * (1 if minimise else -1)):
        chosen.setdefault(entry["task"], entry["arm"])
    return chosen


UNBOUNDED = frozenset({"loss", "mae", "quadratic_kappa"})
"""Metrics that may leave 0..1."""


def bounded(name: str, figure: dict[str, Any]) -> dict[str, Any]:
    """A metric's interval cut off at 0 and 1, which a t-interval of few trainings may leave."""
    if name in UNBOUNDED or figure["low"] is None:
        return figure
    return {**figure, "low": max(0.0, figure["low"]), "high": min(1.0, figure["high"])}


def measured(entry: dict[str, Any], scored: Sequence[Scored], interval: Interval) -> dict[str, Any]:
    """The entry with what the trained models do on training, validation and test images, and what they cost in use."""
    parts: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        found = [each.metrics(split) for each in scored]
        parts[split] = {name: bounded(name, interval([one[name] for one in found])) for name in found[0]}
    decided = [each.at_threshold() for each in scored]
    known = [one for one in decided if one is not None]
    parts["at_threshold"] = {name: bounded(name, interval([one[name] for one in known])) for name in known[0]} if known else None
    parts["gap"] = interval([each.metrics("train")["accuracy"] - each.metrics("val")["accuracy"] for each in scored])
    return {**entry, **parts, "cost": {**entry["cost"], **scored[0].facts}}


def spreads_of(
    scored: dict[str, list[Scored]], tasks: dict[str, str], metrics: Sequence[str]
) -> dict[str, dict[str, Spread]]:  # fmt: skip
    """Arm -> metric -> its mean over the arm's trainings on resampled test images; arms of one task share the resamples.

    tasks: arm -> task.
    """
    draws: dict[str, Draws] = {}
    found = {}
    for arm, each in scored.items():
        first, task = each[0], tasks[arm]
        if task not in draws:
            draws[task] = Draws(first.kind, first.labels["test"], groups=first.groups)
        found[arm] = mean_spreads(draws[task], [one.probabilities["test"] for one in each], metrics)
    return found

"""A comparison: a full grid across named values and seeds, every training to its end, no search."""

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tlray.cluster.trial import Job
from tlray.config import FIELDS, Config
from tlray.data.held_out import open_test
from tlray.errors import ConfigError, Interrupted, RunError
from tlray.models.kinds import KINDS
from tlray.registry import did_you_mean
from tlray.report.stats import t_interval
from tlray.results import Trial, rows_of
from tlray.runs.delivery import assemble, logits_of
from tlray.runs.folder import Run, finish, prepare_weights
from tlray.training.metrics import evaluate

FOLDER = "comparison"


def arms_of(base: Config, across: Mapping[str, Sequence[Any]]) -> dict[str, Config]:
    """Every combination of the named values: "unfreeze=head lr=0.001" -> Config. Raises ConfigError for an unknown field."""
    unknown = [name for name in across if name not in FIELDS]
    if unknown:
        raise ConfigError(f"across: unknown field {unknown[0]!r}{did_you_mean(unknown[0], FIELDS)}")
    combinations = itertools.product(*across.values())
    return {
        " ".join(f"{name}={value}" for name, value in zip(across, values, strict=True)) or "base": replace(
            base, **dict(zip(across, values, strict=True))
        )
        for values in combinations
    }


def compare(base: Config, across: Mapping[str, Sequence[Any]], run: Run, seeds: Sequence[int] = (0, 1, 2, 3, 4)) -> dict[str, Any]:
    """Train every combination under every seed, choose by mean validation, then open the test split once for all; the summary.

    The choice stands in summary.json before the test split is opened. Seeds are shared, so arms are paired.

    Args:
        across: field -> values.
        seeds: each sets the draw of samples, the initial weights and everything random.

    Raises Interrupted after Ctrl-C, with the state saved; RunError when a training came to no epoch.
    """
    from tlray.cluster import tuning  # imports Ray

    started = time.monotonic()
    arms = arms_of(base, across)
    grid = [(name, replace(config, seed=seed)) for name, config in arms.items() for seed in seeds]
    prepare_weights([config for _, config in grid], run)
    job = Job(run.name, run.folder / FOLDER, f"{run.name}-{FOLDER}", run.places, run.resources)
    trials = tuning.grid(tuning.Book(job, base.minimise, keep_best=True), grid)
    rows = rows_of(FOLDER, base.task, trials)
    if len(trials) < len(grid) or not all(trial.ended for trial in trials):
        finish(run, "compare", rows, [], partial=True, seconds=0.0)
        raise Interrupted(f"interrupted; what is done is saved: the same call with resume goes on in {run.folder}")
    entries = [_validated(name, [trial for trial in trials if trial.arm == name], base.minimise) for name in arms]
    best = min(entries, key=lambda entry: entry["validation"]["mean"] * (1 if base.minimise else -1))
    chosen = {"arms": entries, "chosen": best["arm"]}
    finish(run, "compare", rows, [], partial=True, seconds=time.monotonic() - started, more=chosen)
    for entry in entries:
        entry["test"] = _tested(run, [trial for trial in trials if trial.arm == entry["arm"]], base.minimise)
    return finish(run, "compare", rows, [], partial=False, seconds=time.monotonic() - started, more=chosen)


def _validated(name: str, trials: list[Trial], minimise: bool) -> dict[str, Any]:
    """An arm's best validation monitor of each seed, with a t-interval over seeds."""
    rows = [trial.best_row(minimise) for trial in trials]
    for trial, row in zip(trials, rows, strict=True):
        if row is None:
            raise RunError(f"{name}, seed {trial.config['seed']}, came to no epoch: {trial.reason or trial.status}")
    config = {key: value for key, value in trials[0].config.items() if key != "seed"}
    return {"arm": name, "config": config, "validation": t_interval([row["monitor"] for row in rows if row])}


def _tested(run: Run, trials: list[Trial], minimise: bool) -> dict[str, Any]:
    """Every test metric of an arm's seeds at their best validation epoch, threshold .5, with t-intervals over seeds."""
    measured = []
    for trial in trials:
        row = trial.best_row(minimise)
        assert row is not None
        prepared = assemble(run.folder / FOLDER, trial, row["epoch"], run.places)
        test = open_test(prepared.task, run.ledger, f"comparison: {trial.arm}, seed {trial.config['seed']}")
        probabilities = KINDS[prepared.task.kind].probabilities(logits_of(prepared.model, prepared.task, test.images)).numpy()
        measured.append(evaluate(prepared.task.kind, probabilities, np.asarray(test.labels)))
    return {name: t_interval([each[name] for each in measured]) for name in measured[0]}

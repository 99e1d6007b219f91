"""Which hyperparameter mattered, reckoned from the rows of `results.parquet` alone."""

from typing import Any

import numpy as np
import pandas as pd

from tlray.report.plots import is_log, searched
from tlray.report.style import Table

ENOUGH = 4
"""Finished trials below which importance means nothing."""


def importance(trials: Table, minimise: bool) -> tuple[dict[str, float], str]:
    """Shares by knob and an empty reason, or no shares and the reason why there are none.

    Functional ANOVA on a random forest over the finished trials' best monitor, as optuna has it. With few trials it is a hint.
    Source: Hutter, Hoos & Leyton-Brown 2014, ICML.

    Args:
        trials: from `tlray.report.plots.trial_table`.
        minimise: whether a lower monitor is better.
    """
    finished = trials[(trials["status"] == "finished") & np.isfinite(trials["best"])]
    if len(finished) < ENOUGH:
        return {}, f"Importance needs at least {ENOUGH} finished trials, and this search has {len(finished)}."
    knobs = searched(finished)
    if not knobs:
        return {}, "The finished trials do not differ in any setting, so there is nothing to rank."
    if finished["best"].nunique() < 2:
        return {}, "All finished trials reached the same value, so no setting made a difference."
    return _fanova(finished, knobs, minimise), ""


def _fanova(finished: Table, knobs: list[str], minimise: bool) -> dict[str, float]:
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        columns = {knob: _column(knob, finished[f"config/{knob}"]) for knob in knobs}
        study = optuna.create_study(direction="minimize" if minimise else "maximize")
        for row, value in enumerate(finished["best"]):
            study.add_trial(
                optuna.trial.create_trial(
                    params={knob: values[row] for knob, (values, _) in columns.items()},
                    distributions={knob: distribution for knob, (_, distribution) in columns.items()},
                    value=float(value),
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=knobs)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return {knob: float(share) for knob, share in found.items()}


def _column(knob: str, values: Table) -> tuple[list[Any], Any]:
    """A knob's values and their optuna distribution: numbers on a plain or log axis, everything else as names."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    numbers = np.asarray(pd.to_numeric(values, errors="coerce"), np.float64)
    if np.isfinite(numbers).all():
        return numbers.tolist(), FloatDistribution(float(numbers.min()), float(numbers.max()), log=is_log(knob, numbers))
    names = [str(value) for value in values]
    return names, CategoricalDistribution(sorted(set(names)))

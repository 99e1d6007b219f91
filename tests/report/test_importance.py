"""Importance finds the knob that decides, and says why when it cannot."""

import numpy as np
import pandas as pd

from tlray.report.importance import importance
from tlray.report.plots import searched, trial_table


def rows(values: list[float], **knobs: list) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"trial": number, "epoch": 1, "status": "finished", "reason": "", "seconds": 1.0, "monitor": value}
            | {f"config/{name}": column[number] for name, column in knobs.items()}
            for number, value in enumerate(values)
        ]
    )


def test_the_deciding_knob_leads():
    random = np.random.default_rng(0)
    lr, dropout = 10 ** random.uniform(-5, -1, 24), random.uniform(0, 0.5, 24)
    kind = random.choice(["cosine", "constant"], 24).tolist()
    table = rows((0.9 - 0.1 * np.abs(np.log10(lr) + 3)).tolist(), lr=lr.tolist(), dropout=dropout.tolist(), scheduler=kind, seed=[0] * 24)
    shares, reason = importance(trial_table(table, False), minimise=False)
    assert reason == ""
    assert list(shares) == sorted(shares, key=lambda name: -shares[name])
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.7
    assert set(shares) == {"lr", "dropout", "scheduler"}
    assert sum(shares.values()) <= 1 + 1e-9


def test_too_few_finished_trials_say_so():
    table = rows([0.1, 0.2, 0.3], lr=[1.0, 2.0, 3.0])
    assert importance(trial_table(table, False), False) == (
        {},
        "Importance needs at least 4 finished trials, and this search has 3.",
    )


def test_equal_settings_or_equal_values_say_so():
    same = importance(trial_table(rows([0.1, 0.2, 0.3, 0.4], lr=[1.0] * 4), False), False)
    assert same == ({}, "The finished trials do not differ in any setting, so there is nothing to rank.")
    flat = importance(trial_table(rows([0.5] * 4, lr=[1.0, 2.0, 3.0, 4.0]), False), False)
    assert flat == ({}, "All finished trials reached the same value, so no setting made a difference.")


def test_trial_table_takes_the_best_epoch_in_the_monitors_direction():
    table = pd.DataFrame(
        {
            "trial": [0, 0, 0, 1, 2], "epoch": [1, 2, 3, 0, 1], "status": ["finished"] * 3 + ["failed", "nonfinite"], "reason": "",
            "seconds": [1.0, 1.0, 2.0, np.nan, 1.0], "monitor": [0.3, 0.1, 0.2, np.nan, np.nan], "config/lr": 0.1,
        }
    )  # fmt: skip
    low, high = trial_table(table, minimise=True), trial_table(table, minimise=False)
    assert (low["best"][0], low["best_epoch"][0], low["epochs"][0], low["seconds"][0]) == (0.1, 2, 3, 4.0)
    assert (high["best"][0], high["best_epoch"][0]) == (0.3, 1)
    assert low["epochs"].tolist() == [3, 0, 1]
    assert low["best"].isna().tolist() == [False, True, True]
    assert searched(low) == []

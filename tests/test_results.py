"""The winner by scripted curves, and what a run leaves behind."""

import itertools

import pandas as pd
import pytest

from tlray.config import Config
from tlray.errors import RunError
from tlray.results import (
    FAILED,
    FINISHED,
    NONFINITE,
    RUNNING,
    STOPPED,
    Trial,
    end_trial,
    read_results,
    read_summary,
    read_trial,
    read_trials,
    rows_of,
    trial_folder,
    winner,
    write_results,
    write_trial,
)

CONFIG = Config().to_dict()


def trial(number: int, monitors: list[float], losses: list[float] | None = None, status: str = FINISHED) -> Trial:
    losses = losses or [0.5] * len(monitors)
    history = [{"epoch": epoch, "monitor": m, "val_loss": v} for epoch, (m, v) in enumerate(zip(monitors, losses, strict=True), 1)]
    return Trial(number, CONFIG, status, history=history)


def won(trials: list[Trial], minimise: bool = False) -> tuple[int, int]:
    """(trial, epoch) of the winner, the same in whatever order the trials come."""
    found = set()
    for order in itertools.permutations(trials):
        best = winner(list(order), minimise)
        assert best is not None
        found.add((best[0].number, best[1]["epoch"]))
    assert len(found) == 1
    return found.pop()


def test_the_winner_is_the_best_epoch_and_not_the_last():
    assert won([trial(0, [0.7, 0.8, 0.75]), trial(1, [0.6, 0.95, 0.5, 0.4]), trial(2, [0.8, 0.85, 0.9])]) == (1, 2)


def test_where_lower_is_better_the_lowest_wins():
    assert won([trial(0, [0.7, 0.2, 0.75]), trial(1, [0.6, 0.95, 0.5])], minimise=True) == (0, 2)


def test_equal_monitors_are_parted_by_validation_loss():
    assert won([trial(0, [0.9, 0.9, 0.9], [0.5, 0.3, 0.4]), trial(1, [0.9, 0.9], [0.6, 0.2])]) == (1, 2)
    assert won([trial(0, [0.9, 0.9, 0.9], [0.5, 0.3, 0.4]), trial(1, [0.9, 0.9], [0.6, 0.31])]) == (0, 2)


def test_then_by_the_earlier_epoch():
    assert won([trial(0, [0.1, 0.9, 0.9]), trial(1, [0.9, 0.1, 0.9])]) == (1, 1)


def test_and_last_by_the_lower_trial_number():
    assert won([trial(7, [0.1, 0.9]), trial(3, [0.1, 0.9]), trial(5, [0.1, 0.9])]) == (3, 2)


@pytest.mark.parametrize("status", [NONFINITE, STOPPED, FAILED, RUNNING])
def test_the_epochs_of_a_trial_that_did_not_finish_count(status):
    assert won([trial(0, [0.5, 0.6]), trial(1, [0.9], status=status)]) == (1, 1)


def test_a_trial_without_an_epoch_wins_nothing():
    assert won([trial(0, [], status=NONFINITE), trial(1, [0.4])]) == (1, 1)
    assert winner([trial(0, [], status=FAILED)], False) is None
    assert winner([], False) is None


def test_a_trials_best_row_follows_the_same_rule():
    row = trial(0, [0.9, 0.9, 0.9], [0.5, 0.3, 0.3]).best_row(False)
    assert row is not None
    assert row["epoch"] == 2


def test_trials_come_back_as_they_were_in_the_order_of_their_numbers(tmp_path):
    written = [trial(number, [0.5, 0.25 + number / 7]) for number in (10, 2, 1)]
    for each in written:
        write_trial(tmp_path, each)
    assert read_trials(tmp_path) == sorted(written, key=lambda each: each.number)
    ended = end_trial(tmp_path, 2, NONFINITE, written[1].history, "the loss", 0.5)
    assert ended == read_trial(tmp_path, 2)
    assert (ended.status, ended.reason, ended.chance, ended.ended) == (NONFINITE, "the loss", 0.5, True)


def test_a_damaged_trial_names_its_file(tmp_path):
    write_trial(tmp_path, trial(4, [0.5]))
    (trial_folder(tmp_path, 4) / "trial.json").write_text('{"number": 4')
    with pytest.raises(RunError, match="0004"):
        read_trial(tmp_path, 4)


def test_the_table_has_a_row_per_epoch_and_one_for_a_trial_without(tmp_path):
    rows = rows_of("cell", "toy", [trial(0, [0.5, 0.6]), trial(1, [], status=NONFINITE)])
    write_results(tmp_path / "results.parquet", rows)
    table = read_results(tmp_path)
    assert [(row.trial, row.epoch, row.status) for row in table.itertuples()] == [(0, 1, FINISHED), (0, 2, FINISHED), (1, 0, NONFINITE)]
    assert {f"config/{name}" for name in CONFIG} <= set(table.columns)
    assert pd.isna(table.monitor.iloc[2])
    assert table["config/lr"].tolist() == [1e-3] * 3


def test_samples_of_several_kinds_fit_one_column(tmp_path):
    trials = [Trial(number, {**CONFIG, "samples": samples}) for number, samples in enumerate([None, 300, "10/class"])]
    write_results(tmp_path / "results.parquet", rows_of("cell", "toy", trials))
    column = read_results(tmp_path)["config/samples"]
    assert pd.isna(column.iloc[0])
    assert column.iloc[1:].tolist() == ["300", "10/class"]


def test_a_folder_without_results_is_no_run(tmp_path):
    with pytest.raises(RunError, match="directory of a run"):
        read_results(tmp_path)
    with pytest.raises(RunError, match="finished run"):
        read_summary(tmp_path)
    (tmp_path / "results.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(RunError, match="cannot be read"):
        read_results(tmp_path)

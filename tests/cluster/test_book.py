"""The driver's book of trials: what it notes of a trial that is stopped is there, whatever the trial's process still does."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import toy_config, toy_job

from tlray.cache import Places
from tlray.cluster import book as books
from tlray.cluster.book import Book
from tlray.cluster.session import Session
from tlray.cluster.trial import train
from tlray.results import STOPPED, Trial, read_trial, trial_folder
from tlray.training.checkpoint import checkpoint_of_epoch, newest_checkpoint, save_checkpoint
from tlray.training.fit import fit


def best_is_there(trial: Trial, job) -> int:
    """The best epoch that a trial has noted, whose checkpoint is read."""
    row = trial.best_row(minimise=True)
    assert row is not None
    return checkpoint_of_epoch(trial_folder(job.cell, trial.number) / "checkpoints", row["epoch"]).epoch


@pytest.mark.slow
def test_a_process_that_outlives_the_end_of_its_trial_drops_no_checkpoint(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    config = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=6, monitor="loss")
    job = toy_job(tmp_path / "cell", places)
    book = Book(job, minimise=True)
    book.begin(0, config)

    def stop(result: dict[str, Any]) -> None:
        if result["epoch"] == 2:
            book.stopped[0] = sys.maxsize
            book.end(0)

    train(job, 0, config, stop)
    newest = newest_checkpoint(trial_folder(job.cell, 0) / "checkpoints")
    assert newest is not None
    assert (newest.epoch, newest.meta["best"]) == (6, 6)  # which would have dropped the second
    trial = read_trial(job.cell, 0)
    assert (trial.status, len(trial.history)) == (STOPPED, 2)
    assert best_is_there(trial, job) == 2


def test_an_epoch_that_ends_while_its_trial_is_stopped_is_noted(
    toy_npz, tmp_path: Path, places: Places, ray_session: Session, monkeypatch: pytest.MonkeyPatch
):
    config = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=6, monitor="loss")
    job = toy_job(tmp_path / "cell", places)
    book = Book(job, minimise=True)
    book.begin(0, config)
    epochs, counts, right = fit(config, places), iter([2]), books.end_trial

    def go_on(count: int) -> None:
        for epoch in itertools.islice(epochs, count):
            save_checkpoint(trial_folder(job.cell, 0) / "checkpoints", epoch.state(), lambda: read_trial(job.cell, 0).ended)

    def after_two_epochs(*arguments: Any) -> Trial:
        go_on(next(counts, 0))
        return right(*arguments)

    go_on(2)
    monkeypatch.setattr(books, "end_trial", after_two_epochs)
    book.stopped[0] = sys.maxsize
    book.end(0)
    assert (book.trials[0].status, len(book.trials[0].history)) == (STOPPED, 4)
    assert best_is_there(book.trials[0], job) == 4

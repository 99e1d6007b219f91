"""Clocks that jump and searches that grow long: what a search relies on does not change with them."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import Scripted, toy_config, toy_job

from tlray.cache import Places
from tlray.cluster import book as books
from tlray.cluster.session import Session
from tlray.cluster.supervision import Enough
from tlray.cluster.tuning import Book, FairASHA, search
from tlray.config import Config
from tlray.results import FINISHED, Trial, trial_folder, write_trial

HOUR = 3600.0
CONFIG = Config(task="digits", backbone="small_cnn", epochs=8)


def row(epoch: int, value: float, moment: float) -> dict[str, Any]:
    scores = {"best": value, "monitor": value, "val_loss": 1.0}
    return {"epoch": epoch, **scores, "phase": 0, "phases": 1, "time": moment, "seconds": 1.0}


def set_clock(monkeypatch: pytest.MonkeyPatch, forward: float) -> None:
    """Set this process's wall clock forward, or back."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + forward)


def test_a_clock_that_was_set_back_leaves_each_trials_epochs_in_order(tmp_path: Path, places: Places):
    judged: list[tuple[int, int]] = []

    class Watched(FairASHA):
        def judge(self, number: int, result: dict[str, Any]) -> str:
            judged.append((number, result["epoch"]))
            return super().judge(number, result)

    def rungs(back: float) -> list[dict[str, float]]:
        judged.clear()
        trials = {}
        for number in range(3):
            moments = [epoch + number / 10 - (back if epoch > 3 else 0.0) for epoch in range(1, 9)]
            rows = [row(epoch, 0.5 + number / 10, moment) for epoch, moment in enumerate(moments, 1)]
            trials[number] = Trial(number, CONFIG.to_dict(), FINISHED, history=rows)
        scheduler = Watched(Book(toy_job(tmp_path, places), minimise=False, trials=trials), 0, 8)
        assert scheduler.replay() == set()
        for number in range(3):
            assert [epoch for each, epoch in judged if each == number] == list(range(1, 9))
        return [dict(recorded) for _, recorded in scheduler._brackets[0]._rungs]

    assert rungs(back=HOUR) == rungs(back=0.0)


def test_a_time_budget_does_not_go_by_the_wall_clock(ray_session: Session, monkeypatch: pytest.MonkeyPatch):
    enough, over = Enough(lambda: None, 60.0), Enough(lambda: None, 1e-9)
    set_clock(monkeypatch, HOUR)
    assert not enough.stop_all()
    set_clock(monkeypatch, -2 * HOUR)
    assert not enough.stop_all()
    assert over.stop_all()
    assert not Enough(lambda: None).stop_all()


class Jumping:
    """Sets the clock forward and back by turns, at every trial that starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch, self.jump = monkeypatch, HOUR

    def trial_started(self, cell: str, trial: Trial) -> None:
        set_clock(self.monkeypatch, self.jump)
        self.jump *= -2

    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None: ...
    def trial_ended(self, cell: str, trial: Trial) -> None: ...


@pytest.mark.slow
def test_a_search_under_a_budget_goes_on_while_the_clock_jumps(
    toy_npz, tmp_path: Path, places: Places, ray_session: Session, monkeypatch: pytest.MonkeyPatch
):
    config = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=1)
    book = Book(toy_job(tmp_path / "cell", places), minimise=False, listener=Jumping(monkeypatch))
    trials = search(book, Scripted([replace(config, seed=seed) for seed in range(3)]), seconds=600.0)
    assert [trial.status for trial in trials] == [FINISHED] * 3


def test_the_end_of_a_trial_looks_at_few_folders_however_many_have_ended(tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch):
    looked: list[Path] = []
    found = books.found
    monkeypatch.setattr(books, "found", lambda folder: looked.append(folder) or found(folder))
    monkeypatch.setattr(books, "cell_gauges", lambda *_: None)  # there is no Ray here
    book = Book(toy_job(tmp_path, places), minimise=False)
    for number in range(30):
        write_trial(tmp_path, Trial(number, CONFIG.to_dict(), FINISHED, history=[row(1, -number, number)]))
        checkpoints = trial_folder(tmp_path, number) / "checkpoints"
        checkpoints.mkdir()
        (checkpoints / f"epoch-00001-{number:016x}.safetensors").touch()
        looked.clear()
        book.end(number)
        assert len(looked) <= 1
    book.sweep()
    assert [path.parts[-3] for path in tmp_path.glob("trials/*/checkpoints/*")] == ["0000"]

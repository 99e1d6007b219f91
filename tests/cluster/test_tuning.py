"""Searching and comparing on Ray: who is stopped and who is not, what a trial that goes wrong leaves, and that nothing hangs."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import LateJob, Scripted, all_cpus_free, killed_marker, noted_marker, toy_config, toy_job, without_clock
from ray.tune.schedulers import TrialScheduler
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.sampler import Sampler
from tlray.cluster.session import Session
from tlray.cluster.tuning import Book, FairASHA, grid, search
from tlray.config import Config
from tlray.results import (
    BUG,
    CONFIGURATION,
    FAILED,
    FINISHED,
    NONFINITE,
    RUNNING,
    STOPPED,
    Trial,
    read_trial,
    read_trials,
    trial_folder,
    write_trial,
)  # fmt: skip
from tlray.training.checkpoint import found, newest_checkpoint, save_checkpoint
from tlray.training.fit import fit

EPOCHS = 8
CONFIG = Config(task="digits", backbone="small_cnn", epochs=EPOCHS)


def row(epoch: int, best: float, phase: int = 0, phases: int = 1, time: float = 0.0) -> dict[str, Any]:
    scores = {"best": best, "monitor": best, "val_loss": 1.0}
    return {"epoch": epoch, **scores, "phase": phase, "phases": phases, "time": time, "seconds": 1.0}


def result(epoch: int, best: float, last: bool = False, in_last_phase: bool = True) -> dict[str, Any]:
    return {"epoch": epoch, "best": best, "last": last, "in_last_phase": in_last_phase}


@pytest.fixture
def asha(tmp_path: Path, places: Places):
    """`asha(immune=0, trials={}, minimise=False)`: a scheduler over a book with those trials."""

    def make(immune: int = 0, trials: dict[int, Trial] | None = None, minimise: bool = False) -> FairASHA:
        book = Book(toy_job(tmp_path, places), minimise, trials=trials or {})
        return FairASHA(book, immune, EPOCHS)

    return make


def rungs(scheduler: FairASHA) -> list[tuple[float, dict[str, float]]]:
    return [(milestone, dict(recorded)) for milestone, recorded in scheduler._brackets[0]._rungs]


def test_a_trial_behind_the_others_is_stopped_at_its_first_rung(asha):
    scheduler = asha()
    for number in range(2):
        assert [scheduler.judge(number, result(epoch, 0.9)) for epoch in (1, 2, 3)] == [TrialScheduler.CONTINUE] * 3
    assert scheduler.judge(2, result(1, 0.1)) == TrialScheduler.CONTINUE
    assert scheduler.judge(2, result(2, 0.1)) == TrialScheduler.STOP


def test_a_lower_monitor_is_better_where_it_is_minimised(asha):
    scheduler = asha(minimise=True)
    scheduler.judge(0, result(2, 0.1))
    assert scheduler.judge(1, result(2, 0.05)) == TrialScheduler.CONTINUE
    assert scheduler.judge(2, result(2, 0.9)) == TrialScheduler.STOP


def test_a_late_unfreezing_trial_is_not_stopped_before_its_boundary(asha):
    scheduler = asha()
    for epoch in range(1, EPOCHS):
        scheduler.judge(0, result(epoch, 0.9))
    for epoch in (1, 2, 3):
        assert scheduler.judge(1, result(epoch, 0.1, in_last_phase=False)) == TrialScheduler.CONTINUE
    assert scheduler.judge(1, result(4, 0.1)) == TrialScheduler.STOP


def test_the_first_recipes_record_but_are_never_stopped(asha):
    scheduler = asha(immune=2)
    scheduler.judge(0, result(2, 0.9))
    assert [scheduler.judge(1, result(epoch, 0.1)) for epoch in range(1, EPOCHS)] == [TrialScheduler.CONTINUE] * (EPOCHS - 1)
    assert dict(rungs(scheduler))[2] == {"number-0": 0.9, "number-1": 0.1}
    assert scheduler.judge(2, result(2, 0.3)) == TrialScheduler.STOP


def test_a_trial_whose_epochs_are_over_is_left_to_end_by_itself(asha):
    """Also when its last epoch is reported a second time, after its process was lost in between."""
    scheduler = asha()
    scheduler.judge(0, result(4, 0.9))
    assert scheduler.judge(1, result(EPOCHS, 0.1, last=True)) == TrialScheduler.CONTINUE
    assert scheduler.judge(2, result(EPOCHS, 0.1, last=False)) == TrialScheduler.CONTINUE
    assert scheduler.judge(3, result(4, 0.1, last=True)) == TrialScheduler.CONTINUE


CURVES = {0: [0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9], 1: [0.5, 0.6], 2: [0.7, 0.75, 0.8, 0.9, 0.9]}


def book_of(curves: dict[int, list[float]], running: set[int]) -> dict[int, Trial]:
    """One epoch of each trial in turn, as two or more that run at once report."""
    rows = {n: [row(e, best, time=e + n / 10) for e, best in enumerate(values, 1)] for n, values in curves.items()}
    status = {n: RUNNING if n in running else FINISHED if len(values) == EPOCHS else STOPPED for n, values in curves.items()}
    return {n: Trial(n, CONFIG.to_dict(), status[n], history=rows[n]) for n in curves}


def test_rungs_after_a_replay_are_those_of_the_uninterrupted_search(asha):
    trials = book_of(CURVES, running={2})
    live, replayed = asha(), asha(trials=trials)
    for epoch in range(1, EPOCHS + 1):
        for number, values in CURVES.items():
            if epoch <= len(values):
                live.judge(number, result(epoch, values[epoch - 1]))
    assert replayed.replay() == set()
    assert rungs(replayed) == rungs(live)
    assert dict(rungs(replayed))[2] == {"number-0": 0.7, "number-1": 0.6, "number-2": 0.75}


def test_a_running_trial_that_should_have_been_stopped_is_found_by_the_replay(asha):
    trials = book_of(CURVES, running={1, 2})
    assert asha(trials=trials).replay() == {1}
    assert asha(immune=2, trials=trials).replay() == set()


def test_a_late_unfreezing_trial_is_not_behind_in_a_replay(asha):
    trials = book_of(CURVES, running={1, 2})
    frozen = [{**each, "phases": 2} for each in trials[1].history]
    assert asha(trials={**trials, 1: replace(trials[1], history=frozen)}).replay() == set()


def test_a_trial_killed_after_its_last_epoch_is_not_behind_in_a_replay(asha):
    """It has only still to be noted as finished, which its resume does."""
    curves = {0: [0.9] * EPOCHS, 1: [0.9] * 4 + [0.1] * 4}
    assert asha(trials=book_of(curves, running={1})).replay() == set()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_hopeless_trials_end_at_their_first_rung_and_nothing_hangs(workers: int, tmp_path: Path, places: Places, ray_session: Session):
    base = Config(task="digits", backbone="small_cnn", lr=1e-3, epochs=4, samples=320, batch_size=32, threads=1)
    configs = [base] * 2 + [replace(base, lr=1e-7)] * 2
    book = Book(toy_job(tmp_path / f"hopeless-{workers}", places, workers), minimise=False)
    trials = search(book, Scripted(configs))
    assert [(trial.status, len(trial.history)) for trial in trials] == [(FINISHED, 4)] * 2 + [(STOPPED, 2)] * 2
    assert [trial.reason for trial in trials[2:]] == ["behind the others at its rung"] * 2
    assert read_trials(book.job.cell) == trials
    wait_until(all_cpus_free, 90)


@pytest.fixture(scope="module")
def mixed(toy_npz, tmp_path_factory: pytest.TempPathFactory, places: Places, ray_session: Session) -> tuple[Book, Scripted]:
    """A search in which everything happens: non-finite, a bug, out of memory, the winner, a worse one."""
    folder = tmp_path_factory.mktemp("mixed")
    base = toy_config(toy_npz(folder / "toy.npz"), epochs=2, monitor="loss")
    wrong = [replace(base, augment=f"toy_{name}") for name in ("nan", "raises", "too_large")]
    scripted = Scripted([*wrong, replace(base, lr=1e-2), replace(base, lr=1e-6)], first=({},) * 5)
    book = Book(toy_job(folder / "cell", places), minimise=True)
    search(book, scripted)  # type: ignore[arg-type]
    return book, scripted


def test_a_nonfinite_trial_says_why_and_is_told_chance(mixed: tuple[Book, Scripted]):
    trial = read_trial(mixed[0].job.cell, 0)
    assert (trial.status, trial.reason, trial.cause) == (NONFINITE, "the training loss is not finite in epoch 1", CONFIGURATION)
    assert trial.chance == pytest.approx(math.log(2))


def test_a_bug_in_a_trial_is_failed_with_its_reason_and_traceback(mixed: tuple[Book, Scripted]):
    trial = read_trial(mixed[0].job.cell, 1)
    assert (trial.status, trial.reason, trial.cause) == (FAILED, "RuntimeError: this augmentation is broken", BUG)
    traceback = (trial_folder(mixed[0].job.cell, 1) / "error.txt").read_text()
    assert "cluster_toys.py" in traceback
    assert "second line" in traceback


def test_a_configuration_that_needs_too_much_memory_says_so(mixed: tuple[Book, Scripted]):
    trial = read_trial(mixed[0].job.cell, 2)
    assert (trial.status, trial.cause) == (FAILED, CONFIGURATION)
    assert trial.reason.startswith("out of memory, take a smaller batch or fewer trials at once: ")


def test_a_search_goes_on_after_trials_that_went_wrong(mixed: tuple[Book, Scripted]):
    assert [(trial.status, len(trial.history)) for trial in read_trials(mixed[0].job.cell)[3:]] == [(FINISHED, 2)] * 2


def test_the_sampler_is_told_of_every_trial_that_went_before(mixed: tuple[Book, Scripted]):
    statuses = [NONFINITE, FAILED, FAILED, FINISHED]
    assert [[trial.status for trial in told] for told in mixed[1].told] == [statuses[:count] for count in range(5)]


def test_only_the_winner_keeps_its_checkpoints_in_a_search(mixed: tuple[Book, Scripted]):
    assert [number for number in range(5) if found(trial_folder(mixed[0].job.cell, number) / "checkpoints")] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_trial_whose_process_is_killed_resumes_to_the_same_numbers(
    workers: int, toy_npz, tmp_path: Path, places: Places, ray_session: Session
):
    config = toy_config(toy_npz(tmp_path / "toy.npz"), augment="toy_killed", epochs=4)
    histories = []
    killed_marker().unlink(missing_ok=True)
    for name in ("killed", "undisturbed"):
        book = Book(toy_job(tmp_path / name, places, workers), minimise=False)
        (trial,) = search(book, Scripted([config]))
        assert killed_marker().exists()
        assert (trial.status, trial.lost) == (FINISHED, 1 if name == "killed" else 0)
        histories.append(without_clock(trial.history))
    assert len(histories[0]) == 4
    assert histories[0] == histories[1]
    wait_until(all_cpus_free, 90)


@pytest.mark.slow
def test_two_trials_at_a_time_all_come_to_an_end(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    base = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=3)
    configs = [replace(base, lr=lr) for lr in (1e-3, 2e-3, 1e-7, 3e-3, 1e-6)]
    book = Book(toy_job(tmp_path / "cell", places, concurrent=2), minimise=False)
    trials = search(book, Scripted(configs))
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert {trial.status for trial in trials} <= {FINISHED, STOPPED}
    assert all(len(trial.history) == 3 for trial in trials if trial.status == FINISHED)


@pytest.mark.slow
def test_a_process_that_takes_longer_to_start_than_trials_last_comes_up_all_the_same(
    toy_npz, tmp_path: Path, places: Places, ray_session: Session
):
    base = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=1, augment="toy_noted")
    plain = toy_job(tmp_path / "cell", places, concurrent=2)
    job = LateJob(plain.run, plain.cell, plain.label, places, plain.resources)
    noted_marker().unlink(missing_ok=True)
    trials = grid(Book(job, minimise=False), [(f"{seed}", replace(base, seed=seed)) for seed in range(8)])
    assert {trial.status for trial in trials} == {FINISHED}
    assert len(set(noted_marker().read_text().split())) == 2


@pytest.mark.slow
def test_a_search_that_is_taken_up_runs_only_what_is_missing(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    """Trial 0 has ended, 1 was cut off after an epoch, 2 was never suggested."""
    base = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=3)
    sampler = Sampler(base, {}, ({}, {"lr": 2e-3}, {"lr": 3e-3}), 3, 0)
    whole = search(Book(toy_job(tmp_path / "whole", places), minimise=False), sampler)
    job = toy_job(tmp_path / "cut", places)
    write_trial(job.cell, whole[0])
    cut_off(job, 1, sampler.propose(1, []), places)
    before = (trial_folder(job.cell, 0) / "trial.json").stat().st_mtime_ns
    trials = search(Book(job, minimise=False), sampler)
    assert (trial_folder(job.cell, 0) / "trial.json").stat().st_mtime_ns == before
    assert [without_clock(trial.history) for trial in trials] == [without_clock(trial.history) for trial in whole]
    assert [trial.status for trial in trials] == [FINISHED] * 3


def cut_off(job, number: int, config: Config, places: Places) -> None:
    """Leave a trial as a driver that is killed after its first epoch does."""
    write_trial(job.cell, Trial(number, config.to_dict()))
    epoch = next(fit(config, places))
    save_checkpoint(trial_folder(job.cell, number) / "checkpoints", epoch.state())


def test_a_running_trial_that_fell_behind_is_ended_before_anything_runs(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    base = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=2, monitor="loss")
    sampler = Sampler(base, {}, (), 2, 0)
    job = toy_job(tmp_path / "cell", places)
    history = [row(1, 0.1, time=1.0), row(2, 0.1, time=2.0)]
    for number in (0, 2):
        write_trial(job.cell, Trial(number, base.to_dict(), FINISHED, history=history))
    longer = replace(base, epochs=4)
    cut_off(job, 1, longer, places)
    folder = trial_folder(job.cell, 1) / "checkpoints"
    save_checkpoint(folder, next(fit(longer, places, resume=newest_checkpoint(folder))).state())
    trials = search(Book(job, minimise=True), replace(sampler, base=longer, trials=2))
    assert [(trial.number, trial.status, len(trial.history)) for trial in trials[:2]] == [(0, FINISHED, 2), (1, STOPPED, 2)]


@pytest.mark.slow
def test_a_time_budget_ends_the_search_with_reasons(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    base = toy_config(toy_npz(tmp_path / "toy.npz"), augment="toy_slow", epochs=100)
    book = Book(toy_job(tmp_path / "cell", places), minimise=False)
    trials = search(book, Scripted([base] * 5), seconds=4.0)
    assert trials[-1].status == STOPPED
    assert trials[-1].reason == "the time budget was over"
    assert len(trials) < 5
    assert read_trial(book.job.cell, trials[-1].number) == trials[-1]
    wait_until(all_cpus_free, 30)


def test_a_grid_trains_every_arm_to_its_end(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    base = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=3)
    left = tmp_path / "cell" / "ray" / "tune-of-a-driver-that-was-killed"
    left.mkdir(parents=True)
    arms = [("good", base), ("hopeless", replace(base, lr=1e-7)), ("hopeless", replace(base, lr=1e-7, seed=1))]
    trials = grid(Book(toy_job(tmp_path / "cell", places), minimise=False, keep_best=True), arms)
    assert [(trial.arm, trial.status, len(trial.history)) for trial in trials] == [(name, FINISHED, 3) for name, _ in arms]
    assert [trial.config for trial in trials] == [config.to_dict() for _, config in arms]
    assert all(found(trial_folder(tmp_path / "cell", number) / "checkpoints") for number in range(3))
    assert not left.exists()

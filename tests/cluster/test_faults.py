"""Whose fault a failure is, and what follows: the user's ends the search, the machine's is counted and tried again so often."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_toys import Scripted, all_cpus_free, hurry_marker, kill_controllers, toy_config, toy_job
from processes import family
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.faults import LOST_PROCESSES, cause_of, fail, lost, reason_of
from tlray.cluster.session import Session
from tlray.cluster.tuning import Book, search
from tlray.errors import ConfigError, DataError, NonFiniteLoss, RunError, WeightsError
from tlray.results import BUG, CONFIGURATION, FAILED, FINISHED, MACHINE, RUNNING, USER, Trial, read_trial, trial_folder, write_trial
from tlray.training.checkpoint import save_checkpoint
from tlray.training.fit import fit


def raised(size: int) -> BaseException:
    """What torch says on a CPU when it is asked for `size` bytes."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(size, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(("error", "cause"), [
    (DataError("no such file"), USER),
    (WeightsError("damaged"), USER),
    (RunError("of another configuration"), USER),
    (OSError(errno.ENOSPC, "No space left on device"), USER),
    (OSError(errno.EIO, "Input/output error"), USER),
    (OSError(errno.ESTALE, "Stale file handle", "/x/y"), USER),
    (OSError(errno.ETIMEDOUT, "Connection timed out", "/x/y"), USER),
    (OSError(errno.ETIMEDOUT, "Connection timed out"), MACHINE),
    (ConfigError("batch_size=1"), CONFIGURATION),
    (NonFiniteLoss("epoch 1"), CONFIGURATION),
    (MemoryError(), CONFIGURATION),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), CONFIGURATION),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), CONFIGURATION),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), CONFIGURATION),
    (torch.distributed.DistNetworkError("Connection reset"), MACHINE),
    (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer"), MACHINE),
    (ValueError("shapes"), BUG),
    (OSError(errno.ENOENT, "No such file"), BUG),
])  # fmt: skip
def test_every_error_is_somebodys(error: BaseException, cause: str):
    assert cause_of(error) == cause


def test_what_the_allocator_says_is_known():
    assert cause_of(raised(1 << 60)) == CONFIGURATION


def test_reasons_are_one_line():
    assert reason_of(DataError("no file\n  at all")) == "no file at all"
    assert reason_of(ValueError("first\nsecond")) == "ValueError: first"
    assert reason_of(OSError(errno.ENOSPC, "No space left on device", "/x/y")).startswith("/x/y cannot be written (No space left")
    stale = OSError(errno.ESTALE, "Stale file handle", "/x/y")
    assert reason_of(stale) == "/x/y cannot be used (Stale file handle): check its disk, or the server that it lies on"
    assert reason_of(ValueError()) == "ValueError: no message"


@pytest.fixture
def running(toy_npz, tmp_path: Path, places: Places):
    """A cell with one running trial that has a checkpoint of its first epoch."""
    job, config = toy_job(tmp_path / "cell", places), toy_config(toy_npz(tmp_path / "toy.npz"))
    write_trial(job.cell, Trial(0, config.to_dict()))
    save_checkpoint(trial_folder(job.cell, 0) / "checkpoints", next(fit(config, places)).state())
    return job


SAID = "The actor died unexpectedly: (1) The process is killed by SIGKILL by OOM killer due to high memory usage."
"""What Ray says of every process that is gone, whatever ended it."""


def test_lost_processes_are_counted_and_bounded(running):
    for count in range(1, LOST_PROCESSES + 1):
        lost(running, 0, SAID)
        assert (read_trial(running.cell, 0).status, read_trial(running.cell, 0).lost) == (RUNNING, count)
    lost(running, 0, SAID)
    trial = read_trial(running.cell, 0)
    assert (trial.status, trial.cause, trial.lost, len(trial.history)) == (FAILED, MACHINE, LOST_PROCESSES + 1, 1)
    assert trial.reason.startswith("it lost a process 4 times: The actor died")


def test_a_process_that_ray_ended_for_its_memory_is_not_tried_again(running):
    lost(running, 0, "Task was killed due to the node running low on memory.")
    trial = read_trial(running.cell, 0)
    assert (trial.status, trial.cause, trial.lost) == (FAILED, CONFIGURATION, 1)
    assert "ran low on memory" in trial.reason


def test_what_has_ended_stays_as_it_ended(running):
    fail(running, 0, ValueError("first"))
    fail(running, 0, DataError("second"))
    lost(running, 0, SAID)
    trial = read_trial(running.cell, 0)
    assert (trial.status, trial.cause, trial.reason, trial.lost) == (FAILED, BUG, "ValueError: first", 0)


NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")


class Spoiling:
    """Puts another file in the place of the file of every trial that starts."""

    def __init__(self, cell: Path, other: Path):
        self.cell, self.other = cell, other

    def trial_started(self, cell: str, trial: Trial) -> None:
        file = trial_folder(self.cell, trial.number) / "trial.json"
        file.unlink()
        file.symlink_to(self.other)

    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None: ...
    def trial_ended(self, cell: str, trial: Trial) -> None: ...


@pytest.mark.parametrize(("other", "says"), [
    (os.devnull, r"0000/trial\.json cannot be read .*remove"),
    pytest.param("/proc/self/mem", r"0000/trial\.json cannot be used \(Input/output error\)", marks=NEEDS_PROC),
])  # fmt: skip
@pytest.mark.slow
def test_a_trials_file_that_is_lost_while_it_runs_ends_the_search(
    other: str, says: str, toy_npz, tmp_path: Path, places: Places, ray_session: Session
):
    book = Book(toy_job(tmp_path / "cell", places), minimise=False, listener=Spoiling(tmp_path / "cell", Path(other)))
    with pytest.raises(RunError, match=says):
        search(book, Scripted([toy_config(toy_npz(tmp_path / "toy.npz"))]))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_users_mistake_ends_the_search_and_is_taken_up_once_mended(
    workers: int, toy_npz, tmp_path: Path, places: Places, ray_session: Session
):
    file = toy_npz(tmp_path / "toy.npz")
    base = toy_config(file, epochs=2)
    configs = [base, replace(base, task=f"npz:{tmp_path / 'later.npz'}"), replace(base, lr=2e-3)]
    book = Book(toy_job(tmp_path / "cell", places, workers), minimise=False)
    with pytest.raises(RunError, match=r"later\.npz"):
        search(book, Scripted(configs))
    assert [(trial.status, trial.cause) for trial in book.trials.values()] == [(FINISHED, ""), (FAILED, USER)]
    toy_npz(tmp_path / "later.npz")
    trials = search(Book(book.job, minimise=False), Scripted(configs))
    assert [(trial.number, trial.status, trial.cause, trial.reason) for trial in trials] == [(each, FINISHED, "", "") for each in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_trial_that_always_loses_its_process_ends_and_the_search_goes_on(
    workers: int, toy_npz, tmp_path: Path, places: Places, ray_session: Session
):
    """It has lost all processes but two when the search is taken up: a TorchTrainer takes ten seconds for each."""
    base = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=1)
    configs = [replace(base, augment="toy_always_killed"), base]
    book = Book(toy_job(tmp_path / "cell", places, workers), minimise=False)
    write_trial(book.job.cell, Trial(0, configs[0].to_dict(), lost=LOST_PROCESSES - 1))
    trials = search(book, Scripted(configs))
    assert [(trial.status, trial.cause, trial.lost) for trial in trials] == [(FAILED, MACHINE, LOST_PROCESSES + 1), (FINISHED, "", 0)]
    assert trials[0].reason.startswith("it lost a process 4 times: ")


class Killing:
    """Kills the controller of the TorchTrainer as soon as an epoch is heard of, once."""

    killed = 0

    def trial_started(self, cell: str, trial: Trial) -> None: ...

    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None:
        if not self.killed:
            self.killed = kill_controllers()
            hurry_marker().touch()

    def trial_ended(self, cell: str, trial: Trial) -> None: ...


@pytest.mark.slow
def test_a_trial_whose_controller_is_killed_is_tried_again(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    config, listener = toy_config(toy_npz(tmp_path / "toy.npz"), augment="toy_slow", epochs=20), Killing()
    book = Book(toy_job(tmp_path / "cell", places, workers=1), minimise=False, listener=listener)
    try:
        (trial,) = search(book, Scripted([config]))
    finally:
        hurry_marker().unlink(missing_ok=True)
    assert listener.killed
    assert (trial.status, trial.lost, [row["epoch"] for row in trial.history]) == (FINISHED, 1, list(range(1, 21)))
    wait_until(all_cpus_free, 90)


@pytest.mark.slow
def test_a_trial_whose_controller_is_killed_before_its_workers_are_up_is_tried_again(
    toy_npz, tmp_path: Path, places: Places, ray_session: Session
):
    """Ray keeps what that controller had reserved, here all that there is."""
    config = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=2)
    book = Book(toy_job(tmp_path / "cell", places, workers=2), minimise=False)

    def strike() -> int:
        wait_until(lambda: any("RayTrainWorker" in each.name for each in family(os.getpid())))
        return kill_controllers()

    with ThreadPoolExecutor(1) as aside:
        killed = aside.submit(strike)
        (trial,) = search(book, Scripted([config]))
    assert killed.result() == 1
    assert (trial.status, trial.lost, len(trial.history)) == (FINISHED, 1, 2)
    wait_until(all_cpus_free, 90)

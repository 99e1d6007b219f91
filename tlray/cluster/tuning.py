"""Many trials on Ray Tune: a search (Optuna TPE and ASHA) or a full grid. The trials' files are the truth, Tune only runs them.

Nothing of Tune's own state is read after a resume: the study, the rungs and the queue are rebuilt from the trials' files.
"""

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from tlray.cluster import interrupts
from tlray.cluster.book import Book
from tlray.cluster.faults import LOST_PROCESSES
from tlray.cluster.ray_private import TUNE_LOGGER, starting_processes_come_up
from tlray.cluster.sampler import Proposer
from tlray.cluster.supervision import BRIEF, Enough, Losses, heeding
from tlray.cluster.trial import REFUSED, distributed, in_process
from tlray.config import Config
from tlray.errors import RunError, StorageError
from tlray.results import Trial
from tlray.storage import RemotePath, handed_over, remove_tree

GRACE_EPOCHS, REDUCTION = 2, 2
OWN = "tune-"
"""How the folder of Tune's own files begins."""


class Queue(Searcher):
    """Hands trials to Tune: first those that an earlier driver left unfinished, then new ones up to `total`."""

    def __init__(self, book: Book, total: int, propose: Callable[[int, list[Trial]], tuple[Config, str]], skip: set[int]):
        super().__init__(metric="best", mode="max")
        self.book, self.propose = book, propose
        self.waiting = [number for number in range(total) if not (number in book.trials and book.trials[number].ended)]
        self.waiting = sorted(set(self.waiting) - skip, key=lambda number: (number not in book.trials, number))
        self.numbers: dict[str, int] = {}
        self.given_up = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The number of the next trial; its configuration stands in its file."""
        if not self.waiting or self.book.refused:
            return Searcher.FINISHED
        number = self.waiting.pop(0)
        if number not in self.book.trials:
            known = [self.book.trials[each] for each in sorted(self.book.trials)]
            with self.book.writing():
                self.book.begin(number, *self.propose(number, known))
        if self.book.refused:
            return Searcher.FINISHED
        self.numbers[trial_id] = number
        if self.book.listener:
            self.book.listener.trial_started(self.book.job.cell.name, self.book.trials[number])
        self.book.show()
        return {"number": number}

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        if REFUSED in result:
            self.book.refused = self.book.refused or RunError(result[REFUSED])
        if self.book.listener and "epoch" in result:
            self.book.listener.epoch_ended(self.book.job.cell.name, self.numbers[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        if isinstance(self.book.refused, StorageError):
            return  # it stays as its files have it, and is taken up again
        number = self.numbers[trial_id]
        with self.book.writing():
            self.book.end(number)
        if error and not self.book.refused and not self.book.trials[number].ended:
            self.waiting.insert(0, number)  # Tune gives up where a process dies between two trials; `lost` says when it is enough
            self.given_up = True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' files say it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the trials' files say it all."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Known:
    """As much of a Tune trial as ASHA looks at, with an id that stays the same over resumes."""

    def __init__(self, number: int):
        self.trial_id = f"number-{number}"


class FairASHA(ASHAScheduler):
    """ASHA (Li et al. 2020, arXiv:1810.05934) whose rungs survive a resume, and that does not stop a trial before its time.

    The first configurations record in the rungs but run to their end; any other trial can be stopped only once an epoch of its last
    phase is over, else schedules that unfreeze late would be judged by what they are not meant to be good at.
    """

    def __init__(self, book: Book, immune: int, epochs: int):
        grace = min(GRACE_EPOCHS, epochs)
        mode = "min" if book.minimise else "max"
        super().__init__(time_attr="epoch", metric="best", mode=mode, max_t=epochs, grace_period=grace, reduction_factor=REDUCTION)
        self.book, self.immune = book, immune
        self.known: dict[int, _Known] = {}

    def judge(self, number: int, result: dict[str, Any]) -> str:
        """Record a result in the rungs and decide whether its trial goes on."""
        if number not in self.known:
            self.known[number] = _Known(number)
            super().on_trial_add(None, self.known[number])  # type: ignore[arg-type]
        decision = super().on_trial_result(None, self.known[number], result)  # type: ignore[arg-type]
        ends = result["last"] or result["epoch"] >= self._max_t  # by itself, and says so as finished
        return decision if number >= self.immune and result["in_last_phase"] and not ends else TrialScheduler.CONTINUE

    def replay(self) -> set[int]:
        """Record what the trials of an earlier driver reported, in the order of time; numbers that it had still to stop, noted as such.

        Clocks of several nodes differ, and may be set back: a trial's epochs keep their order all the same.
        """
        rows = []
        for number, trial in self.book.trials.items():
            times = itertools.accumulate((row["time"] for row in trial.history), max)
            rows += [(moment, number, row) for moment, row in zip(times, trial.history, strict=True)]
        behind = set()
        for _, number, row in sorted(rows, key=lambda each: each[:2]):
            if number in behind:
                continue
            trial = self.book.trials[number]
            last = trial.ended and row["epoch"] == len(trial.history)
            result = {**row, "last": last, "in_last_phase": row["phase"] == row["phases"] - 1}
            if self.judge(number, result) == TrialScheduler.STOP and not trial.ended:
                behind.add(number)
                self.book.stopped[number] = row["epoch"]
        return behind

    def on_trial_add(self, tune_controller, trial) -> None:
        """Nothing: a trial enters the rungs with its first result."""

    def on_trial_result(self, tune_controller, trial, result: dict) -> str:
        if "epoch" not in result:
            return TrialScheduler.CONTINUE
        decision = self.judge(trial.config["number"], result)
        if decision == TrialScheduler.STOP:
            self.book.stopped[trial.config["number"]] = result["epoch"]
        return decision

    def on_trial_complete(self, tune_controller, trial, result: dict) -> None:
        """Nothing: the last result has been recorded when it came."""

    def on_trial_remove(self, tune_controller, trial) -> None:
        """Nothing: what was recorded stays."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _run(queue: Queue, scheduler: TrialScheduler, seconds: float | None) -> None:
    """Let Tune run what the queue hands out. Its own files are of no further use, and no other node looks at them.

    Raises KeyboardInterrupt after Ctrl-C or SIGTERM, once Tune has let go of its trials, and RunError where a user has something to mend,
    Ray is gone, or the storage cannot be used.
    """
    job = queue.book.job
    inside = job.resources.workers == 0
    asked = {"CPU": job.resources.cpus} | ({"GPU": job.resources.gpus} if job.resources.gpus else {})
    failures = tune.FailureConfig(max_failures=LOST_PROCESSES + 1)  # `lost` ends a trial before Tune does
    driver = {"node:__internal_head__": 0.001}  # no CPU, and on the node that does not go away
    trainable = heeding(tune.with_resources(in_process(job), asked)) if inside else tune.with_resources(distributed(job), driver)
    beside = None if isinstance(job.cell, RemotePath) else job.cell / "ray"
    if beside:
        beside.mkdir(parents=True, exist_ok=True)
        for left in beside.glob(f"{OWN}*"):  # of a driver that was killed; whoever holds the run's lock is the only one
            remove_tree(left)
    enough = Enough(lambda: queue.book.refused or handed_over(job.cell), seconds)
    own = tempfile.TemporaryDirectory(prefix=OWN, dir=beside, ignore_cleanup_errors=True)
    TUNE_LOGGER.addFilter(BRIEF)
    with interrupts.handled(), interrupts.patient(), starting_processes_come_up(), own as folder:
        tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                num_samples=len(queue.waiting) * (LOST_PROCESSES + 2), search_alg=queue, scheduler=scheduler,
                max_concurrent_trials=job.resources.concurrent, reuse_actors=inside,
            ),
            run_config=tune.RunConfig(
                name=job.run, storage_path=folder, verbose=0, failure_config=failures,
                stop=enough, callbacks=[Losses(job, queue.book.writing)],
            ),
        ).fit()  # fmt: skip
    if error := queue.book.refused or enough.lost:
        raise error
    if why := handed_over(job.cell):
        raise StorageError(why)


def search(book: Book, sampler: Proposer, seconds: float | None = None) -> list[Trial]:
    """Search one cell until `sampler.trials` trials have ended, or the time is over; its trials in the order of their numbers.

    Takes up what an earlier call on the same folder left. Raises KeyboardInterrupt when it was interrupted, RunError at once when a
    trial found something that the user has to mend, also a disk without room; the trials that ran then can be resumed.
    """
    book.open()
    scheduler = FairASHA(book, len(sampler.first), sampler.base.epochs)
    for number in sorted(scheduler.replay()):
        book.end(number)
    queue = Queue(book, sampler.trials, lambda number, known: (sampler.propose(number, known), ""), set())
    return _finish(book, queue, scheduler, seconds)


def grid(book: Book, arms: Sequence[tuple[str, Config]], seconds: float | None = None) -> list[Trial]:
    """Train every (name, Config) of a comparison, each to its end; takes up what an earlier call left."""
    book.open()
    queue = Queue(book, len(arms), lambda number, known: (arms[number][1], arms[number][0]), set())
    return _finish(book, queue, FIFOScheduler(), seconds)


def _finish(book: Book, queue: Queue, scheduler: TrialScheduler, seconds: float | None) -> list[Trial]:
    started = time.monotonic()
    left = seconds
    while queue.waiting and (left is None or left > 0):
        queue.given_up = False
        _run(queue, scheduler, left)
        left = None if seconds is None else seconds - (time.monotonic() - started)
        if not queue.given_up:  # after Tune had asked for the last time
            break
    if left is not None and left <= 0:
        for number in [number for number, trial in book.trials.items() if not trial.ended]:
            book.stopped[number] = sys.maxsize
            book.end(number, reason="the time budget was over")
    book.sweep()
    return [book.trials[number] for number in sorted(book.trials)]

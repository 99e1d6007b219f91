"""The trials of one cell as the driver knows them. What it notes is on disk before it counts."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from tlray.cluster.monitoring import cell_gauges
from tlray.cluster.trial import Job
from tlray.config import Config
from tlray.errors import RunError, UserError, refusal, unwritable
from tlray.results import (
    RUNNING,
    STOPPED,
    USER,
    Trial,
    end_trial,
    read_trial,
    read_trials,
    trial_folder,
    winner,
    write_trial,
)  # fmt: skip
from tlray.training.checkpoint import found, newest_history, thin


class Listener(Protocol):
    """Hears how a cell goes on."""

    def trial_started(self, cell: str, trial: Trial) -> None: ...
    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None: ...
    def trial_ended(self, cell: str, trial: Trial) -> None: ...


@dataclass
class Book:
    """The trials of one cell as the driver knows them; every change is on disk before it counts.

    keep_best: keep the best epoch's checkpoint of every trial (each is evaluated later), not of the best trial alone. stopped: the epoch
    with which a trial that was stopped ends; the workers of a TorchTrainer do not wait for the verdict and may be further by then.
    done: trials whose checkpoints have been looked through for the last time. refused: what a user has to mend before any trial can go on,
    or why the storage cannot be used; the search ends with it.
    """

    job: Job
    minimise: bool
    listener: Listener | None = None
    keep_best: bool = False
    trials: dict[int, Trial] = field(default_factory=dict)
    stopped: dict[int, int] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    refused: UserError | None = None

    def open(self) -> None:
        """Read what an earlier driver left, with the histories of trials that had not ended.

        A trial that a user's mistake ended is one of them: the mistake may be mended by now.
        """
        for trial in read_trials(self.job.cell):
            if trial.cause == USER:
                trial = replace(trial, status=RUNNING, reason="", cause="", history=[])
                write_trial(self.job.cell, trial)
            history = [] if trial.ended else newest_history(trial_folder(self.job.cell, trial.number) / "checkpoints")
            self.trials[trial.number] = replace(trial, history=history) if history else trial

    def refuse(self, error: UserError) -> None:
        """Let the search end with this error, unless it ends with another one."""
        self.refused = self.refused or error

    def begin(self, number: int, config: Config, arm: str = "") -> None:
        """Note that a trial was suggested."""
        trial = Trial(number, config.to_dict(), arm=arm)
        write_trial(self.job.cell, trial)
        self.trials[number] = trial

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep what a user has to mend, for the search to end with: Tune would take it for an error of its own."""
        try:
            yield
        except UserError as error:
            self.refuse(error)
        except OSError as error:
            if not unwritable(error):
                raise
            self.refuse(RunError(refusal(error, self.job.cell)))

    def end(self, number: int, reason: str = "behind the others at its rung") -> None:
        """Note what became of a trial that Tune has let go of; one that was cut off, or that Tune has given up, stays running."""
        trial = read_trial(self.job.cell, number)
        last = self.stopped.get(number)
        if last is not None and (not trial.ended or len(trial.history) > last):
            trial = self._stop(number, last, reason)
        self.trials[number] = trial
        if trial.cause == USER:
            self.refused = RunError(trial.reason)
        self.sweep(keep=number)
        self.show()
        if self.listener and trial.ended:
            self.listener.trial_ended(self.job.cell.name, trial)

    def _stop(self, number: int, last: int, reason: str) -> Trial:
        """End a trial with the epochs that it has, at most `last`.

        Its process may still be at work: once the end is written it drops no checkpoint, so that of the best epoch then stays.
        """
        checkpoints = trial_folder(self.job.cell, number) / "checkpoints"
        history = newest_history(checkpoints)[:last]
        while True:
            trial = end_trial(self.job.cell, number, STOPPED, history, reason)
            if len(history) == last or len(later := newest_history(checkpoints)[:last]) == len(history):
                return trial
            history = later

    def sweep(self, keep: int | None = None) -> None:
        """Delete the checkpoints of ended trials but the winner's; `keep` may still be written by a process that is being stopped."""
        if self.keep_best:
            self._thin()
            return
        best = winner([trial for trial in self.trials.values() if trial.ended], self.minimise)
        for number in self._ended_anew() - {keep, best and best[0].number}:
            for _, path in found(trial_folder(self.job.cell, number) / "checkpoints"):
                path.unlink(missing_ok=True)
            self.done.add(number)

    def _ended_anew(self) -> set[int]:
        """Trials that have ended and whose checkpoints have not been looked through: few, however many have ended."""
        return {number for number, trial in self.trials.items() if trial.ended} - self.done

    def _thin(self) -> None:
        for number in self._ended_anew():
            row, folder = self.trials[number].best_row(self.minimise), trial_folder(self.job.cell, number) / "checkpoints"
            if row and any(epoch == row["epoch"] for epoch, _ in found(folder)):
                thin(folder, row["epoch"])
                self.done.add(number)

    def show(self) -> None:
        """Set the gauges."""
        values = [row["monitor"] for trial in self.trials.values() for row in trial.history]
        best = None if not values else min(values) if self.minimise else max(values)
        ended = sum(trial.ended for trial in self.trials.values())
        cell_gauges(self.job.run, self.job.cell.name, ended, len(self.trials) - ended, best)

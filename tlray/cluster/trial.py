"""One trial, two ways: `fit` inside the trial's own process, or a TorchTrainer round it. Both leave the same files."""

import contextlib
import ctypes
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tlray.cache import Places
from tlray.cluster.faults import fail
from tlray.cluster.interrupts import leaving_when_told
from tlray.cluster.monitoring import TrialGauges
from tlray.cluster.resources import Resources
from tlray.config import Config
from tlray.errors import NonFiniteLoss, refusal, unwritable
from tlray.results import CONFIGURATION, FINISHED, NONFINITE, end_trial, read_trial, trial_folder
from tlray.storage import AnyPath
from tlray.training.checkpoint import newest_checkpoint, save_checkpoint
from tlray.training.fit import chance_level, fit

log = logging.getLogger(__name__)
REFUSED = "refused"
"""Key of a report by which a trial tells the driver, in a sentence, that it could not write."""


@dataclass(frozen=True)
class Job:
    """What every trial of one cell shares.

    run: the run's name. cell: its folder, on storage that all nodes see. label: "<run>-<task>-<backbone>", under which it shows.
    """

    run: str
    cell: AnyPath
    label: str
    places: Places
    resources: Resources


def train(job: Job, number: int, config: Config, report: Callable[[dict[str, Any]], None], lead: bool = True) -> None:
    """Train one trial from where its newest checkpoint stands, write what becomes of it, and report every epoch.

    Every rank calls it, the one with `lead` writes. A non-finite loss ends the trial with its reason; other errors are raised.
    """
    _limit_gpu_memory(job.resources.gpus)
    gauges = TrialGauges(job, number) if lead else None
    checkpoints = trial_folder(job.cell, number) / "checkpoints"
    resume = newest_checkpoint(checkpoints)
    history: list[dict[str, Any]] = resume.meta["history"] if resume else []

    def ended() -> bool:
        return read_trial(job.cell, number).ended  # workers may outlive the driver's verdict on their trial

    def end(status: str, reason: str = "", chance: float | None = None) -> None:
        if lead and not ended():
            end_trial(job.cell, number, status, history, reason, chance, cause=CONFIGURATION if status == NONFINITE else "")

    try:
        if resume:
            report(_result(history[-1], last=False))  # it may have been lost between its checkpoint and its report
        with leaving_when_told() as leave_if_told:
            for epoch in fit(config, job.places, resume=resume):
                history = epoch.history
                if lead:
                    save_checkpoint(checkpoints, epoch.state(), ended)
                if gauges:
                    gauges.epoch(epoch)
                if epoch.last:
                    end(FINISHED)
                report(_result(epoch.history[-1], epoch.last))  # of a TorchTrainer: returns once all workers are here
                leave_if_told()
        if resume and history is resume.meta["history"]:
            end(FINISHED)  # killed between its last checkpoint and the note that it had finished
    except NonFiniteLoss as error:
        end(NONFINITE, str(error), chance_level(config, job.places))


def _result(row: dict[str, Any], last: bool) -> dict[str, Any]:
    """What the tuner is told: `best` is the running best of the monitor, so a stopped trial is judged by its best epoch."""
    return {"epoch": row["epoch"], "best": row["best"], "last": last, "in_last_phase": row["phase"] == row["phases"] - 1}


def in_process(job: Job) -> Callable[[dict[str, Any]], None]:
    """A Tune function that trains in its own process; one process serves many trials."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune

        number = config["number"]
        known = read_trial(job.cell, number)
        if known.ended:
            return  # Tune starts it again after any loss of its process, also after the last one that it may have
        try:
            with telling_refusal(tune.report), failing(job, number):
                train(job, number, Config(**known.config), tune.report)
        finally:
            _give_back_memory()

    trial.__name__ = trial.__qualname__ = job.label
    return trial


@contextlib.contextmanager
def failing(job: Job, number: int) -> Iterator[None]:
    """End a trial as failed by what is raised, unless another try may mend it."""
    try:
        yield
    except Exception as error:
        fail(job, number, error)


@contextlib.contextmanager
def telling_refusal(report: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell the driver when not even a trial's end can be written: then the trial stays as it is, to be resumed when there is room."""
    try:
        yield
    except OSError as error:
        if not unwritable(error):
            raise
        report({REFUSED: refusal(error), "best": math.nan})  # Tune insists on the metric


def _give_back_memory() -> None:
    """Give the system back what a trial has freed.

    Tune runs each trial of a reused process in a thread of its own, for which glibc keeps a heap of its own: without this a
    process that trains ResNet-50 grows from .6 to 3 GB within a dozen trials, nearly all of it free.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _limit_gpu_memory(share: float) -> None:
    """Ray hands out a share of a GPU but does not limit its memory; torch does."""
    import torch

    if 0 < share < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


def worker(settings: dict[str, Any]) -> None:
    """What each TorchTrainer worker of a trial runs."""
    from ray import train as ray_train

    job, number = settings["job"], settings["number"]
    lead = ray_train.get_context().get_world_rank() == 0
    trial = read_trial(job.cell, number)
    if trial.ended:
        return  # Ray starts the workers again after any error; only a lost process is worth it
    try:
        train(job, number, Config(**trial.config), ray_train.report, lead)
    except Exception as error:
        fail(job, number, error)
        raise


def distributed(job: Job) -> Callable[[dict[str, Any]], None]:
    """A Tune function that drives a TorchTrainer; it does no work itself and needs no CPU."""

    def trial(config: dict[str, Any]) -> None:
        from ray import tune
        from ray.tune.integration.ray_train import TuneReportCallback

        from tlray.cluster.distributed import WorkerLosses, torch_trainer

        number = config["number"]
        if read_trial(job.cell, number).ended:
            return
        with telling_refusal(tune.report), failing(job, number):
            name, settings = f"{job.label}-{number:04d}", {"job": job, "number": number}
            callbacks = [TuneReportCallback(), WorkerLosses(job, number)]
            torch_trainer(worker, settings, name, job.cell / "ray", job.resources, callbacks).fit()

    trial.__name__ = trial.__qualname__ = job.label
    return trial

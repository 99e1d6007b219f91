"""Whose fault it is that a trial went wrong, and what follows.

The user's stops the search with one sentence. The configuration's (not finite, out of memory) and a bug end this trial with its reason
in the table, and the search goes on. The machine's (a process or a node is gone) is counted and tried again from the last checkpoint.
"""

import errno
import re
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from tlray.cache import write_bytes
from tlray.errors import ConfigError, NonFiniteLoss, StorageError, UserError, refusal, unwritable
from tlray.results import BUG, CONFIGURATION, FAILED, MACHINE, USER, end_trial, read_trial, trial_folder, write_trial
from tlray.training.checkpoint import newest_history

if TYPE_CHECKING:
    from tlray.cluster.trial import Job

LOST_PROCESSES = 3
"""How often a training is tried again after it lost a process."""
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED|std::bad_alloc", re.IGNORECASE)
"""How torch, CUDA's libraries and the allocators say it."""
NODE_MEMORY = re.compile(r"running low on memory|OutOfMemoryError")
"""How Ray says that it ended a process because its node's memory ran out."""


def cause_of(error: BaseException) -> str:
    """USER, CONFIGURATION, MACHINE or BUG, of an error that a trial's own process raised."""
    if isinstance(error, ConfigError | NonFiniteLoss) or out_of_memory(error):
        return CONFIGURATION
    if isinstance(error, UserError) or unwritable(error):
        return USER
    return MACHINE if lost_peer(error) else BUG


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, a GPU's or the machine's, where this process asked for it."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and bool(MEMORY.search(str(error)))


def lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process of a training is gone."""
    import torch.distributed as dist
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    said = re.search(r"gloo|nccl|connection (closed|reset)|broken pipe|timed out", str(error), re.IGNORECASE)
    return isinstance(error, dist.DistError | RayError | TrainingFailedError) or bool(said)


def reason_of(error: BaseException) -> str:
    """One line for the table."""
    lines = str(error).strip().splitlines() or ["no message"]
    if isinstance(error, UserError | NonFiniteLoss):
        return " ".join(str(error).split())
    if out_of_memory(error):
        return f"out of memory, take a smaller batch or fewer trials at once: {lines[0]}"[:300]
    if isinstance(error, OSError) and unwritable(error):
        return refusal(error)
    return f"{type(error).__name__}: {lines[0]}"[:300]


def fail(job: "Job", number: int, error: BaseException) -> None:
    """End a trial as failed, with whose fault it was and one line of reason in the table; of a bug the traceback lies beside it.

    A StorageError is raised again, as there is nowhere to write it, and what the machine is to blame for: Ray starts the training again
    from its newest checkpoint, and whoever sees that counts it.
    """
    if isinstance(error, StorageError):
        raise error
    folder, cause = trial_folder(job.cell, number), cause_of(error)
    if read_trial(job.cell, number).ended:
        return
    if cause == MACHINE:
        raise error
    if not isinstance(error, UserError):
        write_bytes(folder / "error.txt", "".join(traceback.format_exception(error)).encode())
    end_trial(job.cell, number, FAILED, newest_history(folder / "checkpoints"), reason_of(error), cause=cause)


def lost(job: "Job", number: int, said: str) -> None:
    """Count that a running trial lost a process. It ends as failed once that was too often, or where its node's memory ran out.

    said: what Ray said about it. Called by who sees the loss: the driver, or a TorchTrainer's controller.
    """
    trial = read_trial(job.cell, number)
    if trial.ended:
        return
    trial = replace(trial, lost=trial.lost + 1)
    write_trial(job.cell, trial)
    too_large = bool(NODE_MEMORY.search(said))
    if not too_large and trial.lost <= LOST_PROCESSES:
        return
    reason = (
        "out of memory, take a smaller batch or fewer trials at once: its node ran low on memory and Ray ended its process"
        if too_large
        else f"it lost a process {trial.lost} times: {' '.join(said.split())[:200]}"
    )
    history = newest_history(trial_folder(job.cell, number) / "checkpoints")
    end_trial(job.cell, number, FAILED, history, reason, cause=CONFIGURATION if too_large else MACHINE)

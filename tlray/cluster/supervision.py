"""What Tune is told while it runs trials: whom to tell of lost processes, when to end, and how a trial's process takes SIGTERM."""

import logging
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.stopper import Stopper
from ray.tune.trainable import wrap_function

from tlray.cluster import interrupts
from tlray.cluster.faults import lost
from tlray.cluster.ray_private import free_orphans
from tlray.cluster.trial import Job
from tlray.errors import RunError


class Losses(tune.Callback):
    """Hears from Tune that a trial's process is gone, whether Tune tries it again or has given it up.

    writing: a block that keeps what a user has to mend, with which the search must end (`Book.writing`).
    """

    def __init__(self, job: Job, writing: Callable[[], AbstractContextManager[None]]):
        self.job, self.writing, self.actor = job, writing, ""

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune tries the trial again."""
        self._count(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune has given the trial up."""
        self._count(trial)

    def _count(self, trial: Any) -> None:
        """Count the loss with what Ray said last about it; of one process Tune may say so twice."""
        file = Path(trial.error_file or "")
        said = file.read_text(errors="replace").rpartition("Failure # ")[2] if file.is_file() else "no word from Ray"
        actor = re.search(r"actor_id: (\w+)", said)
        if actor is None or actor[1] != self.actor:
            self.actor = actor[1] if actor else ""
            with self.writing():
                lost(self.job, trial.config["number"], said)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Brief(logging.Filter):
    """Lets Tune say in one line what it says with a traceback: the process of a trial is lost, or could not reach the storage.

    What is a bug of a training never comes there: the trial itself writes it down.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten a record that carries an error; let all pass."""
        if record.exc_info and (error := record.exc_info[1]):
            first = str(getattr(error, "cause", None) or error).strip().partition("\n")[0]
            record.msg, record.args, record.exc_info = f"{record.getMessage()}: {first}", (), None
        return True


BRIEF = Brief()
NODE_CHECK_SECONDS = 5.0


class Enough(Stopper):
    """Ends the whole search where going on is of no use.

    refused: whether a user has something to mend first. seconds: the time budget, by a clock that nobody sets; Tune's own budget goes by
    the wall's. lost: why Ray cannot go on, once it cannot: Tune would wait for ever.
    """

    def __init__(self, refused: Callable[[], object], seconds: float | None = None):
        self.refused, self.deadline = refused, None if seconds is None else time.monotonic() + seconds
        self.lost: RunError | None = None
        self._node, self._checked = ray.get_runtime_context().get_node_id(), time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial alone shall end: not for the stopper to say."""
        return False

    def stop_all(self) -> bool:
        """Whether the time is over, a user has something to mend or has asked to stop, or the driver's own node is gone.

        Also gives back what lost processes had reserved: trials would wait for it.
        """
        if time.monotonic() - self._checked > NODE_CHECK_SECONDS:
            self._checked = time.monotonic()
            free_orphans()
            if not any(node["NodeID"] == self._node and node["Alive"] for node in ray.nodes()):
                self.lost = RunError(
                    "Ray has lost the node that this command runs on: the same command with --resume goes on in another Ray"
                )
        over = self.deadline is not None and time.monotonic() >= self.deadline
        return over or bool(self.refused() or self.lost) or interrupts.asked.is_set()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def heeding(function: Callable[[dict[str, Any]], None]) -> type:
    """The Tune trainable of a function that trains; SIGTERM to its process, as a machine sends that goes away, waits for a checkpoint."""

    class Heeding(wrap_function(function)):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            interrupts.heed_notice()
            super().setup(config)

    Heeding.__name__ = Heeding.__qualname__ = function.__name__
    return Heeding

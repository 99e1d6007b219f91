"""The main job in processes that all soon give up a store that does not answer: the driver, and trials that unpickle its Job."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tlray import storage
from tlray.cluster.trial import Job

storage.PATIENCE = 2.0


@dataclass(frozen=True)
class ImpatientJob(Job):
    """A Job whose unpickling imports this module."""


def tune(argv: Sequence[str]) -> int:
    """`tlray tune`; an exit status."""
    from tlray import cli, job

    sys.modules[job.search.__module__].Job = ImpatientJob  # type: ignore[attr-defined]
    return cli.tune(argv)

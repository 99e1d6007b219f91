"""What a run leaves behind: one folder per trial, and one tidy table with a row per (trial, epoch). Read and written here, without Ray.

`RUN/<cell>/trials/0003/trial.json` says what trial 3 was and what became of it; its `checkpoints/` hold the history while it runs.
"""

import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tlray.cache import DAMAGED, ordinary, read_sealed, write_bytes, write_sealed
from tlray.errors import RunError, raise_unless_of_the_file
from tlray.storage import AnyPath, for_each

if TYPE_CHECKING:
    import pandas as pd  # at run time only where a table is read or written: every trial's process imports this module

RUNNING, FINISHED, STOPPED, NONFINITE, FAILED = "running", "finished", "stopped", "nonfinite", "failed"
"""The statuses of a trial. A running one is resumed; the others have ended."""
USER, CONFIGURATION, MACHINE, BUG = "user", "configuration", "machine", "bug"
"""Whose fault it was that a trial failed."""


@dataclass(frozen=True)
class Trial:
    """One training of a run.

    number: order of suggestion, from 0. config: every field of its Config. history: one dict per epoch (see `tlray.training.fit`).
    arm: name of the compared configuration, in a comparison. reason: why it failed or was stopped. chance: what a sampler is told
    about a trial that ended non-finite without a finite epoch. cause: whose fault it was that it failed. lost: how often it lost a
    process or a node and was tried again.
    """

    number: int
    config: dict[str, Any]
    status: str = RUNNING
    reason: str = ""
    arm: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    chance: float | None = None
    cause: str = ""
    lost: int = 0

    @property
    def ended(self) -> bool:
        return self.status != RUNNING

    def best_row(self, minimise: bool) -> dict[str, Any] | None:
        """The best epoch: best monitor, ties by lower validation loss, then earlier epoch. None without an epoch."""
        return min(self.history, key=lambda row: rank_key(row, minimise), default=None)


def rank_key(row: dict[str, Any], minimise: bool) -> tuple[float, float, int]:
    """Sorts epochs best first: monitor in its direction, then lower validation loss, then earlier epoch."""
    return (row["monitor"] if minimise else -row["monitor"], row["val_loss"], row["epoch"])


def winner(trials: list[Trial], minimise: bool) -> tuple[Trial, dict[str, Any]] | None:
    """The best epoch over all trials by the same rule, ties at last by the lower trial number; None when no trial has an epoch."""
    rows = [(rank_key(row, minimise), trial.number, trial, row) for trial in trials if (row := trial.best_row(minimise))]
    if not rows:
        return None
    _, _, trial, row = min(rows, key=lambda each: each[:2])
    return trial, row


def trial_folder(cell: AnyPath, number: int) -> AnyPath:
    """Where trial `number` of a cell lives."""
    return cell / "trials" / f"{number:04d}"


def write_trial(cell: AnyPath, trial: Trial) -> None:
    """Write what a trial is and what became of it, atomically and synced to disk, with a digest."""
    folder = trial_folder(cell, trial.number)
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / "trial.json", vars(trial))


def read_trial(cell: AnyPath, number: int) -> Trial:
    """Read one trial. Raises RunError when its file is missing or damaged, OSError when the system does not give it."""
    path = trial_folder(cell, number) / "trial.json"
    trial = _read_trial(path)
    if trial is None:
        raise _unreadable(path, "there is no such file")
    return trial


def _read_trial(path: AnyPath) -> Trial | None:
    try:
        return Trial(**read_sealed(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise_unless_of_the_file(error, path)
        raise _unreadable(path, error) from None


def _unreadable(path: AnyPath, why: object) -> RunError:
    return RunError(f"{path} cannot be read ({why}): remove {path.parent} to have that trial run anew")


def read_trials(cell: AnyPath) -> list[Trial]:
    """Every trial of a cell that was suggested, in the order of their numbers. Raises as `read_trial` does."""
    folder = cell / "trials"
    numbers = sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal()) if folder.is_dir() else []
    found = for_each([trial_folder(cell, number) / "trial.json" for number in numbers], _read_trial)
    return [trial for trial in found if trial is not None]


def end_trial(
    cell: AnyPath, number: int, status: str, history: list[dict[str, Any]], reason: str = "", chance: float | None = None, cause: str = ""
) -> Trial:  # fmt: skip
    """Write down that a trial ended, and how."""
    trial = replace(read_trial(cell, number), status=status, history=history, reason=reason, chance=chance, cause=cause)
    write_trial(cell, trial)
    return trial


def rows_of(cell_name: str, task: str, trials: list[Trial]) -> list[dict[str, Any]]:
    """One row per (trial, epoch), and one with empty metrics for a trial that ended before its first epoch."""
    rows = []
    for trial in trials:
        config = {
            f"config/{key}": value if value is None else str(value) if key == "samples" else value for key, value in trial.config.items()
        }
        about = {"cell": cell_name, "task": task, "backbone": trial.config["backbone"], "arm": trial.arm, "trial": trial.number,
                 "status": trial.status, "reason": trial.reason, "cause": trial.cause, "lost": trial.lost}  # fmt: skip
        rows += [{**about, **row, **config} for row in trial.history or [{"epoch": 0}]]
    return rows


def write_results(path: AnyPath, rows: list[dict[str, Any]]) -> None:
    """Write the tidy table as Parquet, atomically."""
    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer, engine="pyarrow", write_page_checksum=True)
    write_bytes(path, buffer.getvalue())


def read_results(run: AnyPath) -> "pd.DataFrame":
    """The tidy table of a run directory. Raises RunError when it is missing or damaged."""
    import pandas as pd

    path = run / "results.parquet"
    try:
        ordinary(path)
        return pd.read_parquet(io.BytesIO(path.read_bytes()), engine="pyarrow", page_checksum_verification=True)
    except DAMAGED as error:
        raise_unless_of_the_file(error, path)
        raise RunError(f"{path} cannot be read ({error}): is {run} the directory of a run?") from None


def read_summary(run: AnyPath) -> dict[str, Any]:
    """summary.json of a run directory. Raises RunError when it is missing or damaged."""
    path = run / "summary.json"
    try:
        return read_sealed(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path} is not there: is {run} the directory of a finished run?") from None
    except (OSError, ValueError) as error:
        raise_unless_of_the_file(error, path)
        raise RunError(f"{path} cannot be read ({error}): remove it, the run's command with --resume makes it anew") from None

"""What a run leaves behind: one folder per trial, and one tidy table with a row per (trial, epoch). Read and written here, without Ray.

`RUN/<cell>/trials/0003/trial.json` says what trial 3 was and what became of it; its `checkpoints/` hold the history while it runs.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray.cache import DAMAGED, atomic_path, ordinary, read_sealed, write_sealed
from tlray.errors import RunError

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


def trial_folder(cell: Path, number: int) -> Path:
    """Where trial `number` of a cell lives."""
    return cell / "trials" / f"{number:04d}"


def write_trial(cell: Path, trial: Trial) -> None:
    """Write what a trial is and what became of it, atomically and synced to disk, with a digest."""
    folder = trial_folder(cell, trial.number)
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / "trial.json", vars(trial))


def read_trial(cell: Path, number: int) -> Trial:
    """Read one trial. Raises RunError when its file is missing or damaged."""
    path = trial_folder(cell, number) / "trial.json"
    try:
        return Trial(**read_sealed(path))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{path} cannot be read ({error}): remove {path.parent} to have that trial run anew") from None


def read_trials(cell: Path) -> list[Trial]:
    """Every trial of a cell that was suggested, in the order of their numbers."""
    numbers = sorted(int(path.parent.name) for path in cell.glob("trials/*/trial.json") if path.parent.name.isdecimal())
    return [read_trial(cell, number) for number in numbers]


def end_trial(
    cell: Path, number: int, status: str, history: list[dict[str, Any]], reason: str = "", chance: float | None = None, cause: str = ""
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


def write_results(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the tidy table as Parquet, atomically."""
    import pandas as pd

    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, engine="pyarrow", write_page_checksum=True)


def read_results(run: Path) -> "pd.DataFrame":
    """The tidy table of a run directory. Raises RunError when it is missing or damaged."""
    import pandas as pd

    path = run / "results.parquet"
    try:
        ordinary(path)
        return pd.read_parquet(path, engine="pyarrow", page_checksum_verification=True)
    except DAMAGED as error:
        raise RunError(f"{path} cannot be read ({error}): is {run} the directory of a run?") from None


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json of a run directory. Raises RunError when it is missing or damaged."""
    path = run / "summary.json"
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise RunError(f"{path} is not there: is {run} the directory of a finished run?") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): remove it, the run's command with --resume makes it anew") from None

"""TensorBoard event files of a run, on request: one folder per trial, from the run's table."""

import tempfile
from pathlib import Path
from typing import Any

from tlray.cache import copy_file
from tlray.errors import RunError
from tlray.results import read_results
from tlray.storage import AnyPath, place, remove_tree

ABOUT = ("cell", "task", "backbone", "arm", "trial", "status", "reason", "epoch", "time", "best")
"""Columns of the table that are no curve: what a row is about, and the running best."""


def write_tensorboard(run: str | AnyPath) -> AnyPath:
    """Write `tensorboard/<cell>/<trial>/` in a run directory, in the place of what an earlier call wrote; that folder.

    Curves of every number that a trial has per epoch, at the time it was measured, and the Config as hyperparameters with the best value
    of the monitor. Raises RunError when the run's table is missing or damaged, or the files cannot be written.
    """
    run = place(run)
    rows, folder = read_results(run), run / "tensorboard"
    curves = [name for name in rows.columns if name not in ABOUT and not name.startswith("config/")]
    try:
        with tempfile.TemporaryDirectory(prefix="tlray-") as scratch:
            for (cell, trial), history in rows.query("epoch > 0").sort_values("epoch").groupby(["cell", "trial"]):  # type: ignore[misc]
                _write_trial(Path(scratch, str(cell), f"{int(trial):04d}"), history.to_dict("records"), curves)
            remove_tree(folder)
            for file in sorted(Path(scratch).glob("*/*/*")):
                target = folder / file.parent.parent.name / file.parent.name
                target.mkdir(parents=True, exist_ok=True)
                copy_file(file, target / file.name)
    except OSError as error:
        raise RunError(f"{error.filename or folder} cannot be written ({error.strerror}): make room or get permission") from error
    return folder


def _write_trial(folder: Path, history: list[dict[Any, Any]], curves: list[str]) -> None:
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    with SummaryWriter(str(folder)) as writer:
        for row in history:
            for name in curves:
                if isinstance(row[name], int | float) and row[name] == row[name]:
                    writer.add_scalar(_tag(name), float(row[name]), row["epoch"], walltime=row["time"])
        config = {key.removeprefix("config/"): value for key, value in history[-1].items() if key.startswith("config/")}
        known = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in config.items()}
        for each in hparams(known, {"best": float(history[-1]["best"])}):
            assert writer.file_writer is not None
            writer.file_writer.add_summary(each)
        writer.add_scalar("best", float(history[-1]["best"]), history[-1]["epoch"], walltime=history[-1]["time"])


def _tag(column: str) -> str:
    """`val_auroc` -> `val/auroc`: TensorBoard shows what stands before the slash as a section."""
    split, _, metric = column.partition("_")
    return f"{split}/{metric}" if split in ("train", "val") and metric else f"trial/{column}"

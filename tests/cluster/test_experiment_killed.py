"""`kill -9` on the driver of an experiment, then the same command with --resume: the uninterrupted figures, nothing trained twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from tlray.results import read_summary, read_trials, trial_folder

ROOT = Path(__file__).resolve().parents[2]
TRAININGS = 17
"""Arms of the experiment, with one seed each."""


def command(file: Path, storage: Path, name: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "experiments" / "chest_to_pneumonia.py"), "--source", f"npz:{file}", "--target", f"npz:{file}",
        "--samples", "64", "--seeds", "1", "--set", "epochs=4", "--concurrent", "1", "--cpus-per-trial", "1", "--storage", str(storage),
        "--name", name, "--offline",
    ]  # fmt: skip


def ended(run: Path) -> dict[int, int]:
    """Number -> when its file was written, of every training that has ended."""
    cell = run / "comparison"
    return {
        trial.number: (trial_folder(cell, trial.number) / "trial.json").stat().st_mtime_ns for trial in read_trials(cell) if trial.ended
    }


def figures(run: Path) -> list[tuple[Any, ...]]:
    """What the summary says of every arm, without times."""
    arms = read_summary(run)["comparison"]["arms"]
    return [(arm["arm"], arm["validation"], arm["train"], arm["val"], arm["test"], arm["test_noise"], arm["statuses"]) for arm in arms]


@pytest.mark.slow
def test_a_killed_experiment_goes_on_where_it_was(toy_npz, tmp_path: Path):
    file = toy_npz(tmp_path / "toy.npz", train=256, val=64, test=64, seed=3)
    subprocess.run(command(file, tmp_path, "whole"), check=True, capture_output=True, timeout=300)
    killed = tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(command(file, tmp_path, "killed"), stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: len(ended(killed)) >= 5 or driver.poll() is not None, 150)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = ended(killed)
    assert 5 <= len(before) < TRAININGS
    subprocess.run([*command(file, tmp_path, "killed"), "--resume"], check=True, capture_output=True, timeout=300)
    after = ended(killed)
    assert len(after) == TRAININGS
    assert {number: after[number] for number in before} == before
    assert figures(killed) == figures(tmp_path / "whole")
    purposes = [json.loads(line)["purpose"].split(" ")[0] for line in (killed / "test_ledger.jsonl").read_text().splitlines()]
    assert purposes == ["comparison:", "reconstruction"]
    subprocess.run([*command(file, tmp_path, "killed"), "--resume"], check=True, capture_output=True, timeout=300)
    assert len((killed / "test_ledger.jsonl").read_text().splitlines()) == 2, "what was measured is not measured again"
    for left in ("report.html", "results.parquet", "pictures/latent.svg"):
        assert (killed / left).is_file()

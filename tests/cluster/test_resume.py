"""`kill -9` on the driver of the main job, then the same command with --resume: the uninterrupted run's results, nothing twice."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import without_clock
from waiting import wait_until

from tlray.results import Trial, read_results, read_summary, read_trials, trial_folder

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 6


def command(file: Path, storage: Path, name: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "experiments" / "tune_backbones.py"), "--tasks", f"npz:{file}", "--backbones", "small_cnn",
        "--weights", "none", "--trials", str(TRIALS), "--epochs", "4", "--concurrent", "1", "--cpus-per-trial", "1",
        "--storage", str(storage), "--name", name, "--offline",
    ]  # fmt: skip


def run(command: list[str]) -> str:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def cell_of(run: Path) -> Path:
    (found,) = run.glob("*-small_cnn")
    return found


def ended(run: Path) -> list[Trial]:
    cells = list(run.glob("*-small_cnn"))
    return [trial for trial in read_trials(cells[0]) if trial.ended] if cells else []


def without_hour(summary: dict[str, Any]) -> dict[str, Any]:
    """What a summary says of its one cell, without what clock and stopwatch gave it."""
    (cell,) = summary["cells"]
    return {key: cell[key] for key in ("winner", "validation", "test", "temperature", "threshold", "trials", "epochs")}


@pytest.mark.slow
def test_a_killed_driver_is_resumed_to_the_uninterrupted_runs_results(toy_npz, tmp_path: Path):
    file = toy_npz(tmp_path / "toy.npz", train=256, val=64, test=64, seed=3)
    run(command(file, tmp_path, "whole"))
    killed = tmp_path / "killed"
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(command(file, tmp_path, "killed"), stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: len(ended(killed)) >= 2 or driver.poll() is not None, 150)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (killed / "summary.json").exists()
    before = {trial.number: (trial_folder(cell_of(killed), trial.number) / "trial.json").stat().st_mtime_ns for trial in ended(killed)}
    assert 2 <= len(before) < TRIALS
    run([*command(file, tmp_path, "killed"), "--resume"])
    cells = [cell_of(tmp_path / name) for name in ("whole", "killed")]
    assert {number: (trial_folder(cells[1], number) / "trial.json").stat().st_mtime_ns for number in before} == before
    whole, resumed = (read_trials(cell) for cell in cells)
    assert [trial.config for trial in resumed] == [trial.config for trial in whole]
    assert [trial.status for trial in resumed] == [trial.status for trial in whole]
    assert [without_clock(trial.history) for trial in resumed] == [without_clock(trial.history) for trial in whole]
    summaries = [read_summary(tmp_path / name) for name in ("whole", "killed")]
    assert without_hour(summaries[1]) == without_hour(summaries[0])
    assert len(read_results(killed)) == len(read_results(tmp_path / "whole"))
    for left in ("report.html", "results.parquet", f"{cells[1].name}/model/model.safetensors"):
        assert (killed / left).is_file()
    assert "is finished already" in run([*command(file, tmp_path, "killed"), "--resume"])
    assert len((killed / "test_ledger.jsonl").read_text().splitlines()) == 1
    assert json.loads((killed / "run.json").read_text())["trials"] == TRIALS

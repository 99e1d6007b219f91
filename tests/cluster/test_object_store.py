"""Runs in an object store: the same as on disk, read by every command, through a short outage, taken up after a long one."""

import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from s3_server import Store
from waiting import wait_until

from tlray.cli import main, tune
from tlray.results import Trial, read_results, read_summary, read_trials
from tlray.storage import RemotePath, place

ROOT = Path(__file__).resolve().parents[2]
CLOCK = ["seconds", "time"]


@pytest.fixture(scope="module")
def file(tmp_path_factory, toy_npz) -> Path:
    return toy_npz(tmp_path_factory.mktemp("toy") / "toy.npz", train=128, seed=3)


def arguments(file: Path, storage: str, name: str, *more: str) -> list[str]:
    return [
        "--tasks", f"npz:{file}", "--backbones", "small_cnn", "--weights", "none", "--trials", "4", "--epochs", "2",
        "--concurrent", "1", "--cpus-per-trial", "1", "--offline", "--storage", storage, "--name", name, *more,
    ]  # fmt: skip


def remote(store: Store, key: str) -> RemotePath:
    found = place(store.uri(key))
    assert isinstance(found, RemotePath)
    return found


def table(run: Path | RemotePath) -> pd.DataFrame:
    """A run's table without what the wall clock gave it."""
    return read_results(run).drop(columns=CLOCK)


def judged(run: Path | RemotePath) -> list[dict[str, Any]]:
    """What a summary says that no clock decides."""
    return [{key: cell[key] for key in ("winner", "validation", "test", "temperature", "trials")} for cell in read_summary(run)["cells"]]


def undated(name: str) -> str:
    """A checkpoint's name without its digest, into which the clock goes."""
    return re.sub(r"-[0-9a-f]{16}\.safetensors$", "", name)


def trials_of(run: RemotePath) -> list[Trial]:
    cells = [each for each in run.iterdir() if each.name.endswith("small_cnn")]
    return read_trials(cells[0]) if cells else []


@pytest.fixture(scope="module")
def on_disk(file, ray_session, tmp_path_factory) -> Path:
    """The run that the others are compared with."""
    storage = tmp_path_factory.mktemp("disk")
    assert tune(arguments(file, str(storage), "run")) == 0
    return storage / "run"


@pytest.fixture(scope="module")
def in_store(file, ray_session, object_store: Store) -> RemotePath:
    assert tune(arguments(file, object_store.uri("whole"), "run")) == 0
    return remote(object_store, "whole/run")


@pytest.mark.slow
def test_a_run_in_a_store_is_the_run_on_disk(on_disk: Path, in_store: RemotePath):
    pd.testing.assert_frame_equal(table(in_store), table(on_disk))
    assert judged(in_store) == judged(on_disk)
    there = sorted(path.relative_to(on_disk).as_posix() for path in on_disk.rglob("*") if path.is_file() and path.name != ".lock")
    below = len(in_store.filesystem()[1]) + 1
    here = sorted(info.path[below:] for info in in_store.listed(recursive=True) if info.is_file)
    here.remove("loans.json")
    assert [undated(name) for name in here] == [undated(name) for name in there]


@pytest.mark.slow
def test_a_run_in_a_store_keeps_no_secret_and_nobody_waiting(in_store: RemotePath, object_store: Store):
    store, _ = in_store.parent.filesystem()
    assert [each.name for each in (in_store.parent / ".leases" / "run").iterdir()] == []
    for info in in_store.parent.listed(recursive=True):
        if info.is_file:
            with store.open_input_file(info.path) as opened:
                assert b"tests-secret" not in opened.read()


@pytest.mark.slow
def test_every_command_reads_it(in_store: RemotePath, on_disk: Path, file: Path, object_store: Store, tmp_path: Path, capsys):
    before = (in_store / "report.html").read_bytes()
    assert main(["report", str(in_store)]) == 0
    assert capsys.readouterr().out.strip() == str(in_store / "report.html")
    assert (in_store / "report.html").read_bytes() == before
    with np.load(file) as arrays:
        Image.fromarray(arrays["test_images"][0]).save(tmp_path / "one.png")
    cell = next(each for each in in_store.iterdir() if each.name.endswith("small_cnn"))
    answers = []
    for model in (str(cell / "model"), str(on_disk / cell.name / "model")):
        assert main(["predict", model, str(tmp_path / "one.png"), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
        assert main(["evaluate", model, "--task", f"npz:{file}", "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[:2] == answers[2:]
    assert len((in_store / "test_ledger.jsonl").read_text().splitlines()) == 1
    assert "evaluate" in (cell / "model" / "test_ledger.jsonl").read_text()
    assert tune(arguments(file, object_store.uri("whole"), "run")) == 2
    assert "exists already" in capsys.readouterr().err
    assert tune(arguments(file, object_store.uri("whole"), "run", "--resume")) == 0
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_store_that_is_away_for_twenty_seconds_changes_nothing(file: Path, object_store: Store, on_disk: Path, tmp_path: Path):
    """The store goes away for 20 s in the middle of a run, and comes back: the run goes on, and its results are the same."""
    run = remote(object_store, "outage/run")
    command = [sys.executable, str(ROOT / "experiments" / "tune_backbones.py"), *arguments(file, object_store.uri("outage"), "run")]
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: any(trial.ended for trial in trials_of(run)) or driver.poll() is not None, 120)
        object_store.gate.shut()
        opening = threading.Timer(20.0, object_store.gate.open)
        opening.start()
        opening.join()
        assert driver.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    pd.testing.assert_frame_equal(table(run), table(on_disk))
    assert judged(run) == judged(on_disk)

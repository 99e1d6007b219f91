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


def cell_name(run: RemotePath) -> str:
    return next((each.name for each in run.iterdir() if each.name.endswith("small_cnn")), "none yet")


def trials_of(run: RemotePath) -> list[Trial]:
    return read_trials(run / cell_name(run))


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
    cell = in_store / cell_name(in_store)
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
        assert driver.poll() is None, (tmp_path / "log").read_text()
        assert sum(trial.ended for trial in trials_of(run)) < 4, "the outage came too late to disturb the search"
        assert driver.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    pd.testing.assert_frame_equal(table(run), table(on_disk))
    assert judged(run) == judged(on_disk)


IMPATIENT = "import sys, impatient; sys.exit(impatient.tune(sys.argv[1:]))"


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_search_in_one_sentence_and_it_is_resumed(
    file: Path, object_store: Store, on_disk: Path, tmp_path: Path
):
    run, command = remote(object_store, "gone/run"), arguments(file, object_store.uri("gone"), "run")
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        driver = subprocess.Popen([sys.executable, "-c", IMPATIENT, *command], stdout=out, stderr=err)
        wait_until(lambda: any(trial.ended for trial in trials_of(run)) or driver.poll() is not None, 120)
        object_store.gate.shut()
        try:
            assert driver.wait(timeout=110) == 2, (tmp_path / "err").read_text()
        finally:
            object_store.gate.open()
    said = [line for line in (tmp_path / "err").read_text().splitlines() if line.startswith("tlray: ")]
    assert len(said) == 1
    assert "did not answer for 2 s" in said[0]
    assert "--resume goes on" in said[0]
    assert "Traceback" not in (tmp_path / "err").read_text()
    ended = [trial.number for trial in trials_of(run) if trial.ended]
    written = {number: (run / cell_name(run) / "trials" / f"{number:04d}" / "trial.json").modified() for number in ended}
    assert 0 < len(ended) < 4
    assert tune([*command, "--resume"]) == 0
    assert {number: (run / cell_name(run) / "trials" / f"{number:04d}" / "trial.json").modified() for number in ended} == written
    pd.testing.assert_frame_equal(table(run), table(on_disk))
    assert judged(run) == judged(on_disk)


@pytest.mark.slow
def test_a_trial_of_torch_trainer_leaves_the_same_in_a_store(file: Path, object_store: Store, on_disk: Path, ray_session):
    run = remote(object_store, "trainer/run")
    more = ("--workers-per-trial", "1", "--trials", "1")
    assert tune(arguments(file, object_store.uri("trainer"), "run", *more)) == 0
    first = table(on_disk)
    pd.testing.assert_frame_equal(table(run).dropna(axis=1), first[first["trial"] == 0].dropna(axis=1))

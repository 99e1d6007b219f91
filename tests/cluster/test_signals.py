"""Ctrl-C and SIGTERM, sent to real processes: once, twice, while Ray starts, to the command and to the process of a trial."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_toys import Scripted, told_marker, toy_config, toy_job, without_clock
from processes import Process, family
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.interrupts import LEAVING, STOPPING, TOGETHER, handled
from tlray.cluster.session import Session
from tlray.cluster.tuning import Book, search
from tlray.results import FINISHED
from tlray.training.checkpoint import found

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """The main job on toy data in a process group of its own, as a terminal starts it."""

    def __init__(self, npz: Path, storage: Path, *flags: str, epochs: int = 5000):
        self.storage, self.argv = storage, [
            sys.executable, str(ROOT / "experiments" / "tune_backbones.py"), "--tasks", f"npz:{npz}", "--backbones", "small_cnn",
            "--weights", "none", "--trials", "2", "--epochs", str(epochs), "--concurrent", "1", "--cpus-per-trial", "1", "--storage",
            str(storage), "--name", "cut", "--offline", *flags,
        ]  # fmt: skip
        self.errors = storage / "errors"
        storage.mkdir()
        with open(self.errors, "w") as file:
            self.process = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True)

    def has_checkpoint(self) -> bool:
        return any(found(folder) for folder in self.storage.glob("cut/*/trials/*/checkpoints"))

    def starts_ray(self) -> bool:
        return any("raylet" in each.name or "gcs_server" in each.name for each in family(self.process.pid))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, 120)
        assert self.process.poll() is None, self.errors.read_text()

    def family(self) -> list[Process]:
        return family(self.process.pid)

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def interrupt_twice(self) -> float:
        """Ctrl-C, and again once it was heard; seconds until the process is gone."""
        self.interrupt()
        wait_until(lambda: STOPPING.strip() in self.errors.read_bytes())
        heard = time.monotonic()
        wait_until(lambda: time.monotonic() - heard > TOGETHER)
        started = time.monotonic()
        if self.process.poll() is None:  # while Ray starts there is little to stop
            self.interrupt()
        self.process.wait(timeout=60)
        return time.monotonic() - started


def gone(there: list[Process]) -> None:
    """Wait until none of these processes is left."""
    left = list(there)

    def none_left() -> bool:
        left[:] = [each for each in left if each.alive]
        return not left

    try:
        wait_until(none_left, 60)
    except AssertionError:
        raise AssertionError(f"still there: {[each.name for each in left]}") from None


@pytest.fixture
def npz(toy_npz, tmp_path: Path) -> Path:
    return toy_npz(tmp_path / "toy.npz")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in process", "TorchTrainer", "Ray starts"])
def test_ctrl_c_twice_is_out_within_two_seconds(moment: str, npz: Path, tmp_path: Path):
    flags = ("--workers-per-trial", "1") if moment == "TorchTrainer" else ()
    command = Command(npz, tmp_path / "runs", *flags)
    command.wait_for(command.starts_ray if moment == "Ray starts" else command.has_checkpoint)
    there = command.family()
    seconds = command.interrupt_twice()
    late = {-signal.SIGINT} if moment == "Ray starts" else set()  # when Python was all but gone: a shell calls that 130 too
    assert command.process.returncode in {130} | late
    said = command.errors.read_bytes()
    assert seconds < 2, said
    assert said.endswith(LEAVING) or moment == "Ray starts"
    gone(there)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in process", "TorchTrainer", "Ray starts"])
def test_sigterm_is_ctrl_c_once(moment: str, npz: Path, tmp_path: Path):
    """Also where Ray has taken the signal for itself; a run of which something is saved has its table, marked partial."""
    flags = ("--workers-per-trial", "1") if moment == "TorchTrainer" else ()
    command = Command(npz, tmp_path / "runs", *flags)
    command.wait_for(command.starts_ray if moment == "Ray starts" else command.has_checkpoint)
    there = command.family()
    command.process.send_signal(signal.SIGTERM)
    command.process.wait(timeout=120)
    said = command.errors.read_text()
    assert command.process.returncode == 130, said
    assert "--resume goes on" in said.splitlines()[-1]
    assert "Traceback" not in said
    summary = command.storage / "cut" / "summary.json"
    assert summary.is_file() == (moment != "Ray starts")
    assert not summary.is_file() or json.loads(summary.read_text())["partial"]
    gone(there)


def test_two_signals_at_once_are_one(tmp_path: Path):
    """Supervisors send theirs to a process and to its group."""
    code = (
        "import os, signal, threading\n"
        "from tlray.cluster.interrupts import handled\n"
        "try:\n"
        "    with handled():\n"
        "        print('ready', flush=True)\n"
        "        threading.Event().wait()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "interrupted\n"), error


def test_signals_count_also_where_nobody_reads_what_is_said(tmp_path: Path):
    """Ctrl-C at `2>&1 | tee log` ends tee too: the second one has to be heard all the same."""
    code = (
        "import threading\n"
        "from tlray.cluster.interrupts import handled\n"
        "with handled(last=True):\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        threading.Event().wait()\n"
        "    except KeyboardInterrupt:\n"
        "        threading.Event().wait()\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, text=True)
    os.close(writer)
    os.close(reader)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    def ended() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    try:
        wait_until(ended, 30)
    finally:
        process.kill()
    assert process.wait() == 130


def test_handlers_are_given_back():
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), handled():
        signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_that_is_told_to_go_writes_its_checkpoint_first(
    workers: int, npz: Path, tmp_path: Path, places: Places, ray_session: Session
):
    """Told in its third batch, the first of the second epoch: that epoch is trained to its end and not trained again."""
    config, histories = toy_config(npz, augment="toy_told_to_go", epochs=4), []
    told_marker().unlink(missing_ok=True)
    for name in ("told", "undisturbed"):
        book = Book(toy_job(tmp_path / name, places, workers), minimise=False)
        (trial,) = search(book, Scripted([config]))
        assert (trial.status, trial.lost) == (FINISHED, 1 if name == "told" else 0)
        histories.append(without_clock(trial.history))
        if name == "told":
            lines = [line.split() for line in told_marker().read_text().splitlines()]
            batches = [len([each for each in lines if each[0] == pid]) for pid in dict.fromkeys(line[0] for line in lines)]
            assert sorted(batches) == [4] * len(batches) if workers == 0 else min(batches) >= 4
    assert histories[0] == histories[1]

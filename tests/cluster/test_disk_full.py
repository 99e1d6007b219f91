"""A disk that fills up ends a run in one sentence, with nothing half-written, and the run goes on when there is room."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_disk import small_disk

from tlray.cli import main, tune
from tlray.cluster.session import Session
from tlray.deploy.model import load_model
from tlray.models.classifier import build_classifier
from tlray.models.weights import save_weights
from tlray.results import read_results, read_summary, read_trials

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 3


def command(file: Path, storage: Path, *more: str) -> list[str]:
    return [
        "--tasks", f"npz:{file}", "--backbones", "small_cnn", "--weights", "none", "--trials", str(TRIALS), "--epochs", "2",
        "--concurrent", "1", "--cpus-per-trial", "1", "--storage", str(storage), "--name", "run", "--offline", *more,
    ]  # fmt: skip


def assert_one_sentence(error: str, place: Path) -> None:
    (line,) = [line for line in error.splitlines() if line.startswith("tlray: ")]
    assert str(place) in line
    assert "No space left on device" in line
    assert "make room" in line
    assert "Traceback" not in error


def assert_whole(run: Path) -> None:
    assert not read_summary(run)["partial"]
    (cell,) = run.glob("*-small_cnn")
    trials = read_trials(cell)
    assert [trial.ended for trial in trials] == [True] * TRIALS
    assert sorted(set(read_results(run)["trial"])) == list(range(TRIALS))
    load_model(cell / "model")
    assert (run / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [4, 120])
def test_a_full_storage_ends_a_search_which_goes_on_when_there_is_room(
    kilobytes: int, toy_npz, tmp_path: Path, ray_session: Session, capfd: pytest.CaptureFixture[str]
):
    """Full at once, and among the checkpoints."""
    file = toy_npz(tmp_path / "toy.npz")
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        run = disk.folder / "run"
        assert tune(command(file, disk.folder)) == 2
        assert_one_sentence(capfd.readouterr().err, disk.folder)
        assert not (run / "report.html").exists()
        assert not list(run.glob("*/model"))
        begun = (run / "run.json").exists()
        assert begun or not run.exists()
        disk.room(64_000)
        assert tune(command(file, disk.folder, *(["--resume"] if begun else []))) == 0, capfd.readouterr().err
        assert_whole(run)


@pytest.mark.slow
def test_a_full_storage_ends_a_search_of_torch_trainers(toy_npz, tmp_path: Path, ray_session: Session, capfd: pytest.CaptureFixture[str]):
    file = toy_npz(tmp_path / "toy.npz")
    with small_disk(tmp_path / "disk", 120) as disk:
        assert tune(command(file, disk.folder, "--workers-per-trial", "1")) == 2
        assert_one_sentence(capfd.readouterr().err, disk.folder)
        assert not (disk.folder / "run" / "report.html").exists()
        disk.room(64_000)
        assert tune(command(file, disk.folder, "--workers-per-trial", "1", "--resume")) == 0, capfd.readouterr().err
        assert_whole(disk.folder / "run")


def test_a_cache_without_room_for_the_images_is_one_sentence(toy_npz, tmp_path: Path, monkeypatch, capsys):
    file = toy_npz(tmp_path / "toy.npz", train=512)
    with small_disk(tmp_path / "disk", 100) as disk:
        monkeypatch.setenv("TLRAY_CACHE", str(disk.folder))
        assert main(["data", "get", f"npz:{file}"]) == 2
        assert_one_sentence(capsys.readouterr().err, disk.folder)
        assert not [path for path in disk.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        disk.room(64_000)
        assert main(["data", "get", f"npz:{file}"]) == 0


@pytest.mark.slow
def test_a_cache_without_room_for_features_ends_the_search(toy_npz, tmp_path: Path, monkeypatch):
    """In a process of its own, whose trials inherit the cache."""
    file, weights = toy_npz(tmp_path / "toy.npz", train=512), tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_weights(weights, build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.5,), (0.5,)), {"classes": ["0", "1"]})
    with small_disk(tmp_path / "disk", 64_000) as disk:
        monkeypatch.setenv("TLRAY_CACHE", str(disk.folder))
        assert main(["data", "get", f"npz:{file}"]) == 0
        disk.room(16)
        own = command(file, tmp_path / "runs", "--set", "unfreeze=head")
        own[own.index("none")] = str(weights)
        tuned = [sys.executable, str(ROOT / "experiments" / "tune_backbones.py"), *own]
        answer = subprocess.run(tuned, capture_output=True, text=True, timeout=120, env=dict(os.environ))
        assert answer.returncode == 2
        assert_one_sentence(answer.stderr, disk.folder)
        disk.room(64_000)
        answer = subprocess.run([*tuned, "--resume"], capture_output=True, text=True, timeout=120, env=dict(os.environ))
        assert answer.returncode == 0, answer.stderr
        assert_whole(tmp_path / "runs" / "run")

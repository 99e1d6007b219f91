"""Event files hold each trial's history, and are written where the command says."""

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from tlray.cli import main
from tlray.config import Config
from tlray.errors import RunError
from tlray.report.tensorboard import write_tensorboard
from tlray.results import Trial, read_results, rows_of, write_results


def row(epoch: int) -> dict[str, Any]:
    about = {"epoch": epoch, "phase": 0, "phases": 1, "cached": False, "seconds": 0.5, "time": 1000.0 + epoch}
    return about | {"train_loss": 1 / epoch} | dict.fromkeys(("val_auroc", "monitor", "best"), 0.5 + epoch / 10)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a trial of two epochs, one of three, and one that came to none."""
    trials = [
        Trial(number, Config(lr=10.0 ** -(number + 2)).to_dict(), "finished", history=[row(each + 1) for each in range(epochs)])
        for number, epochs in enumerate((2, 3, 0))
    ]
    write_results(tmp_path / "results.parquet", rows_of("toy-resnet18", "toy", trials))
    return tmp_path


def events(folder: Path) -> list[Event]:
    """Every event of the one file in a folder, read by TensorFlow's framing: length, its CRC, the message, its CRC."""
    (file,) = folder.iterdir()
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Tag -> (step, value, wall time) of a trial's event file."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 4), event.wall_time))
    return found


def test_every_epoch_stands_where_and_when_it_was(run: Path):
    folder = write_tensorboard(run)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*")) == ["toy-resnet18/0000", "toy-resnet18/0001"]
    shown = curves(folder / "toy-resnet18" / "0001")
    assert shown["train/loss"] == [(1, 1.0, 1001.0), (2, 0.5, 1002.0), (3, 0.3333, 1003.0)]
    assert shown["val/auroc"] == [(1, 0.6, 1001.0), (2, 0.7, 1002.0), (3, 0.8, 1003.0)]
    assert shown["trial/seconds"] == [(epoch, 0.5, 1000.0 + epoch) for epoch in (1, 2, 3)]
    assert not [tag for tag in shown if "config" in tag or "epoch" in tag]


def test_the_configuration_is_there_as_hyperparameters(run: Path):
    folder = write_tensorboard(run)
    tags = [value.tag for event in events(folder / "toy-resnet18" / "0000") for value in event.summary.value]
    assert [tag for tag in tags if tag.startswith("_hparams_/")] == [f"_hparams_/{part}" for part in
        ("experiment", "session_start_info", "session_end_info")]  # fmt: skip
    assert b"layer_decay" in b"".join(event.SerializeToString() for event in events(folder / "toy-resnet18" / "0000"))


def test_the_command_writes_them_anew(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    folder = run / "tensorboard"
    (folder / "old").mkdir(parents=True)
    assert main(["report", str(run), "--tensorboard"]) == 0
    assert f"tensorboard --logdir {folder}" in capsys.readouterr().out
    table = read_results(run)
    assert {path.name for path in folder.iterdir()} == set(table["cell"])
    trials = table[table["epoch"] > 0].groupby(["cell", "trial"]).size()
    assert {(path.parent.name, int(path.name)): len(curves(path)["trial/monitor"]) for path in folder.glob("*/*")} == trials.to_dict()


def test_without_a_table_there_is_one_sentence(tmp_path: Path):
    with pytest.raises(RunError, match=r"results\.parquet cannot be read"):
        write_tensorboard(tmp_path)
    assert not (tmp_path / "tensorboard").exists()

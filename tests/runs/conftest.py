"""Finished runs on toy data, made once through the command line and shared by the tests."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tlray.cli import main


@dataclass(frozen=True)
class Made:
    """A run that was made: its command line, its directory, its data, and all it printed."""

    argv: list[str]
    folder: Path
    npz: Path
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def cell(self) -> Path:
        return self.folder / self.summary["cells"][0]["cell"]


def made(command: list[str], storage: Path, name: str, npz: Path) -> Made:
    """Run a command line and insist that it ends well."""
    argv = [*command, "--storage", str(storage), "--name", name, "--offline"]
    printed, complaints = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        status = main(argv)
    assert status == 0, complaints.getvalue()
    return Made(argv, storage / name, npz, printed.getvalue())


@pytest.fixture(scope="session")
def make_run(ray_session, tmp_path_factory, toy_npz) -> Callable[..., Made]:
    """`make_run(name, command, kind="binary")`: a run of `tlray tune|train ...` on a toy npz of that kind."""

    def make(name: str, *command: str, kind: str = "binary") -> Made:
        folder = tmp_path_factory.mktemp(name)
        npz = toy_npz(folder / f"{kind}.npz", kind=kind)
        task = "--task" if command[0] == "train" else "--tasks"
        backbone = "--backbone" if command[0] == "train" else "--backbones"
        return made([*command, task, f"npz:{npz}", backbone, "small_cnn", "--weights", "none"], folder / "runs", name, npz)

    return make


@pytest.fixture(scope="session")
def searched(make_run) -> Made:
    """A whole search: 3 trials of 2 epochs."""
    return make_run("searched", "tune", "--trials", "3", "--epochs", "2", "--concurrent", "2")

"""A run directory in which one file is torn or altered at any byte: a resume gives the same results, or says in one sentence what is
damaged. Nothing damaged is ever loaded, and nothing is unpickled.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_toys import toy_config, toy_job, without_clock

from tlray.cache import Places, read_sealed, write_sealed
from tlray.cli import main
from tlray.cluster.trial import train
from tlray.cluster.tuning import Book, FairASHA
from tlray.config import Config
from tlray.errors import RunError
from tlray.results import RUNNING, Trial, read_trials, trial_folder, winner, write_trial
from tlray.runs.delivery import assemble
from tlray.runs.folder import finished, opened
from tlray.training.checkpoint import found

ASKED = {"kind": "search", "trials": 2, "seed": 0}
EPOCHS, CASES = 4, 100


def go_on(folder: Path, places: Places) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """What `--resume` does, with the trials trained here and not by Tune: (status and history of each trial, the winner's model)."""
    job = toy_job(folder / "cell", places)
    with opened(folder, ASKED, resume=True):
        assert finished(folder) is None
        book = Book(job, minimise=False)
        book.open()
        FairASHA(book, 2, EPOCHS).replay()
        for number, trial in book.trials.items():
            if not trial.ended:
                train(job, number, Config(**trial.config), lambda result: None)
        trials = read_trials(job.cell)
        best = winner(trials, minimise=False)
        assert best is not None
        model = assemble(job.cell, best[0], best[1]["epoch"], places).model.state_dict()
    return [(trial.status, trial.config, without_clock(trial.history)) for trial in trials], model


@pytest.fixture(scope="module")
def cut(toy_npz, tmp_path_factory: pytest.TempPathFactory, places: Places) -> tuple[Path, Any]:
    """A run that was cut off: trial 0 has finished, trial 1 has done three of its four epochs. With what a resume gives."""
    root = tmp_path_factory.mktemp("torn")
    folder, base = root / "run", toy_config(toy_npz(root / "toy.npz"), epochs=EPOCHS)
    with opened(folder, ASKED, resume=False):
        write_sealed(folder / "summary.json", {"partial": True, "cells": []})
    job = toy_job(folder / "cell", places)
    for number, config in enumerate([base, replace(base, lr=2e-3)]):
        write_trial(job.cell, Trial(number, config.to_dict()))

    def cut_off(result: dict[str, Any]) -> None:
        if result["epoch"] == EPOCHS - 1:
            raise KeyboardInterrupt

    train(job, 0, base, lambda result: None)
    with pytest.raises(KeyboardInterrupt):
        train(job, 1, replace(base, lr=2e-3), cut_off)
    trials = read_trials(job.cell)
    assert trials[1].status == RUNNING
    assert [epoch for epoch, _ in found(trial_folder(job.cell, 1) / "checkpoints")][-1] == EPOCHS - 1
    whole = root / "whole"
    shutil.copytree(folder, whole)
    return folder, go_on(whole, places)


def tear(file: Path, seeded: random.Random) -> str:
    """Cut a file short, or change one bit of it, anywhere; what was done."""
    data = bytearray(file.read_bytes())
    at = seeded.randrange(len(data))
    if seeded.random() < 0.5:
        file.write_bytes(data[:at])
        return f"{file.name} cut at byte {at} of {len(data)}"
    data[at] ^= 1 << seeded.randrange(8)
    file.write_bytes(data)
    return f"{file.name} changed at byte {at} of {len(data)}"


def files(folder: Path) -> list[Path]:
    """What a reader looks at, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and path.name != ".lock")


def no_pickle(patch: pytest.MonkeyPatch) -> None:
    import pickle

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        patch.setattr(pickle, name, refuse)


@pytest.mark.parametrize("case", range(CASES))
def test_a_torn_file_is_never_loaded(case: int, cut, tmp_path: Path, places: Places, monkeypatch: pytest.MonkeyPatch):
    folder, expected = tmp_path / "run", cut[1]
    shutil.copytree(cut[0], folder)
    seeded, there = random.Random(case), files(folder)
    file = there[case % len(there)]
    done = tear(file, seeded)
    no_pickle(monkeypatch)
    said = ""
    try:
        trials, model = go_on(folder, places)
    except RunError as error:
        said = str(error)
    if said:
        assert str(folder) in said, done
        assert "\n" not in said, done
        return
    assert trials == expected[0], done
    assert model.keys() == expected[1].keys()
    assert all(torch.equal(value, expected[1][name]) for name, value in model.items()), done


def test_a_torn_newest_checkpoint_costs_one_epoch_not_the_training(cut, tmp_path: Path, places: Places):
    folder = tmp_path / "run"
    shutil.copytree(cut[0], folder)
    _, newest = found(trial_folder(folder / "cell", 1) / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    trials, _ = go_on(folder, places)
    assert trials == cut[1][0]


UNREADABLE = Path("/proc/self/mem")
"""A file whose bytes the system does not give: it says "Input/output error", as of a disk that fails."""


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["checkpoint", "trial.json", "run.json", "summary.json"])
def test_a_file_that_the_disk_does_not_give_is_not_taken_for_damaged(name: str, cut, tmp_path: Path, places: Places):
    folder = tmp_path / "run"
    shutil.copytree(cut[0], folder)
    trial = trial_folder(folder / "cell", 1)
    newest = found(trial / "checkpoints")[-1][1]
    file = {"checkpoint": newest, "trial.json": trial / "trial.json"}.get(name, folder / name)
    whole = file.rename(tmp_path / "whole")
    file.symlink_to(UNREADABLE)
    before = files(folder)
    with pytest.raises(RunError, match=r"cannot be used \(Input/output error\): check its disk.* --resume goes on") as raised:
        go_on(folder, places)
    assert str(file) in str(raised.value)
    assert files(folder) == before
    whole.rename(file)
    assert go_on(folder, places)[0] == cut[1][0]


def test_what_is_sealed_is_read_as_it_was_written_or_not_at_all(tmp_path: Path):
    file, value = tmp_path / "a.json", {"a": 1.5, "b": [1, None, "\u00e4"], "c": {"d": float("nan")}}
    write_sealed(file, value)
    plain = {**value, "c": {"d": None}}
    assert read_sealed(file) == plain
    whole = file.read_bytes()
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            file.write_bytes(data)
            try:
                read = read_sealed(file)
            except ValueError:
                continue
            # what is no part of the value (white space, the digest's own name) may change; the value may not
            assert {name: each for name, each in read.items() if name in plain} == plain, (at, bit)


def resumed(argv: list[str], storage: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what stands on standard error, of the same command with --resume on a copy."""
    argv = [*argv, "--resume"]
    argv[argv.index("--storage") + 1] = str(storage)
    status = main(argv)
    return status, capsys.readouterr().err


def check(status: int, error: str, done: str) -> None:
    """The command ended well, or with one sentence."""
    assert status in (0, 2), done
    lines = [line for line in error.splitlines() if not line.startswith("WARNING")]
    assert (status == 0 and not lines) or (status == 2 and len(lines) == 1 and lines[0].startswith("tlray: ")), (done, error)


def test_a_finished_run_with_any_file_torn_is_shown_or_said_to_be_damaged(searched, tmp_path: Path, capsys):
    for case, file in enumerate(files(searched.folder)):
        copy = tmp_path / str(case) / "searched"
        shutil.copytree(searched.folder, copy)
        done = tear(copy / file.relative_to(searched.folder), random.Random(case))
        check(*resumed(searched.argv, copy.parent, capsys), done)


READ_AT_THE_END = ("trial.json", "delivered.json", "test_ledger.jsonl", "run.json", "predictions.npz", "results.parquet", ".safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_before_its_summary_with_any_file_torn_ends_well_or_says_what_is_damaged(seed: int, searched, tmp_path: Path, capsys):
    wanted: Callable[[Path], bool] = lambda path: path.name.endswith(READ_AT_THE_END) and "model" not in path.parts  # noqa: E731
    for case, file in enumerate(filter(wanted, files(searched.folder))):
        copy = tmp_path / str(case) / "searched"
        shutil.copytree(searched.folder, copy)
        (copy / "summary.json").unlink()
        done = tear(copy / file.relative_to(searched.folder), random.Random(100 * seed + case))
        check(*resumed(searched.argv, copy.parent, capsys), done)

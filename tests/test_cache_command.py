"""`tlray cache`: what lies there, and clearing it without harm to unfinished runs."""

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tlray.cli import main


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with features of a finished and of an unfinished run, a prepared task and pretrained weights."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("TLRAY_CACHE", str(cache))
    for name, partial in (("done", False), ("open", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"partial": partial}))
        (cache / "features" / name / "pins").mkdir(parents=True)
        (cache / "features" / name / "features.npy").write_bytes(b"0" * 3_000_000)
        (cache / "features" / name / "pins" / "a").write_text(str(tmp_path / name))
    (cache / "features" / "extractions.jsonl").touch()
    for name in ("tasks", "pretrained"):
        (cache / name / "one").mkdir(parents=True)
        (cache / name / "one" / "file").write_bytes(b"0" * 1_500_000)
    return cache


def test_it_shows_what_is_there(filled, capsys):
    assert main(["cache"]) == 0
    printed = capsys.readouterr().out
    assert "features           6.0 MB in 2 entries" in printed
    assert "tasks              1.5 MB in 1 entries" in printed
    assert "downloads          0.0 MB in 0 entries" in printed
    assert "1 of them are pinned by unfinished runs" in printed
    assert f"{filled.parent / 'open'} is unfinished: resume it, or delete it" in printed
    assert str(filled) in printed


@pytest.mark.parametrize("argv", [[], ["clear", "tasks"]])
def test_a_cache_that_is_a_file_is_refused(tmp_path, monkeypatch, capsys, argv):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("TLRAY_CACHE", str(tmp_path / "file"))
    assert main(["cache", *argv]) == 2
    assert f"the cache {tmp_path / 'file'} is no folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_what_others_delete_meanwhile_does_not_keep_the_rest(filled, monkeypatch, capsys):
    before, gone = os.unlink, []

    def unlink(path, **more):  # another process is quicker, once
        before(path, **more)
        assert not (filled / "tasks").exists()  # nobody finds half of it
        if not gone:
            gone.append(path)
            before(path, **more)

    (filled / "tasks" / "one" / "second").write_bytes(b"0")
    monkeypatch.setattr(os, "unlink", unlink)
    assert main(["cache", "clear", "tasks", "downloads"]) == 0
    assert gone
    assert not (filled / "tasks").exists()
    assert capsys.readouterr().out == "tasks: deleted\ndownloads: deleted\n"


def test_what_cannot_be_deleted_is_not_said_to_be(filled, tmp_path, capsys):
    (filled / "tasks").rename(tmp_path / "elsewhere")
    (filled / "tasks").symlink_to(tmp_path / "elsewhere")
    assert main(["cache", "clear", "tasks"]) == 2
    assert f"{filled / 'tasks'} cannot be deleted" in capsys.readouterr().err
    assert (tmp_path / "elsewhere" / "one" / "file").is_file()


def test_what_a_killed_clearing_has_left_goes_with_the_next(filled):
    (filled / "tasks").rename(filled / ".tasks.going-1")
    assert main(["cache", "clear", "tasks"]) == 0
    assert sorted(path.name for path in filled.iterdir()) == ["features", "pretrained"]


def test_a_home_of_nobody_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TLRAY_CACHE", "~nobody-has-this-name/x")
    assert main(["cache"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_cache_is_found_from_home_and_named_in_full(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for said, is_ in (("~/x", tmp_path / "x"), ("x", Path.cwd() / "x")):
        monkeypatch.setenv("TLRAY_CACHE", said)
        assert main(["cache"]) == 0
        assert capsys.readouterr().out.endswith(f"{is_}\n")


@pytest.mark.parametrize("room", ["-1", "nan", "8GB"])
def test_a_budget_that_is_none_is_refused_before_anything(filled, tmp_path, monkeypatch, capsys, room):
    monkeypatch.setenv("TLRAY_FEATURES_GIB", room)
    for argv in (["cache"], ["train", "--task", "digits", "--storage", str(tmp_path / "runs"), "--name", "a"]):
        assert main(argv) == 2
        said = capsys.readouterr()
        assert f"TLRAY_FEATURES_GIB={room!r} is not a number of GiB" in said.err
        assert not said.out
    assert not (tmp_path / "runs").exists()


def test_it_clears_what_is_named_and_keeps_what_an_unfinished_run_reads(filled, capsys):
    assert main(["cache", "clear", "features", "tasks"]) == 0
    assert capsys.readouterr().out == "features: 1 deleted, 1 kept for unfinished runs\ntasks: deleted\n"
    assert sorted(path.name for path in filled.iterdir()) == ["features", "pretrained"]
    assert [path.name for path in (filled / "features").iterdir() if path.is_dir()] == ["open"]


def test_it_clears_what_killed_processes_have_left_and_not_what_is_being_made(filled):
    features = filled / "features"
    for name in (".killed.making-1", ".alive.making-1", ".killed.going-1"):
        (features / name).mkdir()
        (features / name / "features.npy").write_bytes(b"0" * 1000)
    with FileLock(features / ".alive.lock"):
        assert main(["cache", "clear", "features"]) == 0
    assert sorted(path.name for path in features.iterdir() if path.is_dir()) == [".alive.making-1", "open"]


def test_a_run_in_an_object_store_keeps_its_features_for_a_day(filled, capsys):
    pins = [filled / "features" / name / "pins" / "a" for name in ("done", "open")]
    for pin, hours in zip(pins, (25, 23), strict=True):
        pin.write_text("s3://nobody-asks-this-bucket/runs/run")
        os.utime(pin, (time.time() - 3600 * hours,) * 2)
    assert main(["cache", "clear", "features"]) == 0
    assert [path.name for path in (filled / "features").iterdir() if path.is_dir()] == ["open"]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["clear"], "name what is to be deleted: features, tasks, pretrained, downloads"),
        (["clear", "feature"], "unknown 'feature' (did you mean 'features'?)"),
        (["show", "features"], "one word too many"),
        (["empty"], "invalid choice: 'empty'"),
    ],
)
def test_mistakes_are_one_sentence(filled, capsys, argv, sentence):
    assert main(["cache", *argv]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert len(list(filled.iterdir())) == 3

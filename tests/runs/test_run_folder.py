"""A run's directory: made once, taken up only when asked the same, used by one process."""

import errno
import json

import pytest
from filelock import FileLock

from tlray.cache import read_sealed
from tlray.errors import RunError
from tlray.runs.folder import check_folder, finished, opened

ASKED = {"kind": "search", "trials": 3, "cells": [{"cell": "a", "first": ({"lr": 0.1},)}]}


def test_a_new_run_writes_down_what_was_asked(tmp_path):
    with opened(tmp_path / "runs" / "new", ASKED, resume=False):
        pass
    assert read_sealed(tmp_path / "runs" / "new" / "run.json") == json.loads(json.dumps(ASKED))


def test_checking_leaves_nothing_behind(tmp_path):
    check_folder(tmp_path / "runs" / "new", resume=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "new").mkdir()
    with opened(tmp_path / "new", ASKED, resume=False):
        assert (tmp_path / "new" / "run.json").is_file()


def test_an_existing_run_is_refused_without_resume_and_taken_up_with_it(tmp_path):
    with opened(tmp_path / "run", ASKED, resume=False):
        pass
    with pytest.raises(RunError, match=r"exists already.*--name.*--resume"), opened(tmp_path / "run", ASKED, resume=False):
        pass
    with opened(tmp_path / "run", ASKED, resume=True):
        pass


def test_a_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="exists already"):
        check_folder(tmp_path / "run", resume=False)


def test_a_resume_of_nothing_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run that could be resumed"):
        check_folder(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_resume_that_asks_something_else_is_refused_by_the_name_of_what_differs(tmp_path):
    with opened(tmp_path / "run", ASKED, resume=False):
        pass
    with (
        pytest.raises(RunError, match=r"other settings \(trials was 3 and is 4 now\)"),
        opened(tmp_path / "run", {**ASKED, "trials": 4}, resume=True),
    ):
        pass
    assert json.loads((tmp_path / "run" / "run.json").read_text())["trials"] == 3


def test_a_damaged_question_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged"), opened(tmp_path / "run", ASKED, resume=True):
        pass


def test_only_one_process_may_use_a_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(ASKED))
    with (
        FileLock(tmp_path / "run" / ".lock"),
        pytest.raises(RunError, match="in use by another process"),
        opened(tmp_path / "run", ASKED, resume=True),
    ):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "run", ASKED, resume=False):
        raise ZeroDivisionError
    with opened(tmp_path / "run", ASKED, resume=True):
        pass


def test_a_full_disk_is_one_sentence_and_another_fault_is_not_disguised(tmp_path):
    with pytest.raises(RunError, match=r"cannot be written.*make room"), opened(tmp_path / "full", ASKED, resume=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionResetError), opened(tmp_path / "run", ASKED, resume=False):
        raise ConnectionResetError(errno.ECONNRESET, "a bug elsewhere")


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "runs" / "run", tmp_path.__class__("/proc/runs/run")):
        with pytest.raises(RunError, match=r"cannot be made.*--storage"):
            check_folder(place, resume=False)


def test_a_run_is_finished_only_with_a_whole_summary(tmp_path):
    assert finished(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"partial": true}')
    assert finished(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"partial": false}')
    assert finished(tmp_path) == {"partial": False}
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json cannot be read"):
        finished(tmp_path)

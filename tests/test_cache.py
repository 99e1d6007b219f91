"""Files on disk: whole or not there, made once over all processes, keyed by content."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tlray.cache import (
    Places,
    append_line,
    array_digest,
    atomic_path,
    build_once,
    default_cache,
    digest,
    file_digest,
    finite,
    write_bytes,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]

# Adds its process id to calls.txt, says that it is inside, and goes on at a line from its standard input.
BUILDER = """
import os, sys, pathlib
from tlray.cache import build_once
folder, base = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1]).parent
def build(temporary):
    with open(base / "calls.txt", "a") as calls:
        calls.write(f"{os.getpid()}\\n")
    (temporary / "first.txt").write_text("first")
    print("inside", flush=True)
    sys.stdin.readline()
    (temporary / "second.txt").write_text("second")
print("start", flush=True)
print(sorted(each.name for each in build_once(folder, build).iterdir()), flush=True)
"""


WHOLE = "['first.txt', 'second.txt']"


def builder(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(folder)], cwd=ROOT, text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def release(process: subprocess.Popen) -> None:
    """Let a builder go on, now or as soon as it gets inside."""
    process.stdin.write("go\n")
    process.stdin.close()


def rest(process: subprocess.Popen) -> list[str]:
    """What a builder still printed until it ended well."""
    lines = process.stdout.read().splitlines()
    assert process.wait(timeout=60) == 0
    return lines


def kill(process: subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


def hidden(folder: Path) -> list[str]:
    """Temporary things beside `folder`; the lock file may stay."""
    return [each.name for each in folder.parent.iterdir() if each.name.startswith(".") and not each.name.endswith(".lock")]


def test_build_once_over_processes(tmp_path):
    folder = tmp_path / "made"
    processes = [builder(folder) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "start\n"
    for process in processes:
        release(process)  # one is inside or will be; the others wait at the lock and never read their line
    outputs = [rest(process) for process in processes]
    assert sorted(len(lines) for lines in outputs) == [1, 1, 1, 2]
    assert {lines[-1] for lines in outputs} == {WHOLE}
    assert len((tmp_path / "calls.txt").read_text().split()) == 1
    assert hidden(folder) == []


def test_a_killed_builder_leaves_nothing_that_looks_whole(tmp_path):
    folder = tmp_path / "made"
    victim = builder(folder)
    assert [victim.stdout.readline() for _ in range(2)] == ["start\n", "inside\n"]
    assert not folder.exists()
    kill(victim)
    assert not folder.exists()
    assert len(hidden(folder)) == 1  # what the victim left, under a name that no reader looks at

    heir = builder(folder)
    release(heir)
    assert rest(heir) == ["start", "inside", WHOLE]
    assert len((tmp_path / "calls.txt").read_text().split()) == 2
    assert hidden(folder) == []


def test_a_waiting_builder_takes_over_from_a_killed_one(tmp_path):
    folder = tmp_path / "made"
    victim = builder(folder)
    assert [victim.stdout.readline() for _ in range(2)] == ["start\n", "inside\n"]
    heir = builder(folder)
    assert heir.stdout.readline() == "start\n"
    release(heir)
    kill(victim)
    assert rest(heir) == ["inside", WHOLE]


def test_build_once_over_threads(tmp_path):
    calls, barrier = [], threading.Barrier(8)

    def build(temporary: Path) -> None:
        calls.append(1)
        (temporary / "file").write_text("x")

    def ask() -> None:
        barrier.wait()
        build_once(tmp_path / "made", build)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert calls == [1]


def test_a_failed_build_leaves_nothing_and_may_be_repeated(tmp_path):
    folder = tmp_path / "below" / "made"

    def fail(temporary: Path) -> None:
        (temporary / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        build_once(folder, fail)
    assert not folder.exists()
    assert hidden(folder) == []
    assert build_once(folder, lambda temporary: (temporary / "file").write_text("whole") and None) == folder
    assert (folder / "file").read_text() == "whole"


def test_what_was_built_is_as_open_as_any_folder(tmp_path):
    """Several users may share a cache."""
    (tmp_path / "any").mkdir()
    build_once(tmp_path / "made", lambda temporary: None)
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_what_is_there_is_not_built_again(tmp_path):
    def fail(temporary: Path) -> None:
        raise AssertionError("built again")

    (tmp_path / "made").mkdir()
    assert build_once(str(tmp_path / "made"), fail) == tmp_path / "made"


def test_atomic_path_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_atomic_path_leaves_the_old_file_on_an_error(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:  # noqa: PT012 - what the block did must be undone
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_name_is_synced_with_its_folder(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_bytes(tmp_path / "whole", b"1")
    assert synced[1:] == [tmp_path]
    synced.clear()
    for _ in range(2):
        append_line(tmp_path / "lines", "one")
    assert synced == [tmp_path / "lines", tmp_path, tmp_path / "lines"]


def test_write_bytes_and_json(tmp_path):
    write_bytes(tmp_path / "a.bin", b"\x00\x01")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\x01"
    write_json(tmp_path / "a.json", {"nan": math.nan, 1: np.float32(0.5), "array": np.array([[1, 2]]), "tuple": (1, math.inf)})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"nan": None, "1": 0.5, "array": [[1, 2]], "tuple": [1, None]}
    assert text.endswith("\n")


def test_finite_reaches_into_arrays():
    assert finite(np.array([1.0, np.nan, np.inf])) == [1.0, None, None]
    assert finite(np.float64(np.nan)) is None
    assert finite({"a": [np.int64(3), True, None, "x"]}) == {"a": [3, True, None, "x"]}


def test_digest_depends_on_every_part_and_its_limits():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest([1, 2]) != digest(1, 2)
    assert len({digest(1), digest(1.5), digest("1"), digest(None), digest(b"1 ")}) == 5
    assert len(digest("x")) == 64


def test_file_digest_is_the_usual_one(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "file", "md5") == "900150983cd24fb0d6963f7d28e17f72"


def test_array_digest_sees_values_type_and_shape(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    known = array_digest(array)
    assert array_digest(array.copy()) == known
    assert len({known, array_digest(array.astype(np.int8)), array_digest(array.reshape(2, 4, 3)), array_digest(array[::-1])}) == 4
    np.save(tmp_path / "array.npy", array)
    assert array_digest(np.load(tmp_path / "array.npy", mmap_mode="r")) == known
    assert array_digest(array.transpose(0, 2, 1)) == array_digest(np.ascontiguousarray(array.transpose(0, 2, 1)))


def test_array_digest_reads_large_arrays_in_pieces_with_one_result():
    large = np.random.default_rng(0).integers(0, 255, (40, 1 << 20), dtype=np.uint8)  # 40 MiB, pieces of 16
    changed = large.copy()
    changed[-1, -1] ^= 1
    assert array_digest(large) != array_digest(changed)
    assert array_digest(np.zeros((0, 3), np.uint8)) != array_digest(np.zeros((0, 4), np.uint8))


def test_places_come_from_the_environment_when_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("TLRAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TLRAY_DATA", "/data")
    assert Places() == Places(data="/data", cache=str(tmp_path / "cache"), offline=False)
    monkeypatch.delenv("TLRAY_CACHE")
    monkeypatch.delenv("TLRAY_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Places() == Places(data=None, cache=str(tmp_path / ".cache" / "tlray"), offline=False)
    assert default_cache() == str(tmp_path / ".cache" / "tlray")


def test_places_folder_is_made_below_the_cache(tmp_path):
    places = Places(cache=str(tmp_path / "cache"))
    assert places.folder("tasks", "x") == tmp_path / "cache" / "tasks" / "x"
    assert places.folder("tasks", "x").is_dir()


def test_tests_have_a_cache_of_their_own(places, session_cache):
    assert Places().cache == places.cache == str(session_cache)
    assert places.offline

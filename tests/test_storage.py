"""A place in an object store answers as a path does, waits for a store that is away for a while, and says in one sentence what is wrong."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest
from s3_server import Store, served
from small_disk import small_disk

from tlray import storage
from tlray.cache import append_line, write_json
from tlray.errors import RunError, StorageError
from tlray.storage import RemotePath, at_hand, for_each, hand_over, handed_over, place, remove_tree, take_back


@pytest.fixture
def remote(object_store: Store, request: pytest.FixtureRequest) -> RemotePath:
    """An empty place of this test's own."""
    found = place(object_store.uri(f"tests/{request.node.name}"))
    assert isinstance(found, RemotePath)
    return found


def test_a_path_and_a_file_uri_stay_paths(tmp_path: Path):
    assert place(str(tmp_path)) == tmp_path
    assert place(tmp_path) == tmp_path
    assert place(f"file://{tmp_path}/runs") == tmp_path / "runs"


def test_names_go_as_those_of_paths_do():
    here = place("s3://bucket/a/b?scheme=http")
    assert str(here / "c" / "d.json") == "s3://bucket/a/b/c/d.json?scheme=http"
    assert (here / "c").name == "c"
    assert (here / "c").parent == here == here.resolve() == place(here) == place(str(here))
    assert str(place("s3://bucket") / "run") == "s3://bucket/run"
    assert here / "../../../../x" == here.parent.parent / "x"
    assert isinstance(here, RemotePath)
    assert (here / "c").is_relative_to(here)
    assert not (here / "../bc").is_relative_to(here)
    assert pickle.loads(pickle.dumps(here)) == here


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("foo://bucket/runs", "foo://bucket/runs.*name a folder"),
        ("s3://", "name a folder"),
        ("s3://bucket/runs?nonsense=1", "nonsense.*check"),
        ("s3://key:hidden@bucket/runs", "password.*AWS_SECRET_ACCESS_KEY"),
        ("s3://key:hidden@[bucket/runs", "cannot be understood"),
    ],
)
def test_a_uri_that_names_no_place_is_one_sentence(uri: str, says: str):
    with pytest.raises(StorageError, match=says) as raised:
        (place(uri) / "x").exists()
    assert "hidden" not in str(raised.value)


def test_what_is_written_is_read_back(remote: RemotePath, tmp_path: Path):
    file = remote / "a" / "b.json"
    assert not file.exists()
    assert not file.is_file()
    with pytest.raises(FileNotFoundError):
        file.read_bytes()
    write_json(file, {"lr": 0.1})
    write_json(file, {"lr": 0.2, "longer": "than before"})
    assert file.is_file()
    assert '"lr": 0.2' in file.read_text()
    assert (remote / "a").is_dir()
    assert not (remote / "a").is_file()
    assert file.read_range(2, 5) == file.read_bytes()[2:7]
    append_line(remote / "lines", "one")
    append_line(remote / "lines", "two ±")
    assert (remote / "lines").read_text() == "one\ntwo ±\n"
    assert [each.name for each in remote.iterdir()] == ["a", "lines"]
    assert list(remote.rglob("b.json")) == [file]
    assert list((remote / "nothing").iterdir()) == []
    assert for_each([file, remote / "lines"], lambda each: each.read_text()[:1]) == ["{", "o"]
    with at_hand(file) as copy:
        assert copy.read_bytes() == file.read_bytes()
        (remote / "copied").upload(copy)
    assert not copy.exists()
    assert (remote / "copied").read_bytes() == file.read_bytes()
    file.unlink()
    file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        file.unlink()
    remove_tree(remote)
    remove_tree(remote)
    assert list(remote.iterdir()) == []


def test_a_large_file_goes_up_and_down_in_pieces(remote: RemotePath, tmp_path: Path):
    data = os.urandom(30 << 20)
    (tmp_path / "up").write_bytes(data)
    (remote / "large").upload(tmp_path / "up")
    (remote / "large").download(tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == data == (remote / "large").read_bytes()


def test_a_disk_that_is_full_here_is_not_a_store_that_is_away(remote: RemotePath, tmp_path: Path):
    (remote / "large").write_bytes(bytes(1 << 20))
    started = time.monotonic()
    with small_disk(tmp_path / "disk", 100) as disk, pytest.raises(OSError, match=r"No space left on device: '.*/disk/down'"):
        (remote / "large").download(disk.folder / "down")
    assert time.monotonic() - started < 10


def test_a_missing_bucket_is_named_at_once_and_made_where_the_query_allows(object_store: Store):
    missing = place(f"s3://no-such-bucket/runs?{object_store.options}")
    assert isinstance(missing, RemotePath)
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/runs.*check the bucket"):
        missing.reach()
    assert time.monotonic() - started < 10
    allowed = place(f"s3://made-bucket/runs?{object_store.options}&allow_bucket_creation=true")
    assert isinstance(allowed, RemotePath)
    allowed.reach()
    assert list(allowed.iterdir()) == []
    assert [each.name for each in allowed.parent.iterdir()] == []


@pytest.mark.slow
def test_an_address_that_nobody_answers_at_is_named_at_once():
    nobody = place("s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    assert isinstance(nobody, RemotePath)
    with pytest.raises(StorageError, match=r"did not answer \(.*check address"):
        nobody.reach()


def reach_often(there: RemotePath) -> None:
    for _ in range(3):
        there.reach()


def test_a_store_that_does_not_know_the_key_says_so_at_once(object_store: Store, tmp_path: Path):
    """The server asks nobody for the first actions, of which the making of the bucket is one."""
    with served(tmp_path / "log", INITIAL_NO_AUTH_ACTION_COUNT="3") as locked:
        there = place(locked.uri("runs"))
        assert isinstance(there, RemotePath)
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"s3://runs/runs.* is refused \(.*credentials") as raised:
            reach_often(there)
        assert time.monotonic() - started < 30
        assert "tests-secret" not in str(raised.value)


@pytest.mark.slow
def test_a_short_outage_is_waited_out(object_store: Store, remote: RemotePath, caplog):
    (remote / "before").write_bytes(b"1")
    object_store.gate.shut()
    opening = threading.Timer(8.0, object_store.gate.open)  # the SDK itself tries for 6 s
    opening.start()
    try:
        (remote / "during").write_bytes(b"2")
        assert (remote / "before").read_bytes() == b"1"
    finally:
        opening.join()
    assert (remote / "during").read_bytes() == b"2"
    assert "trying again" in caplog.text


@pytest.mark.slow
def test_a_server_that_hangs_is_waited_for(object_store: Store, remote: RemotePath):
    os.kill(object_store.process.pid, signal.SIGSTOP)
    waking = threading.Timer(5.0, os.kill, (object_store.process.pid, signal.SIGCONT))
    waking.start()
    try:
        (remote / "during").write_bytes(b"2")
    finally:
        waking.join()
    assert (remote / "during").read_bytes() == b"2"


@pytest.mark.parametrize("ask", [lambda file: file.write_bytes(b"2"), lambda file: file.read_bytes()], ids=["write", "read"])
def test_a_server_that_hangs_on_is_given_up(ask, object_store: Store, remote: RemotePath, monkeypatch):
    (remote / "during").write_bytes(b"1")
    monkeypatch.setattr(storage, "ANSWER", 1.0)
    monkeypatch.setattr(storage, "PATIENCE", 2.0)
    os.kill(object_store.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(StorageError, match=r"did not answer for 2 s \(it took the question and said nothing"):
            ask(remote / "during")
    finally:
        os.kill(object_store.process.pid, signal.SIGCONT)


@pytest.mark.slow
def test_a_long_outage_is_one_sentence_after_a_bounded_time(object_store: Store, remote: RemotePath, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 1.0)
    object_store.gate.shut()
    try:
        with pytest.raises(StorageError, match=r"did not answer for 1 s.*--resume goes on"):
            (remote / "during").write_bytes(b"2")
    finally:
        object_store.gate.open()
    assert not (remote / "during").exists()


@pytest.mark.slow
def test_a_run_that_is_handed_over_during_an_outage_is_written_no_more(object_store: Store, remote: RemotePath):
    object_store.gate.shut()
    losing = threading.Timer(0.5, hand_over, [remote / "run", "somebody else has it"])  # the first try takes some seconds
    losing.start()
    try:
        with pytest.raises(StorageError, match="somebody else has it"):
            (remote / "run" / "x").write_bytes(b"2")
    finally:
        losing.join()
        take_back(remote / "run")
        object_store.gate.open()


def write_for_ever(file: RemotePath, data: bytes) -> None:
    while True:
        file.write_bytes(data)


def test_an_upload_that_is_cut_off_leaves_the_old_object(object_store: Store, remote: RemotePath, monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 1.0)
    (remote / "large").write_bytes(b"old")
    data = bytes(40 << 20)
    shutting = threading.Timer(0.15, object_store.gate.shut)
    shutting.start()
    try:
        with pytest.raises(StorageError, match="did not answer"):
            write_for_ever(remote / "large", data)
    finally:
        shutting.join()
        object_store.gate.open()
    assert (remote / "large").read_bytes() in (b"old", data)


def test_a_run_that_was_handed_over_is_written_no_more(remote: RemotePath):
    hand_over(remote / "run", "somebody else has it")
    try:
        with pytest.raises(RunError, match="somebody else has it"):
            (remote / "run" / "x").write_bytes(b"")
        with pytest.raises(RunError, match="somebody else has it"):
            (remote / "run" / "x").unlink()
        (remote / "run2").write_bytes(b"")
    finally:
        take_back(remote / "run")  # type: ignore[arg-type]
    assert handed_over(remote / "run") is None
    (remote / "run" / "x").write_bytes(b"")

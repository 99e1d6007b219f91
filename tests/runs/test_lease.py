"""A run in an object store belongs to one process at a time; that of a dead one is free, at once or after a stated time."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from s3_server import Store
from waiting import wait_until

from tlray import storage
from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.errors import Interrupted, RunError
from tlray.runs import lease
from tlray.runs.folder import Run, finished, interrupted
from tlray.runs.lease import held, hurried
from tlray.storage import RemotePath, handed_over, place, take_back

HOLDS = """
import sys
from tlray.runs.lease import held
from tlray.storage import place
with held(place(sys.argv[1])):
    print("held", flush=True)
    input()
"""


@pytest.fixture
def run(object_store: Store, request: pytest.FixtureRequest) -> RemotePath:
    """A run of this test's own."""
    found = place(object_store.uri(f"lease/{request.node.name}"))
    assert isinstance(found, RemotePath)
    return found


def claims(run: RemotePath) -> list[RemotePath]:
    return list((run.parent / ".leases" / run.name).iterdir())


def claim_of_another(run: RemotePath, **changes: object) -> RemotePath:
    """A claim that a process of another machine has just renewed."""
    owner = {"user": "ada", "host": "elsewhere", "machine": "another", "process": 12, "began": "3"} | changes
    file = run.parent / ".leases" / run.name / "ffff.json"
    file.write_bytes(json.dumps(owner).encode())
    return file


def test_a_run_is_held_and_given_back(run: RemotePath):
    for _ in range(2):
        with held(run):
            assert len(claims(run)) == 1
        assert claims(run) == []


def test_it_is_given_back_after_an_error(run: RemotePath):
    with pytest.raises(ZeroDivisionError), held(run):
        raise ZeroDivisionError
    assert claims(run) == []


def test_a_run_of_another_machine_is_refused_with_who_has_it_and_how_long_to_wait(run: RemotePath):
    other = claim_of_another(run)
    with pytest.raises(RunError, match=r"in use by ada on elsewhere \(process 12, .* --resume works in 2\d\d s"), held(run):
        pass
    assert claims(run) == [other]


def test_a_claim_that_is_not_renewed_goes_stale(run: RemotePath, monkeypatch):
    other = claim_of_another(run)

    def free() -> bool:
        with contextlib.suppress(RunError), held(run):
            return True
        return False

    assert not free()
    monkeypatch.setattr(lease, "STALE", 1.0)
    wait_until(free, 30)
    assert not other.exists()


def test_a_claim_is_renewed_while_the_block_runs(run: RemotePath, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.2)
    with held(run):
        (claim,) = claims(run)
        first = claim.modified()
        wait_until(lambda: claim.modified() > first, 30)
        with pytest.raises(RunError, match="in use by"), held(run):
            pass


@pytest.mark.slow
def test_a_killed_process_of_this_machine_does_not_keep_a_run(run: RemotePath):
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {other.pid}"), held(run):
            pass
        os.kill(other.pid, signal.SIGKILL)
    with held(run):
        assert len(claims(run)) == 1


@pytest.mark.slow
def test_ctrl_c_stays_ctrl_c_while_the_store_is_away(run: RemotePath, object_store: Store, places: Places):
    command = Run(run, places, Resources(0, 1, 1, 0.0))

    def leave() -> None:
        object_store.gate.shut()
        raise interrupted(command, lambda: finished(run))

    try:
        with pytest.raises(Interrupted, match=r"is saved but not in a table, as the storage does not answer: .* --resume"), held(run):
            leave()
    finally:
        object_store.gate.open()
    assert "table" not in str(interrupted(command, lambda: finished(run)))


def test_of_many_that_come_at_once_at_most_one_stays(run: RemotePath):
    together, settled, stayed = threading.Barrier(8), threading.Barrier(8), []

    def come() -> None:
        together.wait(60)
        try:
            with held(run):
                stayed.append(1)
                settled.wait(60)  # nobody goes before the last has come in or been refused
        except RunError:
            settled.wait(60)

    for _ in range(3):
        stayed.clear()
        comers = [threading.Thread(target=come) for _ in range(8)]
        for each in comers:
            each.start()
        for each in comers:
            each.join()
        assert claims(run) == []
        assert len(stayed) <= 1
        assert not settled.broken


def test_a_process_whose_claim_was_taken_for_stale_writes_no_more(run: RemotePath, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    try:
        with held(run):
            (run / "before").write_bytes(b"")
            claims(run)[0].unlink()
            wait_until(lambda: handed_over(run), 30)
            with pytest.raises(RunError, match="taken over by another process"):
                (run / "after").write_bytes(b"")
    finally:
        take_back(run)
    assert not (run / "after").exists()


def test_who_hurries_beside_others_leaves_patience_as_it_was():
    """The first to begin is the first to end."""
    usual = storage.PATIENCE, storage.ANSWER
    with contextlib.ExitStack() as second:
        with hurried():
            second.enter_context(hurried())
            assert usual > (storage.PATIENCE, storage.ANSWER)
        assert usual > (storage.PATIENCE, storage.ANSWER)
    assert usual == (storage.PATIENCE, storage.ANSWER)

"""Lanes: every item once, numbers of one thread each, only on cores that nobody else uses."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from tlray.training import lanes
from tlray.training.lanes import FreeCores, run_in_lanes


@pytest.mark.parametrize("most", [1, 3])
def test_every_item_is_worked_on_once(most):
    done = []
    assert 1 <= run_in_lanes(done.append, range(50), most) <= most
    assert sorted(done) == list(range(50))
    assert run_in_lanes(done.append, [], most) == 0


def test_every_lane_has_one_torch_thread_and_the_caller_keeps_its_own():
    torch.set_num_threads(2)
    seen = []
    run_in_lanes(lambda item: seen.append(torch.get_num_threads()), range(20), 2)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2


def test_an_error_is_raised_and_the_rest_left_undone():
    done = []

    def work(item: int) -> None:
        if item == 3:
            raise ValueError("item 3")
        done.append(item)

    with pytest.raises(ValueError, match="item 3"):
        run_in_lanes(work, range(1000), 1)
    assert done == [0, 1, 2]


def test_an_interrupt_leaves_the_rest_undone():
    done, begun = [], threading.Event()

    def work(item: int) -> None:
        done.append(item)
        begun.set()
        threading.Event().wait(0.05)

    def interrupt() -> None:
        begun.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            run_in_lanes(work, range(1000), 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(done) < 100


def test_lanes_work_side_by_side_while_cores_are_free(monkeypatch):
    monkeypatch.setattr(FreeCores, "count", lambda self: self._cores)
    meet = threading.Barrier(3, timeout=30)
    assert run_in_lanes(lambda item: meet.wait() and None, range(3), 3) == 3


def test_further_lanes_wait_while_others_use_the_cores(monkeypatch):
    monkeypatch.setattr(FreeCores, "count", lambda self: 1)
    workers = set()
    assert run_in_lanes(lambda item: workers.add(threading.get_ident()), range(50), 4) == 1
    assert len(workers) == 1


def test_a_core_that_another_process_uses_is_not_free(monkeypatch):
    """Two processes that only compute, on the cores of this one: none of them is free beyond the first."""
    if lanes._idle_seconds() is None:
        pytest.skip("this system does not count idle time in /proc/stat")
    cores = len(lanes._own_cpus())
    burn = "import sys; print('up', flush=True)\nwhile True: pass"
    others = [subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) for _ in range(cores)]
    try:
        for each in others:
            assert each.stdout is not None
            each.stdout.readline()
        free = FreeCores(cores)
        assert free.count() == cores, "before the first look"
        threading.Event().wait(2 * lanes.LOOK_SECONDS)  # what passes between two looks is what is measured
        assert free.count() == 1
    finally:
        for each in others:
            each.kill()
            each.wait()


def test_where_nothing_is_counted_all_cores_are_taken(monkeypatch):
    monkeypatch.setattr(lanes, "_idle_seconds", lambda: None)
    monkeypatch.setattr(lanes, "LOOK_SECONDS", 0.0)
    assert FreeCores(5).count() == 5

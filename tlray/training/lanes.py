"""Work on batches that do not depend on each other, on as many cores as are idle, with numbers that do not depend on how many."""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

LOOK_SECONDS = 0.25
"""How often is looked which cores others use."""


class FreeCores:
    """How many cores this process may use without taking them from others, by what Linux counts of idle and of own time.

    Args:
        cores: how many it may use at most; so many are taken to be free until the first look, and where nothing can be counted.
    """

    def __init__(self, cores: int):
        self._cores, self._free, self._lock = cores, cores, threading.Lock()
        self._seen = (time.monotonic(), _idle_seconds(), time.process_time())

    def count(self) -> int:
        """At least 1; counted anew when the last look is older than LOOK_SECONDS."""
        with self._lock:
            then, idle, own = self._seen
            now = time.monotonic()
            if idle is not None and now - then >= LOOK_SECONDS:
                self._seen = (now, _idle_seconds(), time.process_time())
                passed = now - then
                others = len(_own_cpus()) - ((self._seen[1] or 0.0) - idle + self._seen[2] - own) / passed
                self._free = max(1, min(self._cores, round(self._cores - others)))
            return self._free


def _own_cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _idle_seconds() -> float | None:
    """Seconds that the cores of this process have been idle, summed; None where nobody counts them."""
    names = {f"cpu{number}" for number in _own_cpus()}
    try:
        with open("/proc/stat", encoding="ascii") as file:
            rows = [line.split() for line in file if line.startswith("cpu")]
    except OSError:
        return None
    ticks = sum(int(row[4]) + int(row[5]) for row in rows if row[0] in names)  # idle, and idle while waiting for a disk
    return ticks / os.sysconf("SC_CLK_TCK")


def run_in_lanes(work: Callable[[int], None], items: Iterable[int], most: int) -> int:
    """Call `work` once with each item, in up to `most` threads at once of one torch thread each; how many threads took part.

    The first thread goes on whatever happens; each further one only takes an item while a core is free for it. One torch thread for each
    item, so the numbers are the same however many took part, and a core that another process takes holds up one item and not all.
    Raises what `work` raises, after the items that are under way.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    over, free, took_part, before = threading.Event(), FreeCores(most), set(), torch.get_num_threads()

    def lane(index: int) -> None:
        torch.set_num_threads(1)
        while not over.is_set():
            if index and free.count() <= index:
                over.wait(LOOK_SECONDS)
                continue
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                over.set()
                return
            took_part.add(index)
            try:
                work(item)
            except BaseException:
                over.set()
                raise

    try:
        with ThreadPoolExecutor(most) as pool:
            try:
                for done in [pool.submit(lane, index) for index in range(most)]:
                    done.result()
            finally:
                over.set()  # before the pool waits for its threads: Ctrl-C shall not wait for all items
    finally:
        torch.set_num_threads(before)
    return len(took_part)

"""Ctrl-C and SIGTERM. In the command: the first stops it with its state saved, the second ends it at once. In a process that Ray runs:
SIGTERM, which is how a machine says that it goes away, ends the process after the next checkpoint.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS = 130
TOGETHER = 0.3
"""Signals within so many seconds are one: supervisors send theirs to a process and to its group."""
STOPPING = b"\ntlray: stopping; once more to leave at once\n"
LEAVING = b"\x1b[?25h\ntlray: left at once; what was saved before goes on with --resume\n"  # with the cursor, which a bar had hidden

asked = threading.Event()
"""Set by the first signal."""
_patient = threading.Event()
_installed = threading.Event()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if not asked.is_set():
        asked.set()
        if not _patient.is_set():
            raise KeyboardInterrupt


def install() -> bool:
    """Put our handlers in their place again, after others have (`ray.init` takes SIGTERM); False, and nothing, outside of `handled`."""
    mine = _installed.is_set() and threading.current_thread() is threading.main_thread()
    if mine:
        for number in SIGNALS:
            signal.signal(number, _on_signal)
    return mine


@contextlib.contextmanager
def handled(last: bool = False) -> Iterator[None]:
    """For the length of the block the first signal raises KeyboardInterrupt, or asks who is `patient`, and the second ends the process.

    Nothing in a thread, which gets no signals, nor in another such block. last: the process ends with the block, so that after a first
    signal all stays as it is: Ray takes some seconds to shut down, which a second one shall cut short too.
    """
    if _installed.is_set() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    asked.clear()
    _installed.set()
    # Python's handler has to wait until the main thread comes out of Ray or torch: the second signal must not.
    watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    install()
    try:
        yield
    finally:
        if not (last and asked.is_set()):
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            signal.set_wakeup_fd(wakeup)
            _installed.clear()
            asked.clear()
            os.close(writer)
            watcher.join()
            os.close(reader)


def _watch(reader: int) -> None:
    """Say what the first signal does, and leave with the second."""
    first = None
    while number := os.read(reader, 1):
        if number[0] not in SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
            _tell(STOPPING)
        elif time.monotonic() - first > TOGETHER:
            _tell(LEAVING)
            for process in descendants(os.getpid()):  # a Ray of our own above all, whose agents outlive it by minutes
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(process, signal.SIGKILL)
            os._exit(STATUS)


def _tell(text: bytes) -> None:
    """Write to standard error where there is one: a closed one's number may be another file's by now."""
    if sys.__stderr__ is not None:
        with contextlib.suppress(OSError):  # Ctrl-C ends the reader of a pipe too
            os.write(2, text)


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that they have; none where the system has no /proc."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [process]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """A block that looks at `asked` by itself and ends soon once it is set; then KeyboardInterrupt comes after it."""
    _patient.set()
    try:
        yield
    finally:
        _patient.clear()
    if asked.is_set() and _installed.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


_notice = threading.Event()
"""Set in a process that Ray runs when it was told to go while it trained."""
_training = threading.Event()


def heed_notice() -> None:
    """Let SIGTERM end this process of Ray's after its next checkpoint where it trains, a second one at once. For its main thread."""
    rays = signal.getsignal(signal.SIGTERM)

    def told(number: int, frame: FrameType | None) -> None:
        if _training.is_set() and not _notice.is_set():
            _notice.set()
        elif callable(rays):
            rays(number, frame)

    signal.signal(signal.SIGTERM, told)


@contextlib.contextmanager
def leaving_when_told() -> Iterator[Callable[[], None]]:
    """For a training: gives what to call after each checkpoint, which ends the process where it was told to go.

    Ray then starts the training again elsewhere, from that checkpoint.
    """

    def leave_if_told() -> None:
        if _notice.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait()  # the main thread ends the process

    _training.set()
    try:
        yield leave_if_told
    finally:
        _training.clear()

"""A real S3 protocol server on loopback in a process of its own, and a gate in front of it that can be shut and opened."""

import os
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from waiting import wait_until

BUCKET = "runs"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests-secret", "AWS_EC2_METADATA_DISABLED": "true"}


def server() -> Path:
    """moto's server, in an environment of its own: what it needs does not go with the versions that tlray is tested with."""
    return Path(sys.prefix, "s3-server", "bin", "moto_server")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass
class Gate:
    """Passes connections on to the server; shut, it refuses new ones and cuts those that are open, as a server that died does."""

    to: int
    port: int = field(default_factory=free_port)
    passed: int = 0
    _stop: threading.Event | None = None
    _thread: threading.Thread | None = None

    def open(self) -> None:
        self._stop = threading.Event()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._thread = threading.Thread(target=self._run, args=(listener, self._stop), daemon=True)
        self._thread.start()

    def shut(self) -> None:
        if self._stop and self._thread:
            self._stop.set()
            self._thread.join()

    def _run(self, listener: socket.socket, stop: threading.Event) -> None:
        other: dict[socket.socket, socket.socket] = {}
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            stack.enter_context(listener)
            selector.register(listener, selectors.EVENT_READ)
            while not stop.is_set():
                for key, _ in selector.select(timeout=0.1):
                    one = key.fileobj
                    assert isinstance(one, socket.socket)
                    if one is listener:
                        pair = (listener.accept()[0], socket.create_connection(("127.0.0.1", self.to)))
                        for here, there in (pair, pair[::-1]):
                            other[here] = there
                            selector.register(here, selectors.EVENT_READ)
                        self.passed += 1
                    elif one in other and not self._forward(one, other[one]):
                        for each in (one, other[one]):
                            selector.unregister(each)
                            del other[each]
                            each.close()
            for each in other:
                each.close()

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket) -> bool:
        try:
            data = source.recv(1 << 16)
            target.sendall(data)
        except OSError:
            return False
        return bool(data)


@dataclass(frozen=True)
class Store:
    """A bucket on a server. uri: of the bucket. process: the server's. gate: what stands in front of it."""

    process: subprocess.Popen
    gate: Gate

    @property
    def options(self) -> str:
        return f"endpoint_override=127.0.0.1:{self.gate.port}&scheme=http&region=us-east-1"

    def uri(self, key: str) -> str:
        return f"s3://{BUCKET}/{key}?{self.options}"


@contextmanager
def served(log: Path, **settings: str) -> Iterator[Store]:
    """A server with an empty bucket for the length of the block; CREDENTIALS stand in the environment of all tests.

    settings: moto's own, as environment variables.
    """
    from pyarrow.fs import FileSystem

    port = free_port()
    with ExitStack() as stack, open(log, "wb") as out:
        command = [str(server()), "-H", "127.0.0.1", "-p", str(port)]
        process = stack.enter_context(subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | settings))
        stack.callback(process.kill)
        wait_until(lambda: answers(port) or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        gate = Gate(port)
        gate.open()
        stack.callback(gate.shut)
        store = Store(process, gate)
        filesystem, _ = FileSystem.from_uri(f"s3://{BUCKET}?{store.options}&allow_bucket_creation=true")
        filesystem.create_dir(BUCKET)
        yield store

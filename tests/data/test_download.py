"""Looking for hosts and downloading, against servers on loopback."""

import functools
import http.server
import socket
import threading
import time
from pathlib import Path

import medmnist
import numpy as np
import pytest
from torchvision.datasets import MNIST

from tlray.cache import Places, file_digest
from tlray.data import download
from tlray.data.task import available, open_task
from tlray.errors import DataError
from tlray.registry import TASKS


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and logs nothing."""

    def log_message(self, format, *args):
        pass


class Refusing(Quiet):
    """Answers every request as a proxy does that does not let it through."""

    def do_HEAD(self):
        self.send_error(403)


@pytest.fixture
def serve(tmp_path):
    """`serve(handler)` serves `tmp_path/web` and returns its address."""
    servers = []
    (tmp_path / "web").mkdir()

    def start(handler=Quiet) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path / "web")))
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def online(tmp_path: Path) -> Places:
    return Places(data=None, cache=str(tmp_path / "cache"), offline=False)


def put_breast(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small breastmnist.npz on the server, with its address and checksum in place of the official ones."""
    path = tmp_path / "web" / "breastmnist.npz"
    arrays = {f"{split}_images": np.zeros((4, 28, 28), np.uint8) for split in ("train", "val", "test")}
    np.savez(path, **arrays, **{f"{split}_labels": np.array([[0], [1], [0], [1]]) for split in ("train", "val", "test")})  # type: ignore[arg-type]
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "url", f"{address}/breastmnist.npz?download=1")
    monkeypatch.setitem(medmnist.INFO["breastmnist"], "MD5", file_digest(path, "md5"))
    return path


def test_a_set_is_downloaded_checked_and_kept(monkeypatch, tmp_path, serve):
    put_breast(tmp_path, serve(), monkeypatch)
    assert available("breastmnist", 28, online(tmp_path)) is None
    assert not (tmp_path / "cache").exists(), "looking downloads nothing"
    assert len(open_task("breastmnist", 28, online(tmp_path)).train) == 4
    assert (tmp_path / "cache" / "downloads" / "breastmnist.npz").is_file()
    offline = Places(data=None, cache=str(tmp_path / "cache"), offline=True)
    assert open_task("breastmnist", 32, offline).size == 32, "another size is made from the kept file"


def test_offline_opens_no_connection(monkeypatch, tmp_path, serve):
    put_breast(tmp_path, serve(), monkeypatch)
    assert "offline" in (available("breastmnist", 28, Places(None, str(tmp_path / "cache"), True)) or "")


def test_a_wrong_checksum_is_an_error_and_the_file_is_not_kept(monkeypatch, tmp_path, serve):
    path = put_breast(tmp_path, serve(), monkeypatch)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"gave a file with MD5 .* it was not kept"):
        open_task("breastmnist", 28, online(tmp_path))
    assert not [each for each in (tmp_path / "cache" / "downloads").iterdir() if each.suffix != ".lock"]


def test_a_download_that_fails_is_one_sentence(tmp_path, serve):
    with pytest.raises(DataError, match=r"none\.npz could not be downloaded"):
        download.fetch(f"{serve()}/none.npz", "none.npz", "0", online(tmp_path))


def test_mnist_comes_from_the_first_mirror_that_answers(monkeypatch, tmp_path, serve, shared):
    for path in (shared / "data" / "mnist" / "MNIST" / "raw").glob("*.gz"):
        (tmp_path / "web" / path.name).symlink_to(path)
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{closed_port()}/", f"{serve()}/"])
    assert available("mnist", 28, online(tmp_path)) is None
    raw = TASKS["mnist"]("mnist", 28, online(tmp_path)).load()
    assert len(raw.splits["train"].images) == 60000
    assert raw.source["path"] == str(tmp_path / "cache" / "downloads")


def closed_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_a_closed_port_is_known_at_once():
    start = time.monotonic()
    assert not download.reachable(f"http://127.0.0.1:{closed_port()}/a")
    assert time.monotonic() - start < 1


def test_a_host_is_asked_once(tmp_path, serve):
    address = serve()
    assert download.reachable(f"{address}/")
    assert download.reachable(f"{address}/not-there"), "remembered per host"


def test_a_host_that_refuses_is_not_reachable(serve):
    assert not download.reachable(f"{serve(Refusing)}/")


def test_a_host_that_never_answers_costs_little(monkeypatch):
    monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not download.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        assert 0.2 < time.monotonic() - start < 2


def test_dropped_packets_cost_little(monkeypatch):
    """A full backlog drops the connection requests, as a firewall does."""
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.4)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(full.getsockname())
            waiting.append(client)
        start = time.monotonic()
        assert not download.reachable(f"http://127.0.0.1:{full.getsockname()[1]}/")
        assert 0.3 < time.monotonic() - start < 2
        for client in waiting:
            client.close()


def test_all_look_ups_of_the_default_hosts_fit_the_budget():
    assert 2 * (download.CONNECT_SECONDS + download.ANSWER_SECONDS) <= 15

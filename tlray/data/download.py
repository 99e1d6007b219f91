"""Finding official files on disk, and fetching them with their checksum where they are not."""

import hashlib
import http.client
import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from tlray.cache import Places, atomic_path, file_digest
from tlray.data.raw import prepared_folder
from tlray.errors import DataError

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
"""Longest wait for a host's name and for a connection."""
ANSWER_SECONDS = 4.0
"""Longest wait for a connected host's answer."""
READ_SECONDS = 30.0
"""Longest silence during a download."""


def folders(below: Sequence[str], places: Places) -> list[Path]:
    """Where files are looked for: `places.data`, the folders `below` it (`medmnist`), the cache's downloads."""
    data = [Path(places.data).expanduser()] if places.data else []
    return [*data, *(folder / name for folder in data for name in below), Path(places.cache, "downloads")]


def find(files: Iterable[str], below: Sequence[str], places: Places) -> Path | None:
    """The first folder that holds all of `files`, or None."""
    files = list(files)
    return next((folder for folder in folders(below, places) if all((folder / file).is_file() for file in files)), None)


def to_be_had(key: str, name: str, size: int, urls: Iterable[str], places: Places) -> bool:
    """Whether a source that is not on disk is prepared already, or can be downloaded."""
    return prepared_folder(name, size, key, places).is_dir() or (not places.offline and any(map(reachable, urls)))


def missing(what: str, files: str, below: Sequence[str], urls: Sequence[str], places: Places) -> DataError:
    """The error of a data set that is neither on disk nor to be downloaded now."""
    looked = ", ".join(str(folder) for folder in folders(below, places))
    hosts = " and ".join(dict.fromkeys(urlsplit(url).netloc for url in urls))
    why = "downloads are off (offline)" if places.offline else f"{hosts} cannot be reached"
    return DataError(
        f"{what} is not there: {files} was looked for in {looked}, and {why}; put it into one of these folders, "
        f"name its folder with --data, or connect to the internet ({urls[0]})"
    )


def checked(path: Path, md5: str) -> Path:
    """`path` itself when its content has the official MD5, else DataError."""
    try:
        found = file_digest(path, "md5")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if found != md5:
        raise DataError(
            f"{path} is not the official file (MD5 {found} instead of {md5}): replace it, "
            "or, for an npz file that is meant to differ, use npz:FILE as the task"
        )
    return path


def fetch(url: str, file: str, md5: str, places: Places) -> Path:
    """Download `url` into the cache as `file` unless it is there; the path of a file with this MD5.

    Raises DataError when the download fails or has another MD5; nothing is kept then.
    """
    path = places.folder("downloads") / file
    with FileLock(path.with_name(f".{file}.lock")):
        if path.is_file():
            return path
        log.info("downloading %s", url)
        try:
            with atomic_path(path) as temporary:
                found = _read(url, temporary)
                if found != md5:
                    raise DataError(f"{url} gave a file with MD5 {found} instead of {md5}; it was not kept: try again later")
        except (OSError, http.client.HTTPException) as error:
            raise DataError(f"{url} could not be downloaded to {path}: {error}") from None
    return path


def _read(url: str, path: Path) -> str:
    """Write what `url` gives to `path`; its MD5 in hex."""
    total = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(_request(url), timeout=READ_SECONDS) as answer, open(path, "wb") as file:
        while chunk := answer.read(1 << 20):
            file.write(chunk)
            total.update(chunk)
    return total.hexdigest()


def reachable(url: str) -> bool:
    """Whether a download of `url` is worth a try: its host (or the proxy in between) takes a connection and answers a HEAD request.

    Takes at most 7 s, 3 s where nothing connects, also where packets or name look-ups are dropped in silence; the answer is
    remembered per host for the life of the process.
    """
    parts = urlsplit(url)
    host = f"{parts.scheme}://{parts.netloc}"
    with _probing:
        if host not in _answers:
            _answers[host] = _within(CONNECT_SECONDS, lambda: _connects(url)) and _within(ANSWER_SECONDS, lambda: _answers_to(url))
        return _answers[host]


_answers: dict[str, bool] = {}
_probing = threading.Lock()


def _within(seconds: float, check: Callable[[], bool]) -> bool:
    """`check()`, or False after so many seconds: a name look-up has no time limit of its own, so its thread is left behind."""
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(check()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(result and result[0])


def _connects(url: str) -> bool:
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        port = parts.port or {"http": 80, "": 80}.get(parts.scheme, 443)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _answers_to(url: str) -> bool:
    """A proxy can take the connection and refuse the host, so one request has to come through."""
    try:
        urllib.request.urlopen(_request(url, "HEAD"), timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code in (405, 501)  # the host answers, only not to HEAD
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def _request(url: str, method: str = "GET") -> urllib.request.Request:
    return urllib.request.Request(url, method=method, headers={"User-Agent": "tlray"})

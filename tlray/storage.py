"""Where runs lie: a folder, or a place in an object store that any `pyarrow.fs` URI names. Both answer to the same names.

An object is written whole or not at all, but nothing can be locked, renamed or appended to; `tlray.runs.lease` stands in for the lock.
A store that does not answer is asked again for PATIENCE seconds.
"""

import contextlib
import io
import logging
import posixpath
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from tlray.errors import UNWRITABLE, StorageError
from tlray.patience import within

if TYPE_CHECKING:
    from pyarrow import fs  # at run time only where a store is used: every trial's process imports this module

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

PATIENCE = 120.0
"""Seconds for which a store that does not answer is asked again, before what is done gives up."""
ANSWER, SLOWEST = 60.0, 1e6
"""Longest silence of a store that has taken the question, in seconds, and the slowest transfer that is waited for, in bytes/s."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds between two tries; each pause is twice the one before."""
AT_ONCE = 16
"""Objects that are read at the same time where there are many."""
SETTLED = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "INVALID_CLIENT_TOKEN_ID", "SIGNATURE_DOES_NOT_MATCH",
           "MISSING_AUTHENTICATION_TOKEN", "UNRECOGNIZED_CLIENT", "PERMISSION_DENIED", "PermissionDenied", "Unauthenticated")  # fmt: skip
"""Words of a store that would say the same however often it is asked."""

_handed_over: "dict[RemotePath, str]" = {}
"""Run -> why this process may no longer write there."""


@dataclass(frozen=True, order=True)
class RemotePath:
    """A place in an object store, with as much of pathlib's interface as runs need.

    root: scheme and host of its URI. key: names below it, joined by slashes. query: pyarrow's options, such as `endpoint_override`.

    Every method raises StorageError when the store refuses, or does not answer for PATIENCE seconds.
    """

    root: str
    key: str
    query: str = ""

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(self.root, posixpath.normpath(f"/{self.key}/{name}").strip("/"), self.query)

    @property
    def name(self) -> str:
        return posixpath.basename(self.key)

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.root, *self.key.split("/"))

    @property
    def parent(self) -> "RemotePath":
        return self / ".."

    def resolve(self) -> "RemotePath":
        """Itself: a place in a store has one name."""
        return self

    def is_relative_to(self, other: "RemotePath") -> bool:
        """Whether it lies at or below `other`."""
        return self.parts[: len(other.parts)] == other.parts and self.query == other.query

    def filesystem(self) -> tuple["fs.FileSystem", str]:
        """The pyarrow filesystem and the place in it, for those who take them."""
        filesystem, root = _connected(self.root, self.query)
        return filesystem, posixpath.join(root, self.key).rstrip("/")

    def exists(self) -> bool:
        return bool(self._info().type)

    def is_file(self) -> bool:
        return self._info().is_file

    def is_dir(self) -> bool:
        """Whether objects lie below it; folders are not made."""
        from pyarrow.fs import FileType

        return self._info().type == FileType.Directory

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as something lies in it."""

    def iterdir(self) -> Iterator["RemotePath"]:
        """What lies directly in it, in the order of names; nothing where there is no such folder."""
        return (self / name for name in sorted(info.base_name for info in self.listed()))

    def rglob(self, name: str) -> Iterator["RemotePath"]:
        """Every object of this name below it."""
        below = len(self.filesystem()[1]) + 1
        return (self / info.path[below:] for info in self.listed(recursive=True) if info.base_name == name)

    def listed(self, recursive: bool = False) -> "list[fs.FileInfo]":
        """What the store says of everything in it; nothing where there is no such folder."""
        from pyarrow.fs import FileSelector

        return self._ask(lambda store, path: store.get_file_info(FileSelector(path, allow_not_found=True, recursive=recursive)))

    def modified(self) -> float:
        """When it was last written by the store's own clock, seconds since 1970. FileNotFoundError when it is not there."""
        return self._object().mtime_ns / 1e9

    def read_bytes(self) -> bytes:
        """The whole object. FileNotFoundError when it is not there."""

        def read(store: "fs.FileSystem", path: str) -> bytes:
            while True:
                with store.open_input_file(path) as file:
                    data = file.read()
                if store.get_file_info(path).size == len(data):  # else it was replaced between pyarrow's look at its size and its reading
                    return data

        return self._ask(read, size=self._object().size)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_range(self, start: int, length: int) -> bytes:
        """Some bytes of the object, fewer where it ends."""

        def read(store: "fs.FileSystem", path: str) -> bytes:
            with store.open_input_file(path) as file:
                return file.read_at(length, start)

        return self._ask(read)

    def write_bytes(self, data: bytes) -> None:
        """Write the whole object; a reader sees the old one or the new one."""
        self._put(lambda: io.BytesIO(data), len(data))

    def upload(self, file: Path) -> None:
        """Write the object from a file, piece by piece."""
        self._put(lambda: file.open("rb"), file.stat().st_size)

    def download(self, file: Path) -> None:
        """Write the object's content to a file, piece by piece. FileNotFoundError when it is not there, OSError when the disk is full."""

        def fetch(store: "fs.FileSystem", path: str) -> None:
            try:
                with store.open_input_stream(path) as source, open(file, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 22)
            except OSError as error:
                if error.errno in UNWRITABLE:
                    error.filename = str(file)
                raise

        self._ask(fetch, size=self._object().size)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            self._alter(lambda store, path: store.delete_file(path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Delete everything below it."""
        with contextlib.suppress(FileNotFoundError):
            self._alter(lambda store, path: store.delete_dir(path))

    def reach(self) -> None:
        """Raise StorageError at once unless the store answers and takes what is written; makes its bucket where the query allows."""

        def probe(store: "fs.FileSystem", path: str) -> None:
            from pyarrow.fs import FileType

            bucket = path.partition("/")[0]
            if parse_qs(self.query).get("allow_bucket_creation") == ["true"] and store.get_file_info(bucket).type == FileType.NotFound:
                store.create_dir(bucket)
            trial = f"{path}.tlray-probe-{secrets.token_hex(4)}"
            with store.open_output_stream(trial) as stream:
                stream.write(b"whether this place can be written")
            store.delete_file(trial)

        try:
            self._ask(probe, patience=0.0)
        except FileNotFoundError as error:
            raise StorageError(f"{self} cannot be used ({_said(error)}): check the bucket's name") from None

    def knock(self) -> None:
        """Raise StorageError at once unless the store answers; what there is in it does not matter."""
        self._ask(lambda store, path: store.get_file_info(path), patience=0.0)

    def _info(self) -> "fs.FileInfo":
        return self._ask(lambda store, path: store.get_file_info(path))

    def _object(self) -> "fs.FileInfo":
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(2, "there is no such object", str(self))
        return info

    def _put(self, source: Callable[[], Any], size: float) -> None:
        def put(store: "fs.FileSystem", path: str) -> None:
            with source() as opened, store.open_output_stream(path) as stream:
                shutil.copyfileobj(opened, stream, 1 << 22)

        self._alter(put, size)

    def _alter(self, what: Callable[["fs.FileSystem", str], None], size: float = 0) -> None:
        """`_ask` for what alters something: no try of it once the run belongs to somebody else."""

        def fenced(store: "fs.FileSystem", path: str) -> None:
            if why := handed_over(self):
                raise StorageError(why)
            what(store, path)

        self._ask(fenced, size=size)

    def _ask(self, what: Callable[["fs.FileSystem", str], Answer], patience: float | None = None, size: float = 0) -> Answer:
        """Do it, again and again while the store does not answer. FileNotFoundError is an answer. size: bytes that go to and fro."""
        until, pause = time.monotonic() + (PATIENCE if patience is None else patience), FIRST_PAUSE
        while True:
            try:
                return within(ANSWER + size / SLOWEST, lambda: what(*self.filesystem()))
            except FileNotFoundError:
                raise
            except OSError as error:
                if error.errno in UNWRITABLE:  # the disk of this machine says so, which a file comes from or goes to
                    raise
                said = _said(error)
                if any(word in str(error) for word in SETTLED):
                    raise StorageError(f"{self} is refused ({said}): check the bucket's name, the credentials and their rights") from None
                if time.monotonic() >= until:
                    waited = "" if patience == 0 else f" for {PATIENCE:.0f} s"
                    later = "" if patience == 0 else "; what is done is saved, --resume goes on when it answers"
                    raise StorageError(f"{self} did not answer{waited} ({said}): check address, region and network{later}") from None
                log.warning("%s does not answer (%s), trying again", self.root, said)
            time.sleep(min(pause, max(0.0, until - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)


AnyPath = Path | RemotePath
"""A place in a file system or in a store."""


def place(where: "str | AnyPath") -> AnyPath:
    """A path, or the place in an object store that a URI names; `file://` URIs are paths. Nothing is asked yet.

    Raises StorageError for a URI that pyarrow does not understand, and for one that carries a password.
    """
    if not isinstance(where, str) or "://" not in where:
        return where if isinstance(where, RemotePath) else Path(where)
    try:
        parts = urlsplit(where)
        secret = parts.password is not None
    except ValueError:
        raise StorageError("the storage's URI cannot be understood: name a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER") from None
    if secret:
        raise StorageError(
            "a storage URI with a password in it would be shown in reports and logs: leave it out and set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or what your store has in their place"
        )
    if parts.scheme == "file" and not parts.netloc:
        return Path(parts.path)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise StorageError(f"{where} is no place to store in: name a folder, or SCHEME://BUCKET/FOLDER with one of {', '.join(SCHEMES)}")
    return RemotePath(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), parts.query)


SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
"""What pyarrow opens by itself."""


def remove_tree(folder: AnyPath) -> None:
    """Delete a folder and what lies in it; nothing where there is none."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.remove_tree()


@contextlib.contextmanager
def at_hand(file: AnyPath) -> Iterator[Path]:
    """A file itself, or a copy of an object for the length of the block. FileNotFoundError when there is no such object."""
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="tlray-") as folder:
        copy = Path(folder, file.name)
        file.download(copy)
        yield copy


def for_each(files: Sequence[AnyPath], work: Callable[[AnyPath], Answer]) -> list[Answer]:
    """What `work` makes of each file, in their order; with files of a store it does several at once, as each waits for an answer."""
    if len(files) < 2 or isinstance(files[0], Path):
        return [work(file) for file in files]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, files))


def hand_over(run: RemotePath, why: str) -> None:
    """Forbid this process to write or delete below `run`: it belongs to somebody else now."""
    _handed_over[run] = why


def take_back(run: RemotePath) -> None:
    """Allow it again."""
    _handed_over.pop(run, None)


def handed_over(where: AnyPath) -> str | None:
    """Why this process may no longer write there, None where it may."""
    if isinstance(where, Path):
        return None
    return next((why for run, why in _handed_over.items() if where.is_relative_to(run)), None)


@lru_cache(maxsize=16)
def _connected(root: str, query: str) -> tuple["fs.FileSystem", str]:
    """The filesystem of a store and the name of its root in there; one for all of a process."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    try:
        return FileSystem.from_uri(root + (f"?{query}" if query else ""))
    except (ArrowException, ValueError) as error:
        raise StorageError(f"{root} cannot be understood with the options {query!r} ({_said(error)}): check them") from None


def _said(error: BaseException) -> str:
    """What pyarrow says, in one line and not at length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:237]}..."

"""Files that are made once and read by many processes: atomic, locked, keyed by content."""

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tlray.errors import ConfigError, unwritable
from tlray.storage import AnyPath, RemotePath, at_hand


def default_cache() -> str:
    """`$TLRAY_CACHE`, else `~/.cache/tlray`; absolute, since trials may run elsewhere. Raises ConfigError for a home of nobody."""
    named = os.environ.get("TLRAY_CACHE") or "~/.cache/tlray"
    try:
        return str(Path(named).expanduser().absolute())
    except RuntimeError:
        raise ConfigError(f"the cache {named}: there is no such home folder, name another one in TLRAY_CACHE") from None


@dataclass(frozen=True)
class Places:
    """Where data, weights and prepared arrays are looked for and kept. Travels with a run, is no part of a Config."""

    data: str | None = field(default_factory=lambda: os.environ.get("TLRAY_DATA"))
    """Folder of the user's data files (or of `medmnist/`, `mnist/`, ...), searched before the cache."""
    cache: str = field(default_factory=default_cache)
    """Folder for downloads, prepared arrays, pretrained weights and frozen features."""
    offline: bool = False
    """Never open a socket to look for data or weights."""
    run: str | None = None
    """Directory of the run that reads; while it is unfinished the features that it has read are kept."""
    shelf: str | None = None
    """Where the nodes of this run lend each other what they have in their caches, see `tlray.lending`."""

    def folder(self, *parts: str) -> Path:
        """A folder below the cache, made when missing."""
        path = Path(self.cache, *parts)
        path.mkdir(parents=True, exist_ok=True)
        return path


def digest(*parts: Any) -> str:
    """sha256 in hex over bytes (as they are) and anything else (as canonical JSON)."""
    total = hashlib.sha256()
    for part in parts:
        data = bytes(part) if isinstance(part, bytes | memoryview) else json.dumps(part, sort_keys=True).encode()
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def array_digest(array: Any) -> str:
    """sha256 in hex of an array's type, shape and values; reads a memory-mapped array in pieces."""
    total = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    rows = max(1, (1 << 24) // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        total.update(array[start : start + rows].tobytes())
    return total.hexdigest()


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, both synced to disk, when the block ends well; else nothing stays."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and unwritable(error):
            error.filename = str(path)  # a full disk shows in a write, which does not know where
        raise


def _sync_folder(folder: Path) -> None:
    """Let a name that was just written in a folder outlast a power cut, where the file system can promise that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: str | AnyPath, data: bytes) -> None:
    """Write a whole file or object atomically."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def copy_file(source: AnyPath, target: AnyPath) -> None:
    """Copy a file to or from a store, or on the disk, whole or not at all. FileNotFoundError when there is no such file."""
    if isinstance(target, RemotePath):
        with at_hand(source) as file:
            target.upload(file)
        return
    with atomic_path(target) as temporary:
        if isinstance(source, RemotePath):
            source.download(temporary)
        else:
            shutil.copyfile(source, temporary)


def append_line(path: AnyPath, line: str) -> None:
    """Add a line to a text file and sync it to disk. An object is written anew with it, so one process at a time may."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, RemotePath):
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + f"{line}\n".encode())
        return
    new = not path.exists()
    with open(path, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")  # a line that was cut off stays one by itself
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())
    if new:
        _sync_folder(path.parent)


def write_json(path: str | AnyPath, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinities become null."""
    write_bytes(path, json.dumps(finite(value), indent=2, allow_nan=False).encode() + b"\n")


DAMAGED = (
    OSError, ValueError, TypeError, LookupError, AttributeError, EOFError, MemoryError, RuntimeError, OverflowError, struct.error,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What parsers raise over a file that is not what it should be, or claims to be larger than any memory."""


def ordinary(path: str | AnyPath) -> None:
    """Raise OSError where something stands that is no ordinary file: reading a pipe or a device may never end."""
    if isinstance(path, RemotePath):
        return
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


def read_json(path: AnyPath) -> Any:
    """What a JSON file holds. Raises OSError when it cannot be read, ValueError when it is damaged."""
    ordinary(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite(value: Any) -> Any:
    """The same nested value with plain Python numbers, and None for NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def write_sealed(path: str | AnyPath, value: dict[str, Any]) -> None:
    """Write a JSON object together with the digest of its content, atomically."""
    plain = finite(value)
    write_json(path, {**plain, "digest": digest(plain)})


def read_sealed(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object. Raises OSError, or ValueError where it is damaged or not what was written; one without a digest is believed."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    said = value.pop("digest", None)
    if said is not None and said != digest(value):
        raise ValueError("its content does not match its digest")
    return value


def map_new(path: str | Path, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A new .npy file of this type and shape, memory-mapped for writing, its room on the disk taken.

    Raises OSError where there is no room: a write to mapped pages that have none would end the process (SIGBUS).
    """
    import numpy as np

    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with open(path, "r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from None
    return array


def save_array(path: str | Path, array: Any) -> None:
    """Write a small array as .npy; NumPy's own `save` does not say why it could not write."""
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    Path(path).write_bytes(buffer.getvalue())


def build_once(folder: str | Path, build: Callable[[Path], None]) -> Path:
    """Fill `folder` by `build(temporary folder)` unless it is there; whole or not at all, once over all processes.

    Others that ask meanwhile wait. A process that is killed leaves a temporary folder that no reader looks at.
    """
    folder = Path(folder)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{folder.name}.making-*"):
                shutil.rmtree(left, ignore_errors=True)
            temporary = folder.with_name(f".{folder.name}.making-{secrets.token_hex(4)}")
            temporary.mkdir()  # as open to others as the user's folders are: they may share the cache
            try:
                build(temporary)
                os.replace(temporary, folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder

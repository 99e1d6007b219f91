"""Checkpoints of one training: one safetensors file each, named by its own digest, so a torn or altered one is never loaded.

A checkpoint holds the stages that have trained, the head, the optimizer's state and the history; frozen stages are named by their
key. Random numbers are a function of (seed, epoch, rank), and what is trainable and at which rate a function of the history, so
neither is stored.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tlray.cache import finite, ordinary, write_bytes
from tlray.errors import RunError, StorageError, raise_unless_of_the_file
from tlray.storage import AnyPath, RemotePath

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
NAME = re.compile(r"epoch-(\d{5})-([0-9a-f]{16})\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """State after an epoch.

    tensors: `model.<key>` of the stages that have trained and of the head, `optimizer.<parameter>.<name>`.
    meta: config, epoch, history (one dict per epoch), encoder (key of the weights that training started from), best (epoch).
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    @property
    def epoch(self) -> int:
        return self.meta["epoch"]


def save_checkpoint(folder: AnyPath, checkpoint: Checkpoint, ended: Callable[[], bool] = lambda: False) -> AnyPath:
    """Write a checkpoint whole and synced, then drop those that are no longer needed.

    Kept are the newest, the best epoch's, and one before the newest when these two are the same. `ended`, asked in between, says that
    somebody has put an end to the training and chosen among what is there: then all stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = save(checkpoint.tensors, metadata={"tlray": json.dumps(finite(checkpoint.meta))})
    path = folder / f"epoch-{checkpoint.epoch:05d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    write_bytes(path, data)
    if not ended():
        _prune(folder, checkpoint)
    return path


def _prune(folder: AnyPath, checkpoint: Checkpoint) -> None:
    keep = {checkpoint.epoch, checkpoint.meta["best"]}
    for epoch, path in reversed(found(folder)):
        if len(keep) < 2 and epoch < checkpoint.epoch:
            keep.add(epoch)
        if epoch not in keep:
            path.unlink(missing_ok=True)


def thin(folder: AnyPath, epoch: int) -> None:
    """Keep the checkpoint of one epoch of a training that has ended, on a disk without its optimizer's state; delete the others.

    Raises RunError when that checkpoint is missing or damaged; then nothing is deleted.
    """
    kept = None
    if not isinstance(folder, RemotePath):  # from a store it would have to travel here and back
        whole = checkpoint_of_epoch(folder, epoch)
        tensors = {key: value for key, value in whole.tensors.items() if not key.startswith("optimizer.")}
        kept = save_checkpoint(folder, Checkpoint(tensors, whole.meta)) if len(tensors) < len(whole.tensors) else None
    for number, path in found(folder):
        if number != epoch or (kept is not None and path != kept):
            path.unlink(missing_ok=True)


def found(folder: AnyPath) -> list[tuple[int, AnyPath]]:
    """(epoch, file) of every checkpoint in `folder`, oldest first; temporary files are none."""
    if not isinstance(folder, RemotePath) and not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))


def load_checkpoint(path: AnyPath) -> Checkpoint:
    """Read a checkpoint. Raises RunError when its content is not what was written, OSError when the system does not give it."""
    match = NAME.fullmatch(path.name)
    try:
        ordinary(path)
        data = path.read_bytes()
        if not match or hashlib.sha256(data).hexdigest()[:16] != match[2]:
            raise RunError(f"{path} is damaged: its content does not match the digest in its name")
        return Checkpoint(load(data), _meta(data[8 : 8 + _header(data)]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise_unless_of_the_file(error, path)
        raise RunError(f"{path} cannot be read: {error}") from None


def _header(data: bytes) -> int:
    """Bytes of the JSON after the first eight of a safetensors file."""
    return int.from_bytes(data[:8], "little")


def _meta(header: bytes) -> dict[str, Any]:
    return json.loads(json.loads(header)["__metadata__"]["tlray"])


def newest_checkpoint(folder: AnyPath) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning. None when there is none.

    Raises OSError when the system does not give one that may be whole: the next save would delete it.
    """
    return _first_whole([path for _, path in reversed(found(folder))], load_checkpoint)


def newest_history(folder: AnyPath) -> list[dict[str, Any]]:
    """The history in the newest checkpoint, empty when there is none. From a store only the file's head is fetched."""
    paths = [path for _, path in reversed(found(folder))]
    if isinstance(folder, RemotePath):
        return _first_whole(paths, _head) or []
    newest = _first_whole(paths, load_checkpoint)
    return newest.meta["history"] if newest else []


def _head(path: AnyPath) -> list[dict[str, Any]]:
    assert isinstance(path, RemotePath)
    try:
        return _meta(path.read_range(8, _header(path.read_range(0, 8))))["history"]
    except (OSError, LookupError, ValueError) as error:
        raise_unless_of_the_file(error, path)
        raise RunError(f"{path} cannot be read: {error}") from None


def checkpoint_of_epoch(folder: AnyPath, epoch: int) -> Checkpoint:
    """The checkpoint of one epoch. Raises RunError when it is not there or damaged."""
    whole = _first_whole([path for number, path in found(folder) if number == epoch], load_checkpoint)
    if whole is None:
        raise RunError(f"{folder} has no whole checkpoint of epoch {epoch}: remove {folder.parent} and resume, that training runs anew")
    return whole


def _first_whole(paths: list[AnyPath], read: Callable[[AnyPath], Answer]) -> Answer | None:
    for path in paths:
        try:
            return read(path)
        except StorageError:
            raise
        except RunError as error:
            log.warning("%s; looking for another", error)
    return None

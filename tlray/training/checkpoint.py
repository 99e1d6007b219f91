"""Checkpoints of one training: one safetensors file each, named by its own digest, so a torn or altered one is never loaded.

A checkpoint holds the stages that have trained, the head, the optimizer's state and the history; frozen stages are named by their
key. Random numbers are a function of (seed, epoch, rank), and what is trainable and at which rate a function of the history, so
neither is stored.
"""

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tlray.cache import finite, ordinary, write_bytes
from tlray.errors import RunError

log = logging.getLogger(__name__)
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


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint whole and synced, then drop those that are no longer needed.

    Kept are the newest, the best epoch's, and one before the newest when these two are the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = save(checkpoint.tensors, metadata={"tlray": json.dumps(finite(checkpoint.meta))})
    path = folder / f"epoch-{checkpoint.epoch:05d}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    write_bytes(path, data)
    _prune(folder, checkpoint)
    return path


def _prune(folder: Path, checkpoint: Checkpoint) -> None:
    keep = {checkpoint.epoch, checkpoint.meta["best"]}
    for epoch, path in reversed(found(folder)):
        if len(keep) < 2 and epoch < checkpoint.epoch:
            keep.add(epoch)
        if epoch not in keep:
            path.unlink(missing_ok=True)


def thin(folder: Path, epoch: int) -> None:
    """Keep the checkpoint of one epoch of a training that has ended, without its optimizer's state; delete the others.

    Raises RunError when that checkpoint is missing or damaged; then nothing is deleted.
    """
    whole = checkpoint_of_epoch(folder, epoch)
    tensors = {key: value for key, value in whole.tensors.items() if not key.startswith("optimizer.")}
    kept = save_checkpoint(folder, Checkpoint(tensors, whole.meta)) if len(tensors) < len(whole.tensors) else None
    for number, path in found(folder):
        if number != epoch or (kept is not None and path != kept):
            path.unlink(missing_ok=True)


def found(folder: Path) -> list[tuple[int, Path]]:
    """(epoch, file) of every checkpoint in `folder`, oldest first; temporary files are none."""
    if not folder.is_dir():
        return []
    return sorted((int(match[1]), path) for path in folder.iterdir() if (match := NAME.fullmatch(path.name)))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises RunError when its content is not what was written."""
    match = NAME.fullmatch(path.name)
    try:
        ordinary(path)
        if not match or hashlib.sha256(path.read_bytes()).hexdigest()[:16] != match[2]:
            raise RunError(f"{path} is damaged: its content does not match the digest in its name")
        with safe_open(path, framework="pt") as file:
            return Checkpoint({key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["tlray"]))  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning. None when there is none."""
    return _first_whole([path for _, path in reversed(found(folder))])


def checkpoint_of_epoch(folder: Path, epoch: int) -> Checkpoint:
    """The checkpoint of one epoch. Raises RunError when it is not there or damaged."""
    whole = _first_whole([path for number, path in found(folder) if number == epoch])
    if whole is None:
        raise RunError(f"{folder} has no whole checkpoint of epoch {epoch}: remove {folder.parent} and resume, that training runs anew")
    return whole


def _first_whole(paths: list[Path]) -> Checkpoint | None:
    for path in paths:
        try:
            return load_checkpoint(path)
        except RunError as error:
            log.warning("%s; looking for another", error)
    return None

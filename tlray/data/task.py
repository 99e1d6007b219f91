"""A task is a prepared data set without its test split: the one thing that training sees of the data."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlray.cache import DAMAGED, Places, build_once, read_json
from tlray.data.raw import Raw, RawSplit, Source, prepared_folder
from tlray.errors import DataError, refusal, unwritable
from tlray.lending import borrow_task
from tlray.registry import TASKS

__all__ = ["Raw", "RawSplit", "Source", "Split", "Task", "available", "open_split", "open_task"]


@dataclass(frozen=True)
class Split:
    """Images and labels, index by index.

    images: uint8 [N, C, H, W], read-only memory-mapped, C in {1, 3}.
    labels: int64 [N] (binary, multiclass, ordinal) or uint8 [N, L] of 0/1 (multilabel).
    groups: int64 [N] (patients) or None.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Task:
    """A prepared data set: train and val. The test split is opened by `tlray.data.held_out.open_test` alone."""

    name: str
    spec: str
    kind: str
    classes: tuple[str, ...]
    channels: int
    size: int
    train: Split
    val: Split
    source: dict[str, Any]
    audit: dict[str, Any]
    fingerprint: str
    folder: Path


def open_task(spec: str, size: int, places: Places) -> Task:
    """Open a task's arrays `size` pixels on a side, preparing them once for all processes when they are missing.

    In a run they are those that its driver has lent, whatever this node has under that name.

    Raises DataError when the data cannot be had or cannot be used, ConfigError for an unknown name.
    """
    return _read(spec, borrow_task(spec, size, places) or _prepared(spec, size, places))


def _prepared(spec: str, size: int, places: Places) -> Path:
    source = _source(spec, size, places)
    folder = prepared_folder(source.name, size, source.key, places)
    if not folder.is_dir():
        from tlray.data.prepare import prepare  # torch and scikit-learn are needed to prepare, not to read

        try:
            build_once(folder, lambda temporary: prepare(source, size, temporary))
        except OSError as error:
            if unwritable(error):
                raise DataError(f"{spec} cannot be prepared in {folder}: {refusal(error)}") from None
            raise DataError(f"{spec} cannot be prepared in {folder}: {error}") from None
    return folder


def available(spec: str, size: int, places: Places) -> str | None:
    """None when `spec` can be opened (prepared, found, or downloadable), else the sentence that says why not."""
    try:
        _source(spec, size, places)
    except DataError as error:
        return str(error)
    return None


def open_split(folder: Path, name: str) -> Split:
    """Memory-map the prepared arrays of one split, read-only. Test is read through `held_out` only."""
    arrays = {part: folder / f"{name}_{part}.npy" for part in ("images", "labels", "groups")}
    images = np.load(arrays["images"], mmap_mode="r", allow_pickle=False)
    labels = np.load(arrays["labels"], allow_pickle=False)
    groups = np.load(arrays["groups"], allow_pickle=False) if arrays["groups"].exists() else None
    return Split(images, labels, groups)


def _source(spec: str, size: int, places: Places) -> Source:
    from tlray.data import folder, npz

    try:
        if spec.startswith("npz:"):
            return npz.open_file(spec.removeprefix("npz:"))
        if spec.startswith("folder:"):
            return folder.open_folder(spec.removeprefix("folder:"))
        return TASKS[spec](spec, size, places)
    except OSError as error:
        raise DataError(f"{spec} cannot be looked up: {error}") from None


@functools.lru_cache(maxsize=64)
def _read(spec: str, folder: Path) -> Task:
    try:
        meta = read_json(folder / "meta.json")
        train, val = open_split(folder, "train"), open_split(folder, "val")
        return Task(meta["name"], spec, meta["kind"], tuple(meta["classes"]), meta["channels"], meta["size"],
                    train, val, meta["source"], meta["audit"], meta["fingerprint"], folder)  # fmt: skip
    except DAMAGED as error:
        raise DataError(f"the prepared arrays in {folder} are damaged ({error}): delete that folder to have them made anew") from None

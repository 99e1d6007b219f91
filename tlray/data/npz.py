"""`npz:FILE`, the user's own images in MedMNIST's layout; also reads the official files, which have the same."""

import functools
import os
import re
from pathlib import Path

import numpy as np

from tlray.cache import DAMAGED, file_digest
from tlray.data.images import narrow
from tlray.data.raw import Raw, RawSplit, Source
from tlray.errors import DataError

SPLITS = ("train", "val", "test")


def open_file(text: str) -> Source:
    """The source of `npz:FILE`; its name is the file's stem and 8 hex digits of the content.

    Raises DataError when there is no such file.
    """
    path = Path(text).expanduser()
    if not os.path.isfile(path):
        raise DataError(f"npz:{text}: there is no file {path}")
    key = _content(path)
    return Source(key, short_name(path.stem, key), lambda: _load(path, key))


def short_name(stem: str, key: str) -> str:
    """A name for tables and file names from the user's own."""
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '_', stem)[:60]}-{key[:8]}"


def _content(path: Path) -> str:
    try:
        stat = path.stat()
        return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_digest(path)


def _load(path: Path, key: str) -> Raw:
    splits = read_npz(path)
    kind, count = _kind(path, {name: split.labels for name, split in splits.items()})
    classes = tuple(str(number) for number in range(count))
    return Raw(kind, classes, splits, {"file": str(path), "sha256": key})


def _kind(path: Path, labels: dict[str, np.ndarray]) -> tuple[str, int]:
    """The kind that the labels speak of, and the number of classes."""
    every = np.concatenate(list(labels.values()))
    if every.ndim == 2:
        if not np.isin(every, (0, 1)).all():
            raise DataError(f"{path}: train_labels has {every.shape[1]} columns, so it must hold 0 and 1 only (multilabel)")
        return "multilabel", every.shape[1]
    found = np.unique(every)
    if len(found) and not np.array_equal(found, np.arange(len(found))):
        shown = ", ".join(map(str, found[:12])) + (", ..." if len(found) > 12 else "")
        raise DataError(f"{path}: the labels must be 0 to {len(found) - 1} for its {len(found)} classes, but are {shown}")
    return ("binary" if len(found) <= 2 else "multiclass"), max(2, len(found))


def read_npz(path: Path) -> dict[str, RawSplit]:
    """The three splits of a file in MedMNIST's layout.

    `<split>_images`: uint8 or uint16 (65535 becomes 255), [N, H, W] or [N, H, W, 1 or 3].
    `<split>_labels`: whole numbers [N], [N, 1] or [N, L].  `<split>_groups`, optional: numbers or text [N].
    Nothing is unpickled. Raises DataError with the file and the key of what is wrong.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is no npz file but a single array")
        with file:
            if lacking := [key for split in SPLITS for key in (f"{split}_images", f"{split}_labels") if key not in file.files]:
                raise DataError(f"{path} has no {lacking[0]} (it has: {', '.join(sorted(file.files)) or 'nothing'})")
            images = {split: _images(path, f"{split}_images", _member(path, file, f"{split}_images")) for split in SPLITS}
            labels = {split: _labels(path, split, _member(path, file, f"{split}_labels"), len(images[split])) for split in SPLITS}
            grouped = [split for split in SPLITS if f"{split}_groups" in file.files]
            members = {split: _member(path, file, f"{split}_groups") for split in grouped}
            groups = _groups(path, members, {split: len(images[split]) for split in SPLITS})
    except DAMAGED as error:
        raise DataError(f"{path} is no whole npz file ({str(error).split('.')[0].lower()}): copy or download it again") from None
    if len({label.shape[1:] for label in labels.values()}) > 1:
        raise DataError(f"{path}: train, val and test labels differ in their number of columns")
    return {split: RawSplit(images[split], labels[split], groups.get(split)) for split in SPLITS}


def _member(path: Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = file[key]
    except ValueError as error:
        if "bject arrays" in str(error):
            raise DataError(f"{path}: {key} is an object array, which tlray does not unpickle: save it with a numeric type") from None
        raise
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: {key} is no NumPy array")
    return array


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(f"{path}: {key} has shape {list(images.shape)}, but must be [N, H, W] or [N, H, W, 3]")
    if not images.size:
        raise DataError(f"{path}: {key} holds no images (shape {list(images.shape)})")
    if images.dtype.kind == "f" and (bad := ~np.isfinite(images)).any():
        first = int(np.argwhere(bad)[0][0])
        raise DataError(f"{path}: {key} has NaN or infinite pixels (first in image {first}); it must be uint8 from 0 to 255")
    if images.dtype == np.uint16:
        return narrow(images)
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {key} is {images.dtype}, but must be uint8 (0 to 255) or uint16 (0 to 65535): scale and convert it")
    return images


def _labels(path: Path, split: str, labels: np.ndarray, images: int) -> np.ndarray:
    key = f"{split}_labels"
    if labels.ndim not in (1, 2) or (labels.ndim == 2 and not labels.shape[1]):
        raise DataError(f"{path}: {key} has shape {list(labels.shape)}, but must be [N], [N, 1] or [N, L]")
    if len(labels) != images:
        raise DataError(f"{path}: {key} has shape {list(labels.shape)}, but there are {images} images in {split}")
    if labels.dtype.kind not in "biu":
        raise DataError(f"{path}: {key} is {labels.dtype}, but must be whole numbers")
    labels = labels.astype(np.int64)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def _groups(path: Path, found: dict[str, np.ndarray], images: dict[str, int]) -> dict[str, np.ndarray]:
    """int64 codes [N] per split that has groups, equal for equal names over all splits."""
    for split, groups in found.items():
        if groups.reshape(-1).shape != (images[split],) or groups.dtype.kind not in "biuUS":
            raise DataError(
                f"{path}: {split}_groups has shape {list(groups.shape)} and type {groups.dtype}, but must be [{images[split]}] "
                "whole numbers or text"
            )
    if not found:
        return {}
    names, codes = np.unique(np.concatenate([groups.reshape(-1) for groups in found.values()]), return_inverse=True)
    values = names.astype(np.int64) if names.dtype.kind in "biu" else np.arange(len(names))
    ends = np.cumsum([len(groups) for groups in found.values()])[:-1]
    return dict(zip(found, np.split(values[codes], ends), strict=True))

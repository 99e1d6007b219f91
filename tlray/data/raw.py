"""What a source of images gives: decoded arrays at their own resolution, and a key known before they are decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlray.cache import Places, digest

FORMAT = 1
"""Version of the prepared arrays; raise it whenever the same source would be prepared into other values."""


@dataclass(frozen=True)
class RawSplit:
    """One split as decoded.

    images: uint8 [N, H, W] or [N, H, W, 3]; where sizes differ a sequence of [H, W] or [H, W, 3], which may decode each when asked.
    labels: int [N] or [N, 1]; for multilabel [N, L] of 0/1.  groups: int [N] (patients) or None.
    """

    images: np.ndarray | Sequence[np.ndarray]
    labels: np.ndarray
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Raw:
    """A decoded data set. `splits` has "train" and may lack "val", or "val" and "test": they are then split off."""

    kind: str
    classes: tuple[str, ...]
    splits: dict[str, RawSplit]
    source: dict[str, Any]
    """JSON facts: file, checksum, licence, phantom ..."""


@dataclass(frozen=True)
class Source:
    """A data set that can be had. Registered under TASKS is a function (spec, size, places) -> Source.

    That function is cheap: it looks for files, raises DataError when the data cannot be had, and leaves the work to `load`.
    """

    key: str
    """Key of the content, known without decoding (a checksum, a generator's version)."""
    name: str
    """Short name of the task, as it stands in tables and file names."""
    load: Callable[[], Raw]


def prepared_folder(name: str, size: int, key: str, places: Places) -> Path:
    """Where the arrays of a source lie once they are prepared, in the cache."""
    return Path(places.cache, "tasks", f"{name}-{size}-{digest(FORMAT, key, size)[:16]}")

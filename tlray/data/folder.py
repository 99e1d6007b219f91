"""`folder:DIR`, the user's own image files: `train|val|test/class/*.png|jpg`, or `class/*.png|jpg` split by tlray."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tlray.cache import digest, ordinary
from tlray.data.images import read_pixels
from tlray.data.npz import short_name
from tlray.data.raw import Raw, RawSplit, Source
from tlray.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")
GROUPS = "groups.csv"


def open_folder(text: str) -> Source:
    """The source of `folder:DIR`; its name is the folder's name and 8 hex digits over the files' names and lengths.

    `DIR/groups.csv` (a header `path,group`, paths relative to DIR), optional, names each image's group (patient): never cut.
    Raises DataError when there is no such folder, or no images in it.
    """
    root = Path(text).expanduser()
    if not root.is_dir():
        raise DataError(f"folder:{text}: there is no folder {root}")
    layout = _layout(root)
    if not any(layout[split] for split in layout):
        raise DataError(f"folder:{text}: no PNG or JPEG images; they must lie in train|val|test/CLASS/ or in CLASS/")
    files = [path for split in layout.values() for group in split.values() for path in group]
    files += [root / GROUPS] if (root / GROUPS).is_file() else []
    facts = [[path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)]
    name = short_name(root.resolve().name, digest([fact[:2] for fact in facts]))
    return Source(digest(facts), name, lambda: _load(root, layout))


class Files(Sequence):
    """Images decoded when asked for, each time anew: a folder of radiographs need not fit into memory."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_pixels(self.paths[index])


def _layout(root: Path) -> dict[str, dict[str, list[Path]]]:
    """split -> class -> image files, all sorted by name; everything is "train" where the classes lie directly in `root`."""
    if not (root / "train").is_dir():
        return {"train": _classes(root)}
    layout = {split: _classes(root / split) for split in ("train", "val", "test") if (root / split).is_dir()}
    if strange := {name for split in layout.values() for name in split} - set(layout["train"]):
        raise DataError(f"{root}: class {sorted(strange)[0]!r} is not in train (which has {', '.join(map(repr, layout['train']))})")
    return layout


def _classes(folder: Path) -> dict[str, list[Path]]:
    found = {}
    for each in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        files = sorted(path for path in each.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if files and not each.name.isprintable():
            raise DataError(f"{folder}: the class folder {each.name!r} has letters that cannot be printed: rename it")
        if files:
            found[each.name] = files
    return found


def _load(root: Path, layout: dict[str, dict[str, list[Path]]]) -> Raw:
    classes = tuple(layout["train"])
    groups = _groups(root)
    splits = {}
    for split, by_class in layout.items():
        files = [path for files in by_class.values() for path in files]
        labels = np.array([classes.index(name) for name, files in by_class.items() for _ in files], np.int64)
        group = None if groups is None else np.array([_group(root, path, groups) for path in files], np.int64)
        splits[split] = RawSplit(Files(files), labels, group)
    return Raw("binary" if len(classes) <= 2 else "multiclass", classes, splits, {"file": str(root)})


def _groups(root: Path) -> dict[str, int] | None:
    """Path relative to `root` -> number of its group, from `groups.csv`."""
    path = root / GROUPS
    if not os.path.lexists(path):
        return None
    try:
        ordinary(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not rows or [cell.strip() for cell in rows[0]] != ["path", "group"] or any(len(row) != 2 for row in rows if row):
        raise DataError(f"{path} must have the header path,group and two cells in every row")
    names: dict[str, int] = {}
    return {Path(row[0].strip()).as_posix(): names.setdefault(row[1].strip(), len(names)) for row in rows[1:] if row}


def _group(root: Path, path: Path, groups: dict[str, int]) -> int:
    name = path.relative_to(root).as_posix()
    if name not in groups:
        raise DataError(f"{root / GROUPS} has no row for {name}")
    return groups[name]

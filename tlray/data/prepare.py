"""From a source's decoded images to the arrays that every process shares."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tlray.cache import array_digest, digest, map_new, save_array, write_json
from tlray.data.audit import audit, pixel_hashes
from tlray.data.images import RESAMPLING, resize
from tlray.data.raw import Raw, RawSplit, Source
from tlray.data.splits import deal, ties
from tlray.errors import DataError

NAMES = ("train", "val", "test")
SPLIT_SEED = 0
"""Splits that tlray makes are the same for every training."""


def prepare(source: Source, size: int, folder: Path) -> None:
    """Decode, split, audit and resize a source; write its arrays and `meta.json` into `folder`.

    Raises DataError when the data cannot be had, a split is empty, or (single-label kinds) has one class.
    """
    raw = source.load()
    where = str(raw.source.get("file", source.name))
    hashes, shapes = _survey(raw)
    raw, hashes, how = _with_every_split(raw, hashes)
    for name in NAMES:
        _check(raw, name, where)
    channels = 3 if any(len(shape) == 3 for shape in shapes) else 1
    labels = {name: _labels(raw, name) for name in NAMES}
    groups = {name: _int64(raw.splits[name].groups) for name in NAMES}
    prints = {}
    for name in NAMES:
        images = _write_images(folder / f"{name}_images.npy", raw.splits[name].images, channels, size)
        save_array(folder / f"{name}_labels.npy", labels[name])
        if (group := groups[name]) is not None:
            save_array(folder / f"{name}_groups.npy", group)
        prints[name] = digest(*[None if array is None else array_digest(array) for array in (images, labels[name], groups[name])])
    write_json(folder / "meta.json", {
        "name": source.name, "kind": raw.kind, "classes": raw.classes, "channels": channels, "size": size,
        "source": {"phantom": False, **raw.source, "key": source.key, "splits": how, **_resampling(shapes, size)},
        "audit": audit(hashes, labels, groups, raw.kind, raw.classes),
        "fingerprint": digest(prints["train"], prints["val"]), "test_fingerprint": prints["test"],
    })  # fmt: skip


def _survey(raw: Raw) -> tuple[dict[str, np.ndarray], set[tuple[int, ...]]]:
    """One pass over all images: their hashes per split, and the shapes that occur."""
    shapes = set()

    def seen(images: np.ndarray | Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        for image in images:
            shapes.add(image.shape)
            yield image

    return {name: pixel_hashes(seen(split.images)) for name, split in raw.splits.items()}, shapes


def _with_every_split(raw: Raw, hashes: dict[str, np.ndarray]) -> tuple[Raw, dict[str, np.ndarray], str]:
    """The same with train, val and test, and how those that were missing were made."""
    train = raw.splits["train"]
    if all(name in raw.splits for name in NAMES):
        return raw, hashes, "given"
    if "val" in raw.splits:
        raise DataError(f"{raw.source.get('file', 'the data set')} has a val but no test split: add one, or give all images as train")
    if not len(train.images):
        raise DataError(f"{raw.source.get('file', 'the data set')} has no images in train")
    tie = ties(hashes["train"], train.groups)
    if "test" in raw.splits:
        part = np.where(deal(_labels(raw, "train"), tie, 10, SPLIT_SEED) == 0, 1, 0)
        how = "val: 10 % of train"
    else:
        part = np.array([2, 1, 0, 0, 0])[deal(_labels(raw, "train"), tie, 5, SPLIT_SEED)]
        how = "60 % train, 20 % val, 20 % test of all images"
    drawn = "at random" if raw.kind == "multilabel" else "stratified"
    kept = "identical images" + (" and groups" if train.groups is not None else "")
    made, made_hashes = dict(raw.splits), dict(hashes)
    for number, name in enumerate(NAMES[: part.max() + 1]):
        made[name], made_hashes[name] = _take(train, part == number), hashes["train"][part == number]
    ordered = {name: made[name] for name in NAMES}
    ordered_hashes = {name: made_hashes[name] for name in NAMES}
    how = f"{how}, {drawn}, seed {SPLIT_SEED}, {kept} kept together"
    return Raw(raw.kind, raw.classes, ordered, raw.source), ordered_hashes, how


class Chosen(Sequence):
    """Some of a sequence's images, still decoded only when asked for."""

    def __init__(self, images: Sequence[np.ndarray], indices: np.ndarray):
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[int(self.indices[index])]


def _take(split: RawSplit, mask: np.ndarray) -> RawSplit:
    images = split.images[mask] if isinstance(split.images, np.ndarray) else Chosen(split.images, np.flatnonzero(mask))
    return RawSplit(images, split.labels[mask], None if split.groups is None else split.groups[mask])


def _check(raw: Raw, name: str, where: str) -> None:
    split, classes = raw.splits[name], raw.classes
    if not len(split.images):
        raise DataError(f"{where} has no images in {name}")
    if len(split.labels) != len(split.images):
        raise DataError(f"{where} has {len(split.images)} images but {len(split.labels)} labels in {name}")
    if raw.kind != "multilabel" and len(present := np.unique(split.labels)) < 2:
        raise DataError(
            f"{where} has a single class in {name} ({classes[int(present[0])]!r}), so nothing can be learnt or measured there: "
            "every split needs at least two"
        )


def _labels(raw: Raw, name: str) -> np.ndarray:
    labels = raw.splits[name].labels
    return labels.astype(np.uint8) if raw.kind == "multilabel" else labels.reshape(-1).astype(np.int64)


def _int64(groups: np.ndarray | None) -> np.ndarray | None:
    return None if groups is None else groups.astype(np.int64)


def _write_images(path: Path, images: np.ndarray | Sequence[np.ndarray], channels: int, size: int) -> np.ndarray:
    """Write `[N, H, W]` or `[N, H, W, 3]` as uint8 [N, C, size, size]; returns the memory-mapped array."""
    out = map_new(path, np.uint8, (len(images), channels, size, size))
    if isinstance(images, np.ndarray):
        rows = max(1, (1 << 26) // max(1, images[:1].size))
        for start in range(0, len(images), rows):
            out[start : start + rows] = resize(_channels_first(images[start : start + rows], channels), size)
    else:
        for index, image in enumerate(images):
            out[index : index + 1] = resize(_channels_first(image[None], channels), size)
    out.flush()
    return out


def _channels_first(images: np.ndarray, channels: int) -> np.ndarray:
    if images.ndim == 4:
        return images.transpose(0, 3, 1, 2)
    return np.repeat(images[:, None], channels, axis=1)


def _resampling(shapes: set[tuple[int, ...]], size: int) -> dict[str, object]:
    """What was done to the pixels; `pixels` is the smallest and the largest [height, width]."""
    sides = {shape[:2] for shape in shapes}
    pixels = [min(sides), max(sides)]
    if sides == {(size, size)}:
        return {"pixels": pixels, "resampling": "none"}
    before = f"{pixels[0][0]} x {pixels[0][1]}" if len(sides) == 1 else f"{len(sides)} image sizes"
    return {"pixels": pixels, "resampling": f"{before} to {size} x {size} px, {RESAMPLING}"}

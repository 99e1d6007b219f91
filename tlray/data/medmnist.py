"""The twelve 2-D sets of MedMNIST v2 (Yang et al. 2023, doi:10.1038/s41597-022-01721-8) and MedMNIST+ (64, 128, 224 px)."""

from functools import partial
from pathlib import Path

import numpy as np

from tlray.cache import Places
from tlray.data.download import checked, fetch, find, missing, to_be_had
from tlray.data.npz import read_npz
from tlray.data.raw import Raw, RawSplit, Source
from tlray.registry import TASKS

PIXELS = (28, 64, 128, 224)
BELOW = ("medmnist",)
KINDS = {
    "binary-class": "binary",
    "multi-class": "multiclass",
    "multi-label, binary-class": "multilabel",
    "ordinal-regression": "ordinal",
}


def candidates(size: int) -> list[int]:
    """Official sizes in px, best first: from 7/8 of `size` upwards, then the largest of the rest downwards."""
    enough = [pixels for pixels in PIXELS if pixels >= size * 7 / 8]
    return enough + [pixels for pixels in reversed(PIXELS) if pixels not in enough]


@TASKS.register(
    "pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist",
    "breastmnist", "bloodmnist", "tissuemnist", "organamnist", "organcmnist", "organsmnist",
)  # fmt: skip
def medmnist(spec: str, size: int, places: Places) -> Source:
    """An official file, as `FLAG.npz` (28 px) or `FLAG_<px>.npz`; its MD5 is that of `medmnist.INFO`.

    Raises DataError when no size of it is prepared, on disk or downloadable.
    """
    return _source(spec, spec, size, places)


@TASKS.register("chestmnist_binary")
def chestmnist_binary(spec: str, size: int, places: Places) -> Source:
    """ChestMNIST with one question: is there any of its 14 findings?"""
    return _source("chestmnist", spec, size, places)


def _source(flag: str, name: str, size: int, places: Places) -> Source:
    from medmnist import INFO

    info = INFO[flag]
    for pixels in candidates(size):
        file, url, md5 = _official(flag, pixels)
        if find([file], BELOW, places) or to_be_had(md5, name, size, [url], places):
            return Source(md5, name, partial(_load, flag, name, file, url, md5, places))
    file, url, _ = _official(flag, candidates(size)[0])
    raise missing(name, f"{file} (or another size of {info['python_class']})", BELOW, [url], places)


def _official(flag: str, pixels: int) -> tuple[str, str, str]:
    """(file name, address, MD5) of one size."""
    from medmnist import INFO

    suffix = "" if pixels == 28 else f"_{pixels}"
    return f"{flag}{suffix}.npz", INFO[flag][f"url{suffix}"], INFO[flag][f"MD5{suffix}"]


def _load(flag: str, name: str, file: str, url: str, md5: str, places: Places) -> Raw:
    from medmnist import INFO

    info, folder = INFO[flag], find([file], BELOW, places)
    path: Path = checked(folder / file if folder else fetch(url, file, md5, places), md5)
    splits, kind, classes = read_npz(path), KINDS[info["task"]], tuple(info["label"].values())
    if name == "chestmnist_binary":
        kind, classes = "binary", ("no finding", "finding")
        splits = {key: RawSplit(split.images, (split.labels.max(axis=1) > 0).astype(np.int64)) for key, split in splits.items()}
    return Raw(kind, classes, splits, {"file": file, "path": str(path), "md5": md5, "url": url, "licence": info["license"]})

"""CIFAR-10, by the address and checksums that torchvision knows; the one place where a (checked) pickle is read."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from tlray.cache import Places
from tlray.data.download import checked, fetch, find, missing, to_be_had
from tlray.data.raw import Raw, RawSplit, Source
from tlray.errors import DataError
from tlray.registry import TASKS

BELOW = ("cifar10", "CIFAR10")
FOLDER = "cifar-10-batches-py"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@TASKS.register("cifar10")
def cifar10(spec: str, size: int, places: Places) -> Source:
    """CIFAR-10 (Krizhevsky 2009), 32 px in colour; val is split from train.

    Read from the official tar.gz or its unpacked `cifar-10-batches-py/`. Raises DataError when neither is found or downloadable.
    """
    from torchvision.datasets import CIFAR10

    file, key = CIFAR10.filename, CIFAR10.tgz_md5
    sums = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    loose = find(sums, [FOLDER, *(f"{below}/{FOLDER}" for below in BELOW)], places)
    whole = None if loose else find([file], BELOW, places)
    if not loose and not whole and not to_be_had(key, spec, size, [CIFAR10.url], places):
        raise missing(spec, f"{file} (or {FOLDER})", BELOW, [CIFAR10.url], places)

    def load() -> Raw:
        if loose:
            path, blobs = loose, {name: (loose / name).read_bytes() for name in sums}
        else:
            path = checked(whole / file if whole else fetch(CIFAR10.url, file, key, places), key)
            with tarfile.open(path) as archive:
                blobs = {name: _member(archive, f"{FOLDER}/{name}") for name in sums}
        batches = [_batch(blobs[name], md5, path / name) for name, md5 in sums.items()]
        train = RawSplit(*map(np.concatenate, zip(*batches[:-1], strict=True)))
        facts = {"file": FOLDER, "path": str(path), "md5": sums}
        return Raw("multiclass", CLASSES, {"train": train, "test": RawSplit(*batches[-1])}, facts)

    return Source(key, spec, load)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    return file.read() if file else b""


def _batch(data: bytes, md5: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, 32, 32, 3], int64 [N]) of one python batch.

    The batches are pickles, the only ones tlray reads: never before these very bytes have the MD5 that torchvision knows.
    """
    import pickle

    if (found := hashlib.md5(data, usedforsecurity=False).hexdigest()) != md5:
        raise DataError(f"{path} is not the official file (MD5 {found} instead of {md5}) and is not opened: download it again")
    batch = pickle.load(io.BytesIO(data), encoding="latin1")
    images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.asarray(batch["labels"], np.int64)

"""MNIST and EMNIST letters, by the addresses and checksums that torchvision knows."""

import gzip
import string
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tlray.cache import Places, digest, file_digest
from tlray.data.download import checked, fetch, find, missing, reachable, to_be_had
from tlray.data.raw import Raw, RawSplit, Source
from tlray.errors import DataError
from tlray.registry import TASKS

MNIST_BELOW = ("mnist", "MNIST/raw", "mnist/MNIST/raw")
EMNIST_BELOW = ("emnist", "EMNIST/raw", "emnist/EMNIST/raw", "gzip", "emnist/gzip")
LETTERS = [f"emnist-letters-{split}-{part}-ubyte.gz" for split in ("train", "test") for part in ("images-idx3", "labels-idx1")]


@TASKS.register("mnist")
def mnist(spec: str, size: int, places: Places) -> Source:
    """MNIST (LeCun et al. 1998), 28 px: the four gzipped files, read as they are; val is split from train.

    Raises DataError when it can be neither found nor downloaded.
    """
    from torchvision.datasets import MNIST

    sums, key = dict(MNIST.resources), digest(MNIST.resources)
    urls = [f"{mirror}{file}" for mirror in MNIST.mirrors for file in list(sums)[:1]]  # S3 answers only to names of files
    if not find(sums, MNIST_BELOW, places) and not to_be_had(key, spec, size, urls, places):
        raise missing(spec, ", ".join(sums), MNIST_BELOW, urls, places)

    def load() -> Raw:
        folder = find(sums, MNIST_BELOW, places)
        base = "" if folder else next(filter(reachable, urls), urls[0]).rpartition("/")[0]
        found = {file: folder / file if folder else fetch(f"{base}/{file}", file, md5, places) for file, md5 in sums.items()}
        paths = [checked(found[file], md5) for file, md5 in sums.items()]
        arrays = [_idx(path.read_bytes(), path) for path in paths]
        splits = {"train": RawSplit(arrays[0], arrays[1]), "test": RawSplit(arrays[2], arrays[3])}
        facts = {"file": "mnist", "path": str(paths[0].parent), "md5": sums, "licence": "CC BY-SA 3.0"}
        return Raw("multiclass", tuple(string.digits), splits, facts)

    return Source(key, spec, load)


@TASKS.register("emnist_letters")
def emnist_letters(spec: str, size: int, places: Places) -> Source:
    """EMNIST letters (Cohen et al. 2017, arXiv:1702.05373), 28 px, 26 classes; val is split from train.

    Read from the official `gzip.zip` (checksum known) or its four `emnist-letters-*.gz` (checksums not known, theirs are noted).
    Raises DataError when it can be neither found nor downloaded.
    """
    from torchvision.datasets import EMNIST

    url, md5 = EMNIST.url, EMNIST.md5
    loose = find(LETTERS, EMNIST_BELOW, places)
    whole = None if loose else find(["gzip.zip"], EMNIST_BELOW, places)
    key = digest([file_digest(loose / file) for file in LETTERS]) if loose else md5
    if not loose and not whole and not to_be_had(key, spec, size, [url], places):
        raise missing(spec, "gzip.zip (or its four emnist-letters-*.gz)", EMNIST_BELOW, [url], places)

    def load() -> Raw:
        if loose:
            path, blobs = loose, [(loose / file).read_bytes() for file in LETTERS]
        else:
            path = checked(whole / "gzip.zip" if whole else fetch(url, "gzip.zip", md5, places), md5)
            with zipfile.ZipFile(path) as archive:
                blobs = [archive.read(f"gzip/{file}") for file in LETTERS]
        arrays = [_idx(blob, path / file) for blob, file in zip(blobs, LETTERS, strict=True)]
        images = [array.transpose(0, 2, 1) for array in arrays[::2]]  # stored column by column
        labels = [array.astype(np.int64) - 1 for array in arrays[1::2]]  # stored as 1 to 26
        splits = {name: RawSplit(*pair) for name, *pair in zip(("train", "test"), images, labels, strict=True)}
        facts = {"file": "emnist-letters", "path": str(path), "licence": "public domain"}
        return Raw("multiclass", tuple(string.ascii_lowercase), splits, facts | ({"sha256": key} if loose else {"md5": md5}))

    return Source(key, spec, load)


def _idx(data: bytes, path: Path) -> np.ndarray:
    """The uint8 array in a gzipped IDX file."""
    try:
        data = gzip.decompress(data)
        shape = np.frombuffer(data, ">i4", data[3], 4)
        if data[:3] != b"\0\0\x08":
            raise ValueError("no IDX file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise DataError(f"{path} is no whole gzipped IDX file ({error}): download it again") from None

"""MNIST (the real one), EMNIST letters and CIFAR-10 from files of their layout."""

import gzip
import hashlib
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10, EMNIST

from tlray.cache import Places, file_digest
from tlray.data.handwriting import LETTERS
from tlray.data.held_out import open_test
from tlray.data.task import available, open_task
from tlray.errors import DataError


def places(tmp_path: Path) -> Places:
    return Places(data=str(tmp_path / "data"), cache=str(tmp_path / "cache"), offline=True)


def test_the_real_mnist(shared, tmp_path):
    task = open_task("mnist", 28, Places(data=str(shared / "data"), cache=str(tmp_path), offline=True))
    assert task.audit["images"] == {"train": 54000, "val": 6000, "test": 10000}
    assert task.kind == "multiclass"
    test = open_test(task, tmp_path / "ledger", "test")
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "the well-known first ten"
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    share = np.bincount(task.val.labels) / np.bincount(task.train.labels)
    np.testing.assert_allclose(share, 1 / 9, rtol=0.01)


def idx(array: np.ndarray) -> bytes:
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.astype(np.uint8).tobytes())


def letters() -> dict[str, bytes]:
    """The four files with random pictures stored column by column, labels 1 to 26."""
    random, blobs = np.random.default_rng(0), []
    for count in (260, 52):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, :] = 255  # the first stored row: the picture's left column
        blobs += [idx(images), idx(np.arange(count) % 26 + 1)]
    return dict(zip(LETTERS, blobs, strict=True))


@pytest.mark.parametrize("form", ["loose", "zip"])
def test_emnist_letters_are_turned_upright_and_counted_from_zero(monkeypatch, tmp_path, form):
    folder = tmp_path / "data" / "emnist"
    folder.mkdir(parents=True)
    if form == "loose":
        for name, data in letters().items():
            (folder / name).write_bytes(data)
    else:
        with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
            for name, data in letters().items():
                archive.writestr(f"gzip/{name}", data)
        monkeypatch.setattr(EMNIST, "md5", file_digest(folder / "gzip.zip", "md5"))
    task = open_task("emnist_letters", 28, places(tmp_path))
    assert task.classes[0] == "a"
    assert len(task.classes) == 26
    assert (task.train.images[:, 0, :, 0] == 255).all()
    assert task.train.images[:, 0, 0, 1:].mean() < 200
    assert sorted(set(task.train.labels.tolist())) == list(range(26))
    assert task.audit["images"] == {"train": 234, "val": 26, "test": 52}


def test_a_cut_idx_file_is_named(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, data in letters().items():
        (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"emnist-letters-train-images-idx3-ubyte\.gz is no whole gzipped IDX file"):
        open_task("emnist_letters", 28, places(tmp_path))


def batches(monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, np.ndarray]:
    """CIFAR-10's six batch files with few images, whose MD5s take the place of the official ones; returns their pixels."""
    folder.mkdir(parents=True)
    random, pixels, sums = np.random.default_rng(0), {}, {}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        pixels[name] = random.integers(0, 256, (20, 3072), dtype=np.uint8)
        data = pickle.dumps({"data": pixels[name], "labels": [index % 10 for index in range(20)]}, protocol=2)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    return pixels


@pytest.mark.parametrize("form", ["loose", "tar.gz"])
def test_cifar10_batches(monkeypatch, tmp_path, form):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    pixels = batches(monkeypatch, folder)
    if form == "tar.gz":
        with tarfile.open(tmp_path / "data" / CIFAR10.filename, "w:gz") as archive:
            archive.add(folder, folder.name)
        for path in folder.iterdir():
            path.unlink()
        monkeypatch.setattr(CIFAR10, "tgz_md5", file_digest(tmp_path / "data" / CIFAR10.filename, "md5"))
    task = open_task("cifar10", 32, places(tmp_path))
    assert task.audit["images"] == {"train": 90, "val": 10, "test": 20}
    assert task.channels == 3
    test = open_test(task, tmp_path / "ledger", "test")
    np.testing.assert_array_equal(test.images, pixels["test_batch"].reshape(20, 3, 32, 32))


def test_a_batch_of_another_checksum_is_never_unpickled(monkeypatch, tmp_path):
    folder = tmp_path / "data" / "cifar-10-batches-py"
    batches(monkeypatch, folder)
    (folder / "data_batch_3").write_bytes(b"cposix\nmkdir\n(S'" + str(tmp_path / "sprung").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"data_batch_3 is not the official file .* and is not opened"):
        open_task("cifar10", 32, places(tmp_path))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["mnist", "emnist_letters", "cifar10"])
def test_what_is_missing_and_how_to_get_it(tmp_path, name):
    sentence = available(name, 28, places(tmp_path)) or ""
    assert sentence.startswith(f"{name} is not there")
    assert "--data" in sentence
    assert "http" in sentence

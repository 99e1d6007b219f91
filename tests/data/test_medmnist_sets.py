"""MedMNIST: the real BreastMNIST, and every set from files of the official layout."""

from pathlib import Path

import medmnist
import numpy as np
import pytest

from tlray.cache import Places, file_digest
from tlray.data.medmnist import KINDS, candidates
from tlray.data.task import available, open_task
from tlray.errors import DataError
from tlray.registry import TASKS

FLAGS = [flag for flag in medmnist.INFO if not flag.endswith("3d")]


def write(monkeypatch: pytest.MonkeyPatch, folder: Path, flag: str, pixels: int = 28) -> Path:
    """A small file of the official name and layout, whose MD5 takes the place of the official one."""
    info, random, arrays = medmnist.INFO[flag], np.random.default_rng(pixels), {}
    classes, multilabel = len(info["label"]), info["task"].startswith("multi-label")
    for split in ("train", "val", "test"):
        count = 3 * classes
        shape = (count, pixels, pixels, 3) if info["n_channels"] == 3 else (count, pixels, pixels)
        labels = np.eye(count, classes, dtype=np.uint8) if multilabel else (np.arange(count) % classes)[:, None].astype(np.uint8)
        arrays |= {f"{split}_images": random.integers(0, 256, shape, dtype=np.uint8), f"{split}_labels": labels}
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "" if pixels == 28 else f"_{pixels}"
    path = folder / f"{flag}{suffix}.npz"
    np.savez(path, **arrays)
    monkeypatch.setitem(info, f"MD5{suffix}", file_digest(path, "md5"))
    return path


def places(tmp_path: Path) -> Places:
    return Places(data=str(tmp_path / "data"), cache=str(tmp_path / "cache"), offline=True)


def test_all_twelve_are_registered():
    assert len(FLAGS) == 12
    assert set(FLAGS) <= set(TASKS.names())


@pytest.mark.parametrize("flag", FLAGS)
def test_every_set_opens(monkeypatch, tmp_path, flag):
    info = medmnist.INFO[flag]
    write(monkeypatch, tmp_path / "data", flag)
    task = open_task(flag, 28, places(tmp_path))
    assert task.kind == KINDS[info["task"]]
    assert task.channels == info["n_channels"]
    assert task.classes == tuple(info["label"].values())
    assert task.name == flag
    assert task.train.labels.ndim == (2 if task.kind == "multilabel" else 1)
    assert task.source["md5"] == info["MD5"]
    assert task.source["licence"] == info["license"]


def test_any_finding_counts_in_chestmnist_binary(monkeypatch, tmp_path):
    write(monkeypatch, tmp_path / "data" / "medmnist", "chestmnist")
    task = open_task("chestmnist_binary", 28, places(tmp_path))
    assert task.kind == "binary"
    assert task.classes == ("no finding", "finding")
    assert task.train.labels.tolist() == [1] * 14 + [0] * 28


@pytest.mark.parametrize(
    ("size", "order"),
    [(28, [28, 64, 128, 224]), (32, [28, 64, 128, 224]), (33, [64, 128, 224, 28]), (73, [64, 128, 224, 28]),
     (224, [224, 128, 64, 28]), (300, [224, 128, 64, 28])],
)  # fmt: skip
def test_the_smallest_file_of_at_least_seven_eighths_comes_first(size, order):
    assert candidates(size) == order


def test_the_best_file_that_is_there_is_taken_and_said(monkeypatch, tmp_path):
    write(monkeypatch, tmp_path / "data", "breastmnist", 28)
    assert open_task("breastmnist", 64, places(tmp_path)).source["resampling"].startswith("28 x 28 to 64 x 64 px")
    write(monkeypatch, tmp_path / "data", "breastmnist", 128)
    assert open_task("breastmnist", 64, places(tmp_path)).source["resampling"].startswith("128 x 128 to 64 x 64 px")
    write(monkeypatch, tmp_path / "data", "breastmnist", 64)
    task = open_task("breastmnist", 64, places(tmp_path))
    assert task.source["resampling"] == "none"
    assert task.source["file"] == "breastmnist_64.npz"


def test_a_prepared_set_needs_its_file_no_longer(monkeypatch, tmp_path):
    path = write(monkeypatch, tmp_path / "data", "breastmnist")
    first = open_task("breastmnist", 28, places(tmp_path))
    path.unlink()
    assert open_task("breastmnist", 28, places(tmp_path)) is first
    assert "breastmnist_64.npz" in (available("breastmnist", 40, places(tmp_path)) or ""), "another size does"


def test_a_file_with_another_checksum_is_refused_but_left_alone(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "octmnist.npz", train_images=np.zeros(3))
    with pytest.raises(DataError, match=r"octmnist\.npz is not the official file"):
        open_task("octmnist", 28, places(tmp_path))
    assert (folder / "octmnist.npz").exists()


def test_a_set_that_cannot_be_had_says_where_it_was_looked_for(tmp_path):
    sentence = available("pathmnist", 28, places(tmp_path)) or ""
    for part in ("pathmnist.npz", str(tmp_path / "data" / "medmnist"), str(tmp_path / "cache" / "downloads"), "offline", "--data"):
        assert part in sentence


def test_the_real_breastmnist(shared, tmp_path):
    task = open_task("breastmnist", 32, Places(data=str(shared / "data"), cache=str(tmp_path), offline=True))
    assert task.audit["images"] == {"train": 546, "val": 78, "test": 156}
    assert task.kind == "binary"
    assert task.train.images.shape == (546, 1, 32, 32)
    assert task.audit["classes"]["train"] == {"malignant": 147, "normal, benign": 399}
    assert task.source["resampling"].startswith("28 x 28 to 32 x 32 px, bilinear, antialiased")

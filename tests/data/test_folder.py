"""Folders of image files."""

import numpy as np
import pytest
from PIL import Image

from tlray.cache import Places
from tlray.data.held_out import open_test
from tlray.data.task import open_task
from tlray.errors import DataError


@pytest.fixture
def own(tmp_path):
    return Places(data=None, cache=str(tmp_path / "cache"), offline=True)


def write(folder, count, seed, side=12, colour=False, suffix=".png", sixteen=False):
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        image = random.integers(0, 256, (side + index % 2, side, *((3,) if colour else ())), dtype=np.uint8)
        Image.fromarray(image.astype(np.uint16) * 257 if sixteen else image).save(folder / f"{index:03d}{suffix}")


def test_classes_directly_in_the_folder_are_split(tmp_path, own):
    write(tmp_path / "set" / "cat", 20, 0)
    write(tmp_path / "set" / "dog", 30, 1, suffix=".JPG")
    task = open_task(f"folder:{tmp_path / 'set'}", 16, own)
    assert task.kind == "binary"
    assert task.classes == ("cat", "dog")
    assert task.channels == 1
    assert task.audit["classes"] == {"train": {"cat": 12, "dog": 18}, "val": {"cat": 4, "dog": 6}, "test": {"cat": 4, "dog": 6}}
    assert task.train.images.shape == (30, 1, 16, 16)
    assert task.name.startswith("set-")
    assert task.source["pixels"] == [[12, 12], [13, 12]]


def test_given_splits_are_kept_and_a_missing_val_is_taken_from_train(tmp_path, own):
    for split, count in (("train", 20), ("test", 5)):
        for seed, name in enumerate("abc"):
            write(tmp_path / "set" / split / name, count, 10 * count + seed)
    task = open_task(f"folder:{tmp_path / 'set'}", 12, own)
    assert task.audit["images"] == {"train": 54, "val": 6, "test": 15}
    assert set(task.audit["classes"]["val"].values()) == {2}
    assert "10 % of train" in task.source["splits"]
    write(tmp_path / "set" / "val" / "a", 2, 99)
    write(tmp_path / "set" / "val" / "b", 2, 98)
    task = open_task(f"folder:{tmp_path / 'set'}", 12, own)
    assert task.audit["images"] == {"train": 60, "val": 4, "test": 15}
    assert task.source["splits"] == "given"


def test_one_colour_image_makes_three_channels_and_16_bit_is_read(tmp_path, own):
    write(tmp_path / "set" / "a", 10, 0, sixteen=True)
    write(tmp_path / "set" / "b", 10, 1)
    assert open_task(f"folder:{tmp_path / 'set'}", 12, own).channels == 1
    write(tmp_path / "set" / "c", 10, 2, colour=True)
    task = open_task(f"folder:{tmp_path / 'set'}", 12, own)
    assert task.channels == 3
    assert task.kind == "multiclass"
    grey = task.train.images[task.train.labels == 0]
    np.testing.assert_array_equal(grey[:, 0], grey[:, 2])
    assert grey.max() > 200


def test_groups_are_never_cut(tmp_path, own):
    write(tmp_path / "set" / "a", 30, 0)
    write(tmp_path / "set" / "b", 30, 1)
    rows = [f"{name}/{index:03d}.png,p{index // 3}" for name in "ab" for index in range(30)]
    (tmp_path / "set" / "groups.csv").write_text("path,group\n" + "\n".join(rows))
    task = open_task(f"folder:{tmp_path / 'set'}", 12, own)
    splits = (task.train, task.val, open_test(task, tmp_path / "ledger", "test"))
    groups = [set(np.array(split.groups).tolist()) for split in splits]
    assert sum(map(len, groups)) == 10
    assert len(set.union(*groups)) == 10
    assert task.audit["images"] == {"train": 36, "val": 12, "test": 12}
    (tmp_path / "set" / "groups.csv").write_text("path,group\n" + "\n".join(rows[1:]))
    with pytest.raises(DataError, match=r"groups.csv has no row for a/000.png"):
        open_task(f"folder:{tmp_path / 'set'}", 12, own)
    (tmp_path / "set" / "groups.csv").write_text("file;patient\n")
    with pytest.raises(DataError, match="must have the header path,group"):
        open_task(f"folder:{tmp_path / 'set'}", 12, own)


def test_what_is_wrong_with_a_folder_is_said(tmp_path, own):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no PNG or JPEG images"):
        open_task(f"folder:{tmp_path / 'empty'}", 12, own)
    write(tmp_path / "one" / "a", 10, 0)
    with pytest.raises(DataError, match="single class in train"):
        open_task(f"folder:{tmp_path / 'one'}", 12, own)
    for split, name in (("train", "a"), ("train", "b"), ("test", "A")):
        write(tmp_path / "case" / split / name, 3, 0)
    with pytest.raises(DataError, match="class 'A' is not in train"):
        open_task(f"folder:{tmp_path / 'case'}", 12, own)
    write(tmp_path / "bad" / "a", 10, 0)
    write(tmp_path / "bad" / "b", 10, 1)
    (tmp_path / "bad" / "b" / "005.png").write_text("no image")
    with pytest.raises(DataError, match=r"bad/b/005\.png cannot be read"):
        open_task(f"folder:{tmp_path / 'bad'}", 12, own)


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    write(tmp_path / "set" / "a", 10, 0)
    write(tmp_path / "set" / "b", 10, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be prepared in"):
        open_task(f"folder:{tmp_path / 'set'}", 12, Places(None, str(tmp_path / "file"), True))

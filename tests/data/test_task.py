"""open_task on the user's npz files and on digits; the audit on real data; the door to the test split."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tlray.cache import Places
from tlray.data.held_out import open_test
from tlray.data.task import Task, available, open_task
from tlray.errors import ConfigError, DataError


@pytest.fixture
def own(tmp_path: Path) -> Places:
    """A cache of this test's own."""
    return Places(data=None, cache=str(tmp_path / "cache"), offline=True)


def arrays(seed: int = 0, count: int = 12, shape: tuple[int, ...] = (8, 8), classes: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found = {}
    for split in ("train", "val", "test"):
        found[f"{split}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        found[f"{split}_labels"] = (np.arange(count) % classes)[:, None].astype(np.uint8)
    return found


def save(path: Path, values: dict[str, np.ndarray]) -> str:
    np.savez(path, **values)  # type: ignore[arg-type]
    return f"npz:{path}"


def opened(tmp_path: Path, values: dict[str, np.ndarray], size: int = 8) -> Task:
    return open_task(save(tmp_path / "set.npz", values), size, Places(None, str(tmp_path / "cache"), True))


def test_pixels_and_labels_arrive_as_they_are(tmp_path, own):
    values = arrays()
    task = opened(tmp_path, values)
    assert task.kind == "binary"
    assert task.classes == ("0", "1")
    assert (task.channels, task.size) == (1, 8)
    np.testing.assert_array_equal(task.train.images[:, 0], values["train_images"])
    np.testing.assert_array_equal(task.val.labels, values["val_labels"][:, 0])
    assert task.train.images.dtype == np.uint8
    assert task.train.labels.dtype == np.int64
    assert task.train.groups is None
    assert isinstance(task.train.images, np.memmap)
    assert not task.train.images.flags.writeable
    assert task.name.startswith("set-")
    assert len(task.name) == len("set-") + 8
    test = open_test(task, tmp_path / "ledger.jsonl", "a test")
    np.testing.assert_array_equal(test.images[:, 0], values["test_images"])


def test_colour_keeps_its_channels_in_order(tmp_path):
    values = arrays(shape=(8, 8, 3))
    task = opened(tmp_path, values)
    assert task.channels == 3
    np.testing.assert_array_equal(task.train.images[:, 2], values["train_images"][..., 2])


def test_a_task_has_no_test_split(tmp_path):
    task = opened(tmp_path, arrays())
    assert {each.name for each in dataclasses.fields(task)} == {
        "name", "spec", "kind", "classes", "channels", "size", "train", "val", "source", "audit", "fingerprint", "folder",
    }  # fmt: skip


def test_every_opening_of_the_test_split_is_written_down(tmp_path):
    task, ledger = opened(tmp_path, arrays()), tmp_path / "run" / "test_ledger.jsonl"
    open_test(task, ledger, "winner")
    open_test(task, ledger, "again")
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(line["task"], line["purpose"], line["images"]) for line in lines] == [
        (task.name, "winner", 12),
        (task.name, "again", 12),
    ]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="stays closed"):
        open_test(task, tmp_path / "file" / "ledger.jsonl", "no place to write")


def test_prepared_once_and_keyed_by_content_and_size(tmp_path, own):
    spec = save(tmp_path / "a.npz", arrays(0))
    first = open_task(spec, 8, own)
    assert open_task(spec, 8, own) is first
    assert open_task(spec, 16, own).folder != first.folder
    copied = open_task(save(tmp_path / "b.npz", arrays(0)), 8, own)
    assert copied.fingerprint == first.fingerprint
    assert copied.folder != first.folder
    changed = arrays(0)
    changed["train_images"][0, 0, 0] ^= 1
    assert open_task(save(tmp_path / "a.npz", changed), 8, own).fingerprint != first.fingerprint


def test_a_test_image_is_no_part_of_the_fingerprint(tmp_path, own):
    values = arrays()
    first = open_task(save(tmp_path / "a.npz", values), 8, own)
    values["test_images"][0, 0, 0] ^= 1
    assert open_task(save(tmp_path / "a.npz", values), 8, own).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [(np.arange(12) % 2, "binary", 2), (np.arange(12) % 4, "multiclass", 4), (np.eye(12, 3, dtype=int), "multilabel", 3)],
)
def test_kind_is_read_from_the_labels(tmp_path, labels, kind, classes):
    values = arrays() | {f"{split}_labels": labels for split in ("train", "val", "test")}
    task = opened(tmp_path, values)
    assert task.kind == kind
    assert len(task.classes) == classes
    np.testing.assert_array_equal(task.train.labels, labels)
    assert task.train.labels.dtype == (np.uint8 if kind == "multilabel" else np.int64)


def test_uint16_is_scaled_to_8_bit(tmp_path):
    values = arrays()
    values["train_images"] = values["train_images"].astype(np.uint16) * 257
    np.testing.assert_array_equal(opened(tmp_path, values).train.images[:, 0], arrays()["train_images"])


def test_groups_may_have_names(tmp_path):
    names = {"train": ["ann", "bob"] * 6, "val": ["cid"] * 11 + ["bob"], "test": ["dan"] * 12}
    values = arrays() | {f"{split}_groups": np.array(each) for split, each in names.items()}
    task = opened(tmp_path, values)
    assert task.train.groups is not None
    assert task.val.groups is not None
    assert task.val.groups[-1] == task.train.groups[1] != task.val.groups[0]
    assert task.audit["groups"] == {"train": 2, "val": 2, "test": 1, "across": {"train-val": 1, "train-test": 0, "val-test": 0}}


def nan(values):
    values["train_images"] = values["train_images"].astype(np.float32)
    values["train_images"][3, 1, 1] = np.nan


def without(key):
    return lambda values: values.pop(key)


def put(key, value):
    return lambda values: values.update({key: value})


WRONG = {
    "no val_images": (without("val_images"), "has no val_images"),
    "no test_labels": (without("test_labels"), "has no test_labels"),
    "too few labels": (put("val_labels", np.zeros((3, 1), int)), r"val_labels has shape \[3, 1\], but there are 12 images"),
    "labels with three axes": (put("train_labels", np.zeros((12, 1, 1), int)), r"train_labels has shape \[12, 1, 1\]"),
    "real labels": (put("train_labels", np.linspace(0, 1, 12)), "train_labels is float64"),
    "labels with a gap": (put("train_labels", np.arange(12) % 2 * 4), "labels must be 0 to 2 for its 3 classes, but are 0, 1, 4"),
    "columns that differ": (put("train_labels", np.zeros((12, 3), int)), "differ in their number of columns"),
    "one class in val": (put("val_labels", np.ones((12, 1), int)), "single class in val"),
    "no images": (put("test_images", np.zeros((0, 8, 8), np.uint8)), "test_images holds no images"),
    "NaN": (nan, r"train_images has NaN or infinite pixels \(first in image 3\)"),
    "real pixels": (put("val_images", np.zeros((12, 8, 8))), "val_images is float64, but must be uint8"),
    "3-D images": (put("train_images", np.zeros((12, 8, 8, 8), np.uint8)), r"train_images has shape \[12, 8, 8, 8\]"),
    "objects": (put("train_labels", np.array([object()] * 12)), "train_labels is an object array, which tlray does not unpickle"),
    "groups of another length": (put("train_groups", np.zeros(3, int)), "train_groups has shape"),
}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named_in_one_sentence(tmp_path, own, name):
    change, sentence = WRONG[name]
    values = arrays()
    if name == "objects":
        values["train_labels"] = np.array([Trap(tmp_path / "sprung")] * 12)
    else:
        change(values)
    spec = save(tmp_path / "wrong.npz", values)
    with pytest.raises(DataError, match=sentence) as caught:
        open_task(spec, 8, own)
    assert "wrong.npz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    left = [path for path in Path(own.cache, "tasks").iterdir() if path.is_dir()]
    assert not left, "nothing half-prepared stays"


def test_damaged_files_are_no_npz(tmp_path, own):
    whole = tmp_path / "whole.npz"
    save(whole, arrays())
    data = whole.read_bytes()
    flipped = bytearray(data)
    flipped[400] ^= 255
    for name, content in {"cut": data[: len(data) // 2], "flipped": bytes(flipped), "text": b"hello", "empty": b""}.items():
        path = tmp_path / f"{name}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.npz is no whole npz file"):
            open_task(f"npz:{path}", 8, own)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="no npz file but a single array"):
        open_task(f"npz:{tmp_path / 'single.npy'}", 8, own)


def test_what_is_not_there_is_said_before_anything_is_made(tmp_path, own):
    sentence = available(f"npz:{tmp_path}/none.npz", 28, own)
    assert sentence
    assert f"there is no file {tmp_path}/none.npz" in sentence
    assert "there is no folder" in (available(f"folder:{tmp_path}/none", 28, own) or "")
    assert available("digits", 28, own) is None
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        open_task("digit", 28, own)
    assert not Path(own.cache).exists()


def test_digits_are_split_60_20_20_and_stratified(places):
    task = open_task("digits", 28, places)
    assert (len(task.train), len(task.val), task.audit["images"]["test"]) == (1077, 360, 360)
    for split in ("train", "val", "test"):
        counts = np.array(list(task.audit["classes"][split].values())) / task.audit["images"][split]
        assert abs(counts - 0.1).max() < 0.01
    assert not any(pair["images"] for pair in task.audit["duplicates"]["across"].values())
    assert "8 x 8 to 28 x 28" in task.source["resampling"]
    assert task.source["phantom"] is False


def test_audit_of_the_real_pneumonia_file(shared, places):
    """Counts of the data folder's README: 18 images beyond the first of their kind in train, 8 images in both train and val."""
    task = open_task(f"npz:{shared}/data/npz/pneumonia_28.npz", 28, places)
    duplicates = task.audit["duplicates"]
    assert duplicates["within"]["train"]["images"] == 18
    assert duplicates["across"]["train-val"]["images"] == 8
    one, two = duplicates["across"]["train-val"]["examples"][0]
    np.testing.assert_array_equal(task.train.images[one], task.val.images[two])
    one, two = duplicates["within"]["train"]["examples"][0]
    np.testing.assert_array_equal(task.train.images[one], task.train.images[two])
    assert task.audit["classes"] == {"train": {"0": 1214, "1": 3494}, "val": {"0": 135, "1": 389}, "test": {"0": 234, "1": 390}}


def test_audit_finds_labels_that_contradict_and_findings_never_seen(tmp_path):
    labels = np.eye(12, 3, dtype=int)
    values = arrays() | {f"{split}_labels": labels for split in ("train", "val", "test")}
    values["val_labels"] = labels[:, ::-1] * [0, 1, 1]
    values["val_images"][0] = values["train_images"][0]
    task = opened(tmp_path, values)
    assert task.audit["without_positive"] == {"val": ["0"]}
    assert task.audit["duplicates"]["label_conflicts"] == 1
    assert task.audit["duplicates"]["across"]["train-val"] == {"images": 1, "examples": [[0, 0]]}

"""The embedded data sets: the same bytes each time, sane splits, and not solvable from the brightness of pixels."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tlray.cache import Places
from tlray.data.held_out import open_test
from tlray.data.phantom import CHEST, FINDINGS, PNEUMONIA, SIZE, phantom
from tlray.data.raw import Raw
from tlray.data.task import open_task
from tlray.registry import TASKS

COUNTS = {"phantom_chest": CHEST, "phantom_chest_binary": CHEST, "phantom_pneumonia": PNEUMONIA}


@pytest.fixture(scope="module")
def raws(places: Places) -> dict[str, Raw]:
    return {name: TASKS[name](name, 28, places).load() for name in COUNTS}


def bytes_of(raw: Raw) -> str:
    total = hashlib.sha256()
    for split in raw.splits.values():
        total.update(np.asarray(split.images).tobytes() + np.asarray(split.labels).tobytes())
    return total.hexdigest()


@pytest.mark.slow
def test_the_same_bytes_each_time_and_only_the_asked_set_differs(raws, places):
    again = phantom("phantom_pneumonia", 28, places).load()
    assert bytes_of(again) == bytes_of(raws["phantom_pneumonia"])
    keys = {phantom(name, 28, places).key for name in COUNTS}
    assert len(keys) == len(COUNTS)


@pytest.mark.parametrize(("name", "digest"), [("phantom_chest", "1660157993aa4673"), ("phantom_pneumonia", "84eb33b9cb4aa0ef")])
def test_the_drawing_is_the_one_of_this_generator_version(raws, name, digest):
    """Exactly rounded operations only, so the same on every machine: whoever changes the drawing must raise GENERATOR."""
    assert bytes_of(raws[name])[:16] == digest


@pytest.mark.parametrize("name", COUNTS)
def test_splits_have_the_promised_images(raws, name):
    for split, count in COUNTS[name].items():
        images = np.asarray(raws[name].splits[split].images)
        assert images.shape == (count, SIZE, SIZE)
        assert images.dtype == np.uint8
        assert (images.min(axis=(1, 2)) < 120).all()
        assert (images.max(axis=(1, 2)) > 80).all()


def test_no_patient_is_in_two_splits_and_patients_have_several_images(raws):
    patients = {name: set(np.asarray(split.groups).tolist()) for name, split in raws["phantom_chest"].splits.items()}
    assert not patients["train"] & patients["val"]
    assert not patients["train"] & patients["test"]
    assert not patients["val"] & patients["test"]
    images_each = np.unique(np.asarray(raws["phantom_chest"].splits["train"].groups), return_counts=True)[1]
    assert images_each.max() == 4
    assert 2 < images_each.mean() < 3


def test_no_image_is_there_twice(raws):
    for name in ("phantom_chest", "phantom_pneumonia"):
        images = np.concatenate([np.asarray(split.images).reshape(-1, SIZE * SIZE) for split in raws[name].splits.values()])
        assert len({image.tobytes() for image in images}) == len(images)


def test_labels_are_balanced_enough_to_learn_and_to_score(raws):
    for split in raws["phantom_chest"].splits.values():
        shares = split.labels.mean(axis=0)
        assert shares.shape == (len(FINDINGS),) == (14,)
        assert 0.05 < shares.min() <= shares.max() < 0.3
    for split in raws["phantom_pneumonia"].splits.values():
        assert 0.4 < split.labels.mean() < 0.6
    for split, binary in raws["phantom_chest_binary"].splits.items():
        assert np.array_equal(binary.labels, raws["phantom_chest"].splits[split].labels.any(axis=1))
        assert 0.5 < binary.labels.mean() < 0.8


@pytest.mark.parametrize(
    ("name", "kind"), [("phantom_chest", "multilabel"), ("phantom_chest_binary", "binary"), ("phantom_pneumonia", "binary")]
)
def test_opens_as_a_task_that_says_what_it_is(places, name, kind):
    task = open_task(name, 28, places)
    assert (task.name, task.kind, task.channels, task.size) == (name, kind, 1, 28)
    assert task.source["phantom"] is True
    assert "no medical data" in task.source["description"]
    assert len(task.classes) == (14 if kind == "multilabel" else 2)
    assert (task.train.groups is None) == (name == "phantom_pneumonia")


@pytest.mark.parametrize("name", ["phantom_pneumonia", "phantom_chest_binary"])
def test_a_linear_model_of_pixels_does_not_solve_it(places, tmp_path, name):
    task = open_task(name, 28, places)
    test = open_test(task, tmp_path / "ledger.jsonl", "difficulty")
    pixels = task.train.images.reshape(len(task.train), -1).astype(float)
    mean, std = pixels.mean(axis=0), pixels.std(axis=0) + 1
    linear = LogisticRegression(C=1e-3, max_iter=300).fit((pixels - mean) / std, task.train.labels)
    scores = linear.decision_function((test.images.reshape(len(test), -1) - mean) / std)
    assert roc_auc_score(test.labels, scores) <= 0.75

"""Splits, folds and draws: nothing that belongs together is cut, and one seed gives one draw."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tlray.cache import Places
from tlray.config import Config
from tlray.data.splits import deal, ties
from tlray.data.subsets import select
from tlray.data.task import Task, open_task
from tlray.errors import DataError


def made(tmp_path: Path, count: int = 90, kind: str = "multiclass", groups: bool = False, seed: int = 0) -> Task:
    """A task with unequal classes (4 : 3 : 2), pairs of identical images, and groups of different sizes."""
    random, arrays = np.random.default_rng(seed), {}
    for split, number in (("train", count), ("val", 12), ("test", 12)):
        images = random.integers(0, 256, (number, 8, 8), dtype=np.uint8)
        images[1:20:2] = images[0:20:2][: len(images[1:20:2])]
        labels = random.permutation(np.repeat([0, 0, 0, 0, 1, 1, 1, 2, 2], -(-number // 9))[:number])
        if split != "train":
            labels = np.arange(number) % 3
        arrays |= {f"{split}_images": images, f"{split}_labels": np.eye(3, dtype=int)[labels] if kind == "multilabel" else labels}
        if groups:
            arrays[f"{split}_groups"] = np.sort(random.integers(0, number // 4, number))
    np.savez(tmp_path / f"{kind}{seed}.npz", **arrays)
    return open_task(f"npz:{tmp_path / f'{kind}{seed}.npz'}", 8, Places(None, str(tmp_path / "cache"), True))


@pytest.mark.parametrize("seed", range(8))
def test_no_part_shares_a_group_or_an_image_and_classes_stay_even(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 300)
    hashes = random.permutation(np.r_[np.arange(280), np.arange(20)]).astype(np.int64)
    groups = random.integers(0, 90, 300)
    part = deal(labels, ties(hashes, groups), 5, seed)
    for belonging in (hashes, groups):
        assert all(len(np.unique(part[belonging == each])) == 1 for each in np.unique(belonging))
    assert sorted(np.unique(part)) == [0, 1, 2, 3, 4]
    share = np.array([np.bincount(labels[part == each], minlength=3) for each in range(5)]) / np.bincount(labels)
    assert abs(share - 0.2).max() < 0.06


def test_ties_link_through_others():
    hashes = np.array([1, 1, 2, 3, 4])
    groups = np.array([7, 8, 8, 9, 9])
    tie = ties(hashes, groups)
    assert len({*tie[:3]}) == 1
    assert tie[3] == tie[4] != tie[0]


def test_without_ties_parts_are_exactly_stratified():
    labels = np.repeat([0, 1], [100, 50])
    part = deal(labels, np.arange(150), 5, 0)
    assert [np.bincount(labels[part == each]).tolist() for each in range(5)] == [[20, 10]] * 5
    assert not np.array_equal(part, deal(labels, np.arange(150), 5, 1))


@pytest.mark.parametrize(("kind", "groups"), [("multiclass", False), ("multiclass", True), ("multilabel", True)])
def test_folds_cover_train_once_and_cut_nothing(tmp_path, kind, groups):
    task = made(tmp_path, kind=kind, groups=groups)
    seen = []
    for fold in range(3):
        train, val, split = select(task, Config(task="digits", folds=3, fold=fold, seed=fold))
        assert split is task.train
        assert sorted([*train, *val]) == list(range(90))
        one, two = ({image.tobytes() for image in task.train.images[index]} for index in (train, val))
        assert not one & two
        if task.train.groups is not None:
            assert not set(task.train.groups[train]) & set(task.train.groups[val])
        seen += val.tolist()
    assert sorted(seen) == list(range(90)), "and the folds do not depend on the seed"


def test_a_draw_under_folds_stays_outside_the_fold(tmp_path):
    task = made(tmp_path)
    train, val, _ = select(task, Config(task="digits", folds=3, fold=1, samples=20))
    assert len(train) == 20
    assert not set(train) & set(val)


def test_the_draw_depends_on_the_seed_and_the_task_alone(tmp_path):
    task = made(tmp_path)
    first, val, split = select(task, Config(task="digits", samples=30))
    assert split is task.val
    assert val.tolist() == list(range(12))
    assert first.dtype == np.int64
    assert (np.diff(first) > 0).all()
    other = Config(task="digits", samples=30, lr=0.5, backbone="small_cnn", epochs=99, augment="flip")
    np.testing.assert_array_equal(select(task, other)[0], first)
    assert not np.array_equal(select(task, Config(task="digits", samples=30, seed=1))[0], first)
    assert not np.array_equal(select(made(tmp_path, seed=1), Config(task="digits", samples=30))[0], first)


def counts(task: Task, samples: int | str, seed: int = 0) -> list[int]:
    return np.bincount(task.train.labels[select(task, Config(task="digits", samples=samples, seed=seed))[0]], minlength=3).tolist()


def test_draws_are_proportional_and_hold_every_class(tmp_path):
    task = made(tmp_path)
    assert counts(task, 45) == [20, 15, 10]
    assert counts(task, 9) == [4, 3, 2]
    assert counts(task, 90) == [40, 30, 20]
    assert counts(task, 3) == [1, 1, 1]
    assert sum(counts(task, 2)) == 2
    assert counts(task, "5/class") == [5, 5, 5]
    assert select(task, Config(task="digits"))[0].tolist() == list(range(90))


def test_a_rare_class_is_drawn_at_least_once(tmp_path, toy_npz: Callable[..., Path]):
    values = dict(np.load(toy_npz(tmp_path / "a.npz", train=64)))
    values["train_labels"] = np.r_[[1], np.zeros(63)].astype(np.uint8)[:, None]
    np.savez(tmp_path / "a.npz", **values)
    task = open_task(f"npz:{tmp_path}/a.npz", 28, Places(None, str(tmp_path / "cache"), True))
    drawn = select(task, Config(task="digits", samples=8))[0]
    assert np.bincount(task.train.labels[drawn]).tolist() == [7, 1]


def test_asking_for_too_much_is_said(tmp_path):
    task = made(tmp_path)
    with pytest.raises(DataError, match=r"samples=91, but task .* has 90 training images"):
        select(task, Config(task="digits", samples=91))
    with pytest.raises(DataError, match="only 20 of '2'"):
        select(task, Config(task="digits", samples="21/class"))
    with pytest.raises(DataError, match="needs one class per image"):
        select(made(tmp_path, kind="multilabel"), Config(task="digits", samples="2/class"))
    with pytest.raises(DataError, match=r"class '2' of task .* has 20 training images, too few for every fold"):
        select(task, Config(task="digits", folds=21, fold=0))
    assert len(select(task, Config(task="digits", folds=20, fold=0))[1])
    assert len(select(made(tmp_path, kind="multilabel"), Config(task="digits", samples=7))[0]) == 7

"""Checkpoints: whole or not at all, and no more of them than are needed."""

import json
import logging
import shutil

import pytest
import torch

from tlray.errors import RunError
from tlray.training.checkpoint import Checkpoint, checkpoint_of_epoch, found, load_checkpoint, newest_checkpoint, save_checkpoint


def checkpoint(epoch: int, best: int, note: str = "") -> Checkpoint:
    tensors = {"model.head.1.weight": torch.full((2, 3), float(epoch)), "optimizer.0.step": torch.tensor(float(epoch))}
    return Checkpoint(tensors, {"epoch": epoch, "best": best, "history": [{"epoch": epoch, "monitor": 1 / 3, "note": note}]})


def epochs(folder) -> list[int]:
    return [epoch for epoch, _ in found(folder)]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    tensors = {
        "model.a": torch.randn(3, 4), "model.b": torch.randn(2, dtype=torch.float64), "model.c": torch.tensor(7),
        "optimizer.0.step": torch.tensor(3.0), "model.d": torch.randn(2, 2).bfloat16(),
    }  # fmt: skip
    meta = {"epoch": 3, "best": 2, "history": [{"monitor": 0.1 + 0.2}], "config": {"lr": 1e-3, "samples": None}, "encoder": "none"}
    back = load_checkpoint(save_checkpoint(tmp_path / "new", Checkpoint(tensors, meta)))
    assert back.meta == meta
    assert back.epoch == 3
    assert back.tensors.keys() == tensors.keys()
    assert all(torch.equal(back.tensors[key], tensors[key]) and back.tensors[key].dtype == tensors[key].dtype for key in tensors)


@pytest.mark.parametrize(
    ("bests", "kept"),
    [
        ([1], [1]),
        ([1, 1], [1, 2]),
        ([1, 2], [1, 2]),
        ([1, 1, 1], [1, 3]),
        ([1, 2, 3], [2, 3]),
        ([1, 2, 2, 2], [2, 4]),
        ([1, 1, 1, 4], [3, 4]),
        ([1, 1, 1, 4, 4], [4, 5]),
    ],
)
def test_kept_are_the_newest_the_best_and_one_before_where_these_are_one(tmp_path, bests, kept):
    for epoch, best in enumerate(bests, 1):
        save_checkpoint(tmp_path, checkpoint(epoch, best))
        assert {epoch, best} <= set(epochs(tmp_path))
        assert epoch == 1 or len(epochs(tmp_path)) == 2
    assert epochs(tmp_path) == kept


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "renamed"])
def test_a_damaged_file_is_never_loaded_and_the_one_before_is_used(tmp_path, caplog, damage):
    first, second = save_checkpoint(tmp_path, checkpoint(1, 1)), save_checkpoint(tmp_path, checkpoint(2, 2))
    data = bytearray(second.read_bytes())
    if damage == "flipped":
        data[-3] ^= 1
        second.write_bytes(data)
    elif damage == "renamed":
        shutil.copy(first, second)
    else:
        second.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with pytest.raises(RunError, match="damaged"):
        load_checkpoint(second)
    with pytest.raises(RunError, match="epoch 2"):
        checkpoint_of_epoch(tmp_path, 2)
    with caplog.at_level(logging.WARNING):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.epoch == 1
    assert second.name in caplog.text


def test_when_all_are_damaged_there_is_none(tmp_path):
    for epoch in (1, 2):
        save_checkpoint(tmp_path, checkpoint(epoch, epoch)).write_bytes(b"torn")
    assert newest_checkpoint(tmp_path) is None


def test_a_missing_folder_or_epoch_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "nothing") is None
    with pytest.raises(RunError, match="no whole checkpoint of epoch 4"):
        checkpoint_of_epoch(tmp_path, 4)


def test_temporary_and_foreign_files_are_passed_over(tmp_path):
    written = save_checkpoint(tmp_path, checkpoint(1, 1))
    (tmp_path / f".{written.name.replace('00001', '00002')}.x8f3").write_bytes(written.read_bytes()[:50])
    (tmp_path / "epoch-00009.safetensors").write_bytes(written.read_bytes())
    (tmp_path / "notes.txt").write_text("mine")
    assert epochs(tmp_path) == [1]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.epoch == 1
    save_checkpoint(tmp_path, checkpoint(2, 2))
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize("torn", [0, 1])
def test_an_epoch_written_again_after_its_file_was_damaged_is_found(tmp_path, torn):
    paths = [save_checkpoint(tmp_path, checkpoint(1, 1, note)) for note in ("first", "again")]
    sorted(paths)[torn].write_bytes(b"torn")
    assert checkpoint_of_epoch(tmp_path, 1).epoch == 1
    assert newest_checkpoint(tmp_path) is not None


def test_a_damaged_later_file_does_not_take_the_place_of_the_one_before(tmp_path):
    for epoch, best in ((2, 2), (4, 2)):
        written = save_checkpoint(tmp_path, checkpoint(epoch, best))
    written.write_bytes(b"torn")  # so training goes on from epoch 2
    save_checkpoint(tmp_path, checkpoint(3, 3))
    assert {2, 3} <= set(epochs(tmp_path))


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path):
    state = checkpoint(1, 1)
    state.meta["history"][0]["val_medmnist_auc"] = float("nan")
    back = load_checkpoint(save_checkpoint(tmp_path, state))
    assert back.meta["history"][0]["val_medmnist_auc"] is None
    json.dumps(back.meta, allow_nan=False)

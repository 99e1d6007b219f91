"""Cached features of the frozen prefix: equal to computing them anew, made once, named by all they depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import config_of, numbers, same, train

from tlray.cache import Places
from tlray.training.features import extract, extraction_batch, feature_key
from tlray.training.loop import PhaseRunner, worth_caching
from tlray.training.phases import Phase
from tlray.training.setup import prepare
from tlray.training.world import World


@pytest.fixture
def own(tmp_path) -> Places:
    """A cache of the test's own."""
    return Places(None, str(tmp_path / "cache"), True)


def files(places: Places) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in places.folder("features").rglob("*.npy")}


@pytest.fixture(scope="module")
def head(toy, encoder):
    return config_of(toy(), backbone="resnet18", weights=encoder("resnet18"), unfreeze="head", dropout=0.3, lr=0.01)


def uncached(patch: pytest.MonkeyPatch) -> None:
    """From here on a phase computes its frozen prefix for every batch."""
    before = PhaseRunner._open_rows

    def open_rows(self, places):
        self.cached = False
        return before(self, places)

    patch.setattr(PhaseRunner, "_open_rows", open_rows)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_a_head_trains_alike_on_cached_and_on_computed_features(head, own, monkeypatch, precision):
    config = replace(head, precision=precision)
    cached, state = train(config, own)
    assert len(files(own)) == 2
    uncached(monkeypatch)
    computed, other = train(config, own)
    assert [epoch.metrics["cached"] for epoch in cached + computed] == [True, True, False, False]
    for one, two in zip(cached, computed, strict=True):
        for name in ("train_loss", "val_loss"):
            assert one.metrics[name] == pytest.approx(two.metrics[name], abs=1e-2 if precision == "bfloat16" else 1e-4)
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], atol=1e-2 if precision == "bfloat16" else 1e-4, rtol=1e-2)


def test_cached_features_are_those_of_the_network_in_eval_mode(head, own):
    prepared = prepare(head, own)
    runner = PhaseRunner(prepared, prepared.plan[0], World(0, 1, torch.device("cpu")), own)
    assert runner.cached
    model = prepared.model.eval()
    for rows, split in ((runner._train_rows, prepared.task.train), (runner._val_rows, prepared.task.val)):
        with torch.no_grad():
            one_by_one = torch.cat([model.backbone(model.normalise(torch.from_numpy(image[None].copy()))) for image in split.images])
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, one_by_one.numpy(), atol=1e-5)


@pytest.mark.parametrize("augment", ["flip", "shift"])
def test_augmented_images_are_never_cached(head, own, augment):
    epochs, _ = train(replace(head, augment=augment, epochs=1), own)
    assert epochs[0].metrics["cached"] is False
    assert files(own) == {}


def test_trainings_share_one_extraction(head, own):
    train(head, own)
    before = files(own)
    assert len(before) == 2
    changed = replace(head, lr=0.1, seed=3, dropout=0.0, samples=10, batch_size=4, label_smoothing=0.1, class_weights="balanced")
    train(changed, own)
    train(replace(head, unfreeze="head_then_full"), own)
    folds = replace(head, folds=2, fold=1)
    train(folds, own)
    assert files(own) == before


@pytest.mark.parametrize("change", ["weights", "pixels", "size", "precision"])
def test_other_features_are_extracted_for_other(head, own, toy, encoder, change):
    train(replace(head, epochs=1), own)
    values = {"weights": encoder("resnet18", seed=1), "task": toy(seed=1), "size": 20, "precision": "float64"}
    name = "task" if change == "pixels" else change
    train(replace(head, epochs=1, **{name: values[name]}), own)
    assert len(files(own)) == 4


def test_the_key_holds_all_that_features_depend_on(head, places):
    model = prepare(head, places).model
    other = prepare(head, places).model
    other.mean += 0.1
    keys = [
        feature_key("a", "resnet18", "b", model, 28, "float32"),
        feature_key("c", "resnet18", "b", model, 28, "float32"),
        feature_key("a", "resnet50", "b", model, 28, "float32"),
        feature_key("a", "resnet18", "c", model, 28, "float32"),
        feature_key("a", "resnet18", "b", other, 28, "float32"),
        feature_key("a", "resnet18", "b", model, 32, "float32"),
        feature_key("a", "resnet18", "b", model, 28, "float64"),
    ]
    assert len(set(keys)) == 7
    assert feature_key("a", "resnet18", "b", model, 28, "float32") == keys[0]


def test_train_and_validation_features_stand_apart_also_under_folds(head, places):
    plain, folded = prepare(head, places), prepare(replace(head, folds=2, fold=0), places)
    assert len(set(plain.split_keys)) == 2
    assert folded.split_keys == (plain.split_keys[0], plain.split_keys[0])


def test_a_training_is_the_same_whether_it_extracts_or_finds_the_features(head, own):
    first, state = train(head, own)
    second, again = train(head, own)
    assert same(state.tensors, again.tensors)
    assert numbers(first[-1].history) == numbers(second[-1].history)


def test_features_do_not_depend_on_the_batches_of_the_extraction(head, places, toy):
    prepared = prepare(replace(head, task=toy(train=40)), places)
    assert [extraction_batch(size) for size in (28, 64, 128, 224, 1024)] == [512, 512, 128, 41, 32]
    several, one = (extract(prepared.model, prepared.task.train, size, "float32", torch.device("cpu")) for size in (1024, 28))
    np.testing.assert_allclose(several, one, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "epochs", "drawn", "images", "worth"),
    [
        ({}, 1, 100, 100, True),
        ({"samples": 10}, 2, 10, 80, True),
        ({"samples": 10}, 2, 10, 81, False),
        ({"steps_per_epoch": 125, "batch_size": 32}, 2, 54_000, 54_000, False),  # 8,000 images of 54,000
        ({"steps_per_epoch": 125, "batch_size": 32}, 4, 54_000, 54_000, True),
        ({"steps_per_epoch": 5, "batch_size": 4}, 1, 3, 80, True),  # images that come again count again
    ],
)
def test_features_are_worth_caching_where_a_quarter_of_the_split_is_read(settings, epochs, drawn, images, worth):
    assert worth_caching(config_of("digits", **settings), Phase(epochs, ()), drawn, images) is worth


@pytest.mark.parametrize(("epochs", "cached"), [(1, False), (2, True)])
def test_a_short_phase_of_the_head_computes_what_it_needs(head, own, toy, epochs, cached):
    config = replace(head, task=toy(train=40), samples=6, epochs=epochs, batch_size=6)
    found, _ = train(config, own)
    assert [epoch.metrics["cached"] for epoch in found] == [cached] * epochs
    assert len(files(own)) == (2 if cached else 0)

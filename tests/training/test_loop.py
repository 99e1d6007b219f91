"""When a phase reads its frozen prefix from the cache, and what lies on the GPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trainings import config_of, numbers, train

from tlray.cache import Places
from tlray.registry import UNFREEZE
from tlray.training.features import worth_caching
from tlray.training.fit import fit
from tlray.training.loop import near
from tlray.training.phases import Phase


def features(places: Places) -> int:
    """How many files of features a cache holds."""
    return len(list(places.folder("features").rglob("*.npy")))


def test_stages_that_have_trained_are_frozen_again_without_the_cache(head, own, monkeypatch, tmp_path):
    """Their features are no longer those of the weights that name them; every other training would read them."""
    monkeypatch.setitem(
        UNFREEZE._things, "refrozen", lambda stages, epochs, k: [Phase(1, stages[-1:]), Phase(1, ()), Phase(1, stages[-1:])]
    )
    refrozen, _ = train(replace(head, unfreeze="refrozen", epochs=3), own)
    assert [epoch.metrics["cached"] for epoch in refrozen] == [True, False, True]
    after, _ = train(head, own)
    alone, _ = train(head, Places(None, str(tmp_path / "another"), True))
    assert after[0].metrics["cached"]
    assert numbers(after[-1].history) == numbers(alone[-1].history)


@pytest.mark.parametrize(("room", "later", "cached"), [("8", "0", True), ("0", "8", False)])
def test_a_resumed_phase_stays_cached_or_not(head, own, monkeypatch, room, later, cached):
    monkeypatch.setenv("TLRAY_FEATURES_GIB", room)
    begun = next(fit(replace(head, epochs=3), own)).state()
    monkeypatch.setenv("TLRAY_FEATURES_GIB", later)
    rest, _ = train(replace(head, epochs=3), own, resume=begun)
    assert [row["cached"] for row in rest[-1].history] == [cached] * 3


def test_an_array_lies_on_the_gpu_within_a_tenth_of_the_process_s_share(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 0.25)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=8000))
    array = np.zeros(201, dtype=np.uint8)
    assert near(array, torch.device("cuda", 0)) is array


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


def test_a_few_steps_of_the_head_compute_what_they_need(head, own, toy):
    config = replace(head, task=toy(train=40), epochs=1, batch_size=3)
    found, _ = train(replace(config, steps_per_epoch=3), own)
    assert not found[0].metrics["cached"]
    assert features(own) == 0
    found, _ = train(replace(config, steps_per_epoch=4), own)
    assert found[0].metrics["cached"]
    assert features(own) == 2

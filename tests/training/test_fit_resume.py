"""A training that was broken off gives what the uninterrupted one gives, bit for bit, through files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainings import config_of, numbers, same, train

from tlray.errors import RunError
from tlray.registry import OPTIMIZERS, SCHEDULERS
from tlray.training.checkpoint import checkpoint_of_epoch, newest_checkpoint, save_checkpoint
from tlray.training.features import prefix_of
from tlray.training.fit import fit


def resumed(config, places, folder: Path, after: int):
    """The training broken off after this epoch and taken up from its file."""
    for epoch in fit(config, places):
        save_checkpoint(folder, epoch.state())
        if epoch.number == after:
            break
    torch.manual_seed(12345)  # what another training left in the process
    torch.rand(7)
    checkpoint = newest_checkpoint(folder)
    assert checkpoint is not None
    assert checkpoint.epoch == after
    return train(config, places, resume=checkpoint)


def assert_resumes(config, places, folder: Path, after: int, whole=None) -> None:
    epochs, state = whole or train(config, places)
    rest, again = resumed(config, places, folder, after)
    assert [epoch.number for epoch in rest] == list(range(after + 1, len(epochs) + 1))
    assert same(again.tensors, state.tensors)
    assert numbers(again.meta["history"]) == numbers(state.meta["history"])
    assert again.meta["best"] == state.meta["best"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_resumed_gradual_training_gives_the_uninterrupted_weights_bit_for_bit(gradual, places, tmp_path, optimizer, after):
    assert_resumes(replace(gradual, optimizer=optimizer), places, tmp_path, after)


def test_a_training_resumed_twice_gives_the_same(gradual, places, tmp_path):
    _, state = train(gradual, places)
    once = None
    for stop in (3, 5, 6):
        for epoch in fit(gradual, places, resume=once):
            save_checkpoint(tmp_path, epoch.state())
            if epoch.number == stop:
                break
        once = newest_checkpoint(tmp_path)
        assert once is not None
    assert once is not None
    assert same(once.tensors, state.tensors)
    assert list(fit(gradual, places, resume=once)) == []


@pytest.mark.parametrize("scheduler", SCHEDULERS.names())
def test_every_scheduler_goes_on_where_it_stood(gradual, places, tmp_path, scheduler):
    assert_resumes(replace(gradual, scheduler=scheduler, unfreeze="full", epochs=4), places, tmp_path, 2)


@pytest.mark.parametrize("settings", [{"steps_per_epoch": 3}, {"precision": "float64"}, {"precision": "bfloat16"}, {"patience": 1}])
def test_other_ways_of_counting_and_computing_resume_too(gradual, places, tmp_path, settings):
    config = replace(gradual, **settings)
    assert_resumes(config, places, tmp_path, 3, train(config, places))


def test_a_reduced_rate_is_kept_by_a_resume(toy, places, tmp_path):
    config = config_of(toy(), scheduler="plateau", lr=0.01, epochs=7)
    whole = train(config, places)
    after_reduction = 6
    assert not same(whole[1].tensors, train(replace(config, scheduler="constant"), places)[1].tensors)
    assert_resumes(config, places, tmp_path, after_reduction, whole)


def test_batch_norm_and_cached_features_resume_bit_for_bit(toy, encoder, places, tmp_path):
    config = config_of(toy(), backbone="mobilenet_v2", weights=encoder("mobilenet_v2"), unfreeze="gradual", epochs=12, dropout=0.3)
    whole = train(config, places)
    history = whole[0][-1].history
    frozen = [8 - row["phase"] for row in history]
    assert [row["cached"] for row in history] == [n > 0 and prefix_of("mobilenet_v2", 1, n, 28).affordable(32) for n in frozen]
    assert history[3]["cached"]
    assert_resumes(config, places, tmp_path / "cached", 3, whole)
    assert [row["phase"] for row in history][8:10] == [7, 7]
    assert_resumes(config, places, tmp_path, 9, whole)  # in the middle of a phase
    kept = checkpoint_of_epoch(tmp_path, 9).tensors
    assert not any(name.startswith("model.backbone.stem.") for name in kept)
    assert any(name.startswith("model.backbone.stem.") for name in whole[1].tensors)


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"seed": 1}, {"epochs": 9}])
def test_a_checkpoint_of_another_configuration_is_refused(toy, places, change):
    config = config_of(toy(), epochs=2)
    _, state = train(config, places)
    with pytest.raises(RunError, match="another configuration"):
        next(fit(replace(config, **change), places, resume=state))


def test_a_checkpoint_is_refused_when_the_weights_have_changed(toy, encoder, places, tmp_path):
    file = tmp_path / "encoder.safetensors"
    file.write_bytes(Path(encoder("small_cnn")).read_bytes())
    config = config_of(toy(), weights=str(file), epochs=2)
    _, state = train(config, places)
    file.write_bytes(Path(encoder("small_cnn", seed=1)).read_bytes())
    with pytest.raises(RunError, match="have changed"):
        next(fit(config, places, resume=state))

"""An autoencoder goes through the same loop as a classifier: it learns, resumes bit for bit, and every field counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fit_resume import assert_resumes
from trainings import config_of, same, train

from tlray.config import RECONSTRUCTION
from tlray.registry import AUGMENTS
from tlray.training.fit import chance_level, fit
from tlray.training.loop import PhaseRunner
from tlray.training.objectives import Classification, Reconstruction, objective_of
from tlray.training.reconstruction import averaged, image_metrics
from tlray.training.setup import prepare
from tlray.training.world import World

IMAGES = {"objective": "autoencoder", "monitor": "ssim", "lr": 5e-3}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
@pytest.mark.parametrize(("backbone", "epochs"), [("small_cnn", 8), ("mobilenet_v2", 4)])
def test_an_autoencoder_learns_from_any_images(toy, places, kind, backbone, epochs):
    config = config_of(toy(kind, train=64), backbone=backbone, epochs=epochs, **IMAGES)
    found, _ = train(config, places)
    assert found[-1].metrics["train_loss"] < 0.7 * found[0].metrics["train_loss"]
    assert found[-1].metrics["val_mse"] < averaged_grey(config, places)["mse"]


def averaged_grey(config, places) -> dict[str, float]:
    prepared = prepare(config, places)
    images = np.asarray(prepared.task.val.images) / 255
    return averaged(image_metrics(images, np.full_like(images, 0.5)))


def test_a_row_has_the_figures_of_images_and_no_accuracy(toy, places):
    epochs, _ = train(config_of(toy(), epochs=1, **IMAGES), places)
    metrics = epochs[0].metrics
    assert {name for name in metrics if name.startswith(("val_", "train_"))} == {
        "train_loss", "val_loss", *(f"val_{name}" for name in RECONSTRUCTION)
    }  # fmt: skip
    assert metrics["val_loss"] == metrics["val_mse"]
    assert metrics["monitor"] == metrics["val_ssim"]
    assert metrics["cached"] is False


def test_validation_figures_are_those_of_the_whole_network_on_the_stored_pixels(toy, places):
    config = config_of(toy("multiclass", val=11), epochs=1, augment="flip_shift", **IMAGES)
    epochs, state = train(config, places)
    prepared = prepare(config, places)
    prepared.model.load_state_dict({key.removeprefix("model."): value for key, value in state.tensors.items() if key.startswith("model.")})
    images = np.asarray(prepared.task.val.images)
    with torch.no_grad():
        drawn = prepared.model.eval()(torch.from_numpy(images.copy())).numpy()
    expected = averaged(image_metrics(images / 255, drawn))
    assert {name: epochs[0].metrics[f"val_{name}"] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_the_training_loss_is_the_mean_over_images_whatever_the_batches(toy, places):
    config = config_of(toy(train=21), epochs=1, **{**IMAGES, "lr": 1e-12})
    losses = [train(replace(config, batch_size=size), places)[0][0].metrics["train_loss"] for size in (21, 8, 1)]
    prepared = prepare(config, places)
    images = np.asarray(prepared.task.train.images)
    with torch.no_grad():
        drawn = prepared.model(torch.from_numpy(images.copy())).numpy()
    assert losses == pytest.approx([((drawn - images / 255) ** 2).mean()] * 3, abs=1e-7)


def test_the_target_is_the_image_as_it_was_shown(toy, places):
    objective = objective_of(prepare(config_of(toy(), **IMAGES), places), CPU)
    assert isinstance(objective, Reconstruction)
    shown = torch.full((2, 1, 28, 28), 51.0)
    assert float(objective.loss_sum(torch.full((2, 1, 28, 28), 0.2), shown, objective.targets(torch.arange(2)))) == 0
    assert float(objective.loss_sum(torch.full((2, 1, 28, 28), 0.7), shown, objective.targets(torch.arange(2)))) == pytest.approx(0.5)
    assert float(objective.loss_sum(torch.zeros(0, 1, 28, 28), shown[:0], objective.targets(torch.arange(0)))) == 0


def test_a_classifier_is_classified(toy, places):
    assert isinstance(objective_of(prepare(config_of(toy()), places), CPU), Classification)


@pytest.mark.parametrize("augment", [name for name in AUGMENTS.names() if not name.startswith("toy_")])
def test_every_augmentation_changes_what_an_autoencoder_is_shown(toy, places, augment):
    config = config_of(toy(), epochs=1, **IMAGES)
    one, two = (train(replace(config, augment=each), places)[1].tensors for each in ("none", augment))
    assert same(one, two) is (augment == "none")


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"precision": "float64"}, {"backbone": "mobilenet_v2"}])
def test_a_resumed_autoencoder_is_the_uninterrupted_one_bit_for_bit(toy, places, tmp_path, settings):
    config = config_of(toy(), epochs=4, augment="affine", dropout=0.3, scheduler="one_cycle", layer_decay=0.7, **{**IMAGES, **settings})
    assert_resumes(config, places, tmp_path, 2)


def test_a_checkpoint_holds_the_decoder(toy, places):
    _, state = train(config_of(toy(), epochs=1, **IMAGES), places)
    assert {key.split(".")[1] for key in state.tensors if key.startswith("model.")} == {"backbone", "head"}


def test_an_autoencoder_may_start_from_weights(toy, encoder, places):
    config = config_of(toy(), weights=encoder("small_cnn"), epochs=1, **IMAGES)
    prepared = prepare(config, places)
    assert same(dict(prepared.model.backbone.state_dict()), dict(prepare(replace(config, seed=5), places).model.backbone.state_dict()))
    assert next(fit(config, places)).last


@pytest.mark.parametrize("monitor", ["ssim", "psnr+ssim", "mse", "loss"])
def test_chance_is_an_even_grey(toy, places, monitor):
    config = config_of(toy(), **{**IMAGES, "monitor": monitor})
    grey = averaged_grey(config, places)
    assert chance_level(config, places) == pytest.approx(np.mean([grey[name] for name in monitor.split("+")]))


def test_the_start_of_a_backbone_is_the_classifiers_of_that_seed(toy, places):
    config = config_of(toy(), **IMAGES)
    classifier = prepare(replace(config, objective="classification", monitor="auroc"), places)
    assert same(dict(prepare(config, places).model.backbone.state_dict()), dict(classifier.model.backbone.state_dict()))


@pytest.mark.parametrize(("settings", "columns"), [({}, 2), (IMAGES, 3)])
def test_a_rank_without_validation_images_gathers_nothing_of_the_right_shape(toy, places, settings, columns):
    prepared = prepare(config_of(toy(), **settings), places)
    runner = PhaseRunner(replace(prepared, val=prepared.val[:0]), 0, World(0, 1, CPU), places)
    assert runner.validation_rows().shape == (0, columns)

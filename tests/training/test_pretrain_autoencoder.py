"""Weights from an autoencoder, from their name to a training that starts from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import config_of, same, train

from tlray.cache import Places
from tlray.errors import ConfigError, NotPrepared, WeightsError
from tlray.models.weights import open_weights, read_tensors
from tlray.training.checkpoint import save_checkpoint
from tlray.training.fit import fit
from tlray.training.pretrain import (
    autoencoder_file,
    encoder_file,
    missing_pretraining,
    open_autoencoder,
    pretrain,
    pretrained_folder,
    pretraining_config,
    work_folder,
)
from tlray.training.reconstruction import averaged, image_metrics
from tlray.training.setup import prepare

SETTINGS = "/autoencoder?epochs=2&lr=0.01&seed=3"


def source_of(config):
    source = pretraining_config(config)
    assert source is not None
    return source


@pytest.fixture(scope="module")
def target(toy):
    return config_of(toy(), weights=toy("multilabel", seed=1) + SETTINGS, unfreeze="head")


@pytest.fixture(scope="module")
def own(tmp_path_factory, target):
    """A cache in which the autoencoder of `target` is there."""
    places = Places(None, str(tmp_path_factory.mktemp("pretrained")), True)
    pretrain(source_of(target), places)
    return places


def test_the_name_says_what_is_trained(target, toy):
    source = source_of(target)
    assert source.task == toy("multilabel", seed=1)
    assert (source.objective, source.monitor, source.weights, source.unfreeze) == ("autoencoder", "ssim", "none", "full")
    assert (source.epochs, source.lr, source.seed, source.size, source.backbone) == (2, 0.01, 3, 28, "small_cnn")
    assert source_of(replace(target, weights="digits/autoencoder?monitor=mse")).minimise
    assert source_of(replace(target, weights="digits")).objective == "classification"


def test_weights_that_were_not_made_name_the_call_and_then_are_used(target, tmp_path):
    places = Places(None, str(tmp_path), True)
    source = source_of(target)
    assert missing_pretraining(target, places) == source
    with pytest.raises(NotPrepared, match=r"autoencoder\?epochs=2.*prepare_weights\("):
        next(fit(target, places))
    with pytest.raises(NotPrepared, match=r"autoencoder\?epochs=2.*prepare_weights\("):
        open_autoencoder(target, places)
    assert pretrain(source, places) == encoder_file(source, places)
    assert missing_pretraining(target, places) is None
    epochs, _ = train(target, places)
    assert np.isfinite(epochs[-1].metrics["val_loss"])


def test_an_encoder_and_the_whole_autoencoder_are_kept_with_what_they_are(target, own):
    folder = pretrained_folder(source_of(target), own)
    assert sorted(path.name for path in folder.iterdir()) == ["autoencoder.safetensors", "encoder.safetensors"]
    assert "-autoencoder-small_cnn-" in folder.name
    encoder, about = read_tensors(encoder_file(source_of(target), own))
    whole, about_whole = read_tensors(autoencoder_file(source_of(target), own))
    assert {name.split(".")[0] for name in encoder} == {"backbone"}
    assert same(encoder, {name: tensor for name, tensor in whole.items() if name.startswith("backbone.")})
    assert {name.split(".")[0] for name in whole} == {"backbone", "head"}
    assert about == about_whole
    told = json.loads(about["tlray"])
    assert (told["config"]["objective"], told["kind"], told["backbone"]) == ("autoencoder", "multilabel", "small_cnn")
    assert told["monitor"] == told["validation"]["ssim"]


@pytest.mark.parametrize("which", [encoder_file, autoencoder_file])
def test_either_file_opens_as_an_encoder_without_a_head(target, own, which):
    encoder = open_weights(str(which(source_of(target), own)), "small_cnn", 1, own)
    assert encoder is not None
    assert encoder.head is None
    whole, _ = read_tensors(autoencoder_file(source_of(target), own))
    assert same(encoder.state, {name.removeprefix("backbone."): each for name, each in whole.items() if name.startswith("backbone.")})


def test_training_the_head_alone_leaves_the_encoder_as_it_was(target, own):
    saved, _ = read_tensors(encoder_file(source_of(target), own))
    epochs, state = train(target, own)
    assert epochs[-1].metrics["cached"] is True
    assert {key for key in state.tensors if key.startswith("model.")} == {"model.head.1.weight", "model.head.1.bias"}
    model = prepare(target, own).model
    assert same(saved, {f"backbone.{key}": value for key, value in model.backbone.state_dict().items()})


def test_targets_share_an_autoencoder_and_other_pretrainings_are_others(target, own, toy):
    def file(**changes):
        return encoder_file(source_of(replace(target, **changes)), own)

    assert {file(**each) for each in ({"seed": 5}, {"lr": 0.5}, {"task": toy("multiclass")}, {"threads": 2})} == {file()}
    name = toy("multilabel", seed=1)
    others = [
        {"weights": name + "?epochs=2&lr=0.01&seed=3&monitor=loss"},
        {"weights": name + SETTINGS + "&monitor=mse"},
        {"weights": name + SETTINGS + "&augment=shift"},
        {"size": 32},
    ]
    assert len({file(), *(file(**each) for each in others)}) == 5


def test_the_kept_autoencoder_has_the_figures_of_its_best_epoch(target, own):
    prepared, model = open_autoencoder(target, own)
    assert not model.training
    images = np.asarray(prepared.task.val.images)
    with torch.no_grad():
        drawn = model(torch.from_numpy(images.copy())).numpy()
    about = json.loads(read_tensors(autoencoder_file(source_of(target), own))[1]["tlray"])
    assert averaged(image_metrics(images / 255, drawn)) == pytest.approx(about["validation"], rel=1e-6)


def test_an_interrupted_pretraining_goes_on_and_gives_the_same_autoencoder(target, own, tmp_path):
    source, broken = source_of(replace(target, weights=target.weights.replace("epochs=2", "epochs=3"))), Places(None, str(tmp_path), True)
    pretrain(source, own)
    epoch = next(fit(source, broken))
    save_checkpoint(work_folder(source, broken), epoch.state())
    told = []
    pretrain(source, broken, report=lambda each: told.append(each.number))
    assert told == [2, 3]
    one, two = (read_tensors(autoencoder_file(source, places))[0] for places in (own, broken))
    assert same(one, two)


@pytest.mark.parametrize(
    ("weights", "said"), [("none", "weights='none' is no autoencoder"), ("digits", "name it as weights=<data set>/autoencoder")]
)
def test_what_is_no_autoencoder_is_refused_in_one_sentence(target, own, weights, said):
    with pytest.raises(ConfigError, match=said) as caught:
        open_autoencoder(replace(target, weights=weights, unfreeze="full"), own)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_in_its_place_is_refused_in_one_sentence(target, tmp_path):
    places = Places(None, str(tmp_path), True)
    source = source_of(target)
    pretrain(source, places)
    autoencoder_file(source, places).write_bytes(encoder_file(source, places).read_bytes())
    with pytest.raises(WeightsError, match="does not hold this autoencoder: delete") as caught:
        open_autoencoder(target, places)
    assert "\n" not in str(caught.value)

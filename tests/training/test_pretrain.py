"""Weights that tlray makes itself by training on a data set."""

from dataclasses import replace

import pytest
import torch
from trainings import config_of, same, train

from tlray.cache import Places
from tlray.errors import NotPrepared
from tlray.models.weights import read_tensors
from tlray.training.checkpoint import save_checkpoint
from tlray.training.fit import Epoch, fit
from tlray.training.pretrain import encoder_file, missing_pretraining, pretrain, pretrained_folder, pretraining_config, work_folder
from tlray.training.setup import prepare

SOURCE = "digits?epochs=1&samples=100&lr=0.01"


def made(config, places: Places):
    source = pretraining_config(config)
    assert source is not None
    return source, pretrain(source, places)


@pytest.fixture(scope="module")
def target(toy):
    return config_of(toy(), weights=SOURCE, unfreeze="head", size=16)


@pytest.fixture(scope="module")
def prepared_places(tmp_path_factory, target):
    """A cache in which the encoder of `target` is there."""
    places = Places(None, str(tmp_path_factory.mktemp("pretrained")), True)
    made(target, places)
    return places


def test_weights_that_were_not_made_name_the_call_that_makes_them(target, tmp_path):
    places = Places(None, str(tmp_path), True)
    assert missing_pretraining(target, places) == pretraining_config(target)
    with pytest.raises(NotPrepared, match=r"digits\?epochs=1.*small_cnn at 16 px.*prepare_weights\("):
        next(fit(target, places))


def test_pretraining_leaves_an_encoder_and_no_checkpoints(target, prepared_places):
    source = pretraining_config(target)
    assert source is not None
    assert missing_pretraining(target, prepared_places) is None
    assert sorted(path.name for path in pretrained_folder(source, prepared_places).iterdir()) == ["encoder.safetensors"]
    epochs, _ = train(target, prepared_places)
    assert len(epochs) == 2


def test_the_source_is_trained_in_full_from_nothing_with_the_given_fields_at_the_targets_size(target):
    source = pretraining_config(replace(target, precision="float64", threads=2))
    assert source is not None
    assert (source.task, source.weights, source.unfreeze, source.size, source.backbone) == ("digits", "none", "full", 16, "small_cnn")
    assert (source.epochs, source.samples, source.lr, source.batch_size, source.seed) == (1, 100, 0.01, 64, 0)
    assert (source.precision, source.threads) == ("float32", 2)  # of the target only backbone, size and threads
    assert pretraining_config(replace(target, weights="none", unfreeze="full")) is None


def test_the_encoder_is_shared_by_all_targets_and_not_by_other_pretrainings(target, prepared_places, toy):
    def file(**changes):
        source = pretraining_config(replace(target, **changes))
        assert source is not None
        return encoder_file(source, prepared_places)

    shared = [{"seed": 5}, {"lr": 0.5}, {"task": toy("multiclass")}, {"epochs": 9}, {"threads": 2}, {"unfreeze": "full"}]
    assert {file(**changes) for changes in shared} == {file()}
    others = [
        {"weights": "digits?epochs=2&samples=100&lr=0.01"},
        {"weights": SOURCE + "&seed=1"},
        {"weights": toy(seed=9) + "?epochs=1"},
        {"size": 20},
        {"backbone": "resnet18"},
        {"weights": SOURCE + "&precision=float64"},
    ]
    assert len({file(), *(file(**changes) for changes in others)}) == 7


def test_training_the_head_alone_leaves_the_encoder_as_it_was(target, prepared_places):
    source = pretraining_config(target)
    assert source is not None
    saved, _ = read_tensors(encoder_file(source, prepared_places))
    prepared = prepare(target, prepared_places)
    before = {f"backbone.{key}": value.clone() for key, value in prepared.model.backbone.state_dict().items()}
    assert same(before, {key: value for key, value in saved.items() if key.startswith("backbone.")})
    _, state = train(target, prepared_places)
    assert {key for key in state.tensors if key.startswith("model.")} == {"model.head.1.weight", "model.head.1.bias"}
    again = prepare(target, prepared_places).model
    assert same(before, {f"backbone.{key}": value for key, value in again.backbone.state_dict().items()})


def test_the_head_is_new_even_for_the_same_classes(target, prepared_places):
    config = replace(target, task="digits")
    source = pretraining_config(target)
    assert source is not None
    saved, _ = read_tensors(encoder_file(source, prepared_places))
    heads = [prepare(replace(config, seed=seed), prepared_places).model.linear.weight for seed in (0, 1)]
    assert heads[0].shape == saved["head.1.weight"].shape
    assert not torch.equal(heads[0], saved["head.1.weight"])
    assert not torch.equal(heads[0], heads[1])


def test_kept_is_the_best_epoch_and_not_the_last(toy, tmp_path):
    places = Places(None, str(tmp_path), True)
    # so high a rate under so much smoothing makes the validation loss go up and down
    config = config_of(toy(val=40), size=28, epochs=5, lr=0.2, label_smoothing=0.8, monitor="loss")
    states = {}
    for epoch in fit(config, places):
        states[epoch.number] = epoch.state()
        last, best = epoch.number, epoch.best
    assert best < last, "choose a configuration whose best epoch is not its last"
    saved, metadata = read_tensors(pretrain(config, places))
    assert all(torch.equal(tensor, states[best].tensors[f"model.{name}"]) for name, tensor in saved.items())
    assert not same(saved, {key.removeprefix("model."): value for key, value in states[last].tensors.items() if key.startswith("model.")})
    assert f'"epoch": {best}' in metadata["tlray"]


def test_two_runs_that_make_the_same_weights_leave_each_other_theirs(toy, tmp_path):
    """The second comes to its end while the first has only to keep its last epoch: what is there first stays."""
    config, made = config_of(toy(), size=28, epochs=2), []
    first, second = (Places(None, str(tmp_path), True, run=name) for name in ("first", "second"))

    def meanwhile(epoch: Epoch) -> None:
        if epoch.number == config.epochs:
            file = pretrain(config, second)
            made.append((file, file.stat().st_ino))

    file = pretrain(config, first, report=meanwhile)
    assert made == [(file, file.stat().st_ino)]
    left = [path for path in file.parents[1].iterdir() if path.is_dir()]
    assert left == [file.parent]


def test_an_interrupted_pretraining_goes_on_and_gives_the_same_encoder(toy, tmp_path):
    config = config_of(toy(), size=28, epochs=4, dropout=0.2)
    whole, broken = (Places(None, str(tmp_path / name), True) for name in ("whole", "broken"))
    expected, _ = read_tensors(pretrain(config, whole))
    work = work_folder(config, broken)
    for epoch in fit(config, broken):
        save_checkpoint(work, epoch.state())
        if epoch.number == 2:
            break
    told = []
    found, _ = read_tensors(pretrain(config, broken, report=lambda epoch: told.append(epoch.number)))
    assert told == [3, 4]
    assert same(found, expected)

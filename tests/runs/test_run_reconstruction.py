"""Figures of an autoencoder on images it has not seen: by hand, with the ledger's line and the picture."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.config import Config
from tlray.errors import ConfigError, NotPrepared
from tlray.runs.folder import Run
from tlray.runs.reconstruction import rebuilt, reconstruction
from tlray.training.pretrain import open_autoencoder, pretrain, pretraining_config
from tlray.training.reconstruction import image_metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_npz) -> tuple[str, Config, Run]:
    """(weights, target, run) with the autoencoder pretrained."""
    folder = tmp_path_factory.mktemp("reconstruction")
    source, other = (toy_npz(folder / f"{name}.npz", test=30, seed=seed) for seed, name in enumerate(("source", "target")))
    weights = f"npz:{source}/autoencoder?epochs=2"
    target = Config(task=f"npz:{other}", backbone="small_cnn", threads=1)
    run = Run(folder / "run", Places(None, str(folder / "cache"), True), Resources(0, 1, 1, 0.0))
    run.folder.mkdir()
    config = pretraining_config(replace(target, weights=weights))
    assert config is not None
    pretrain(config, run.places)
    return weights, target, run


def test_the_test_split_of_the_source_is_measured_once_written_down_and_drawn(made, tmp_path):
    weights, target, run = made
    run = replace(run, folder=tmp_path)
    found = reconstruction(weights, target, run)
    (line,) = [json.loads(each) for each in run.ledger.read_text().splitlines()]
    assert (line["images"], line["purpose"]) == (30, f"reconstruction by {weights} (small_cnn)")
    assert (found["images"], found["split"], found["weights"]) == (30, "test", weights)
    assert found["source"] == line["task"]
    with np.load(weights.removeprefix("npz:").split("/autoencoder")[0]) as file:
        images = file["test_images"][:, None]
    _, model = open_autoencoder(replace(target, weights=weights), run.places)
    rows = image_metrics(images / 255, rebuilt(model, images))
    for column, name in enumerate(("mse", "psnr", "ssim")):
        each = found[name]
        assert each["value"] == pytest.approx(rows[:, column].mean(), rel=1e-6)
        assert each["low"] < each["value"] < each["high"]
        error = rows[:, column].std() / np.sqrt(30)
        assert each["high"] - each["low"] == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert "gaussian_weights=True" in found["definition"]
    assert json.loads(json.dumps(found)) == found
    assert found["svg"].count("data:image/png") == 16
    assert found == reconstruction(weights, target, run)


def test_the_validation_split_needs_no_run(made):
    weights, target, run = made
    found = reconstruction(weights, target, split="val", places=run.places)
    assert (found["images"], found["split"]) == (32, "val")
    assert not run.ledger.exists()


@pytest.mark.parametrize(
    ("weights", "options", "error", "said"),
    [
        (None, {"split": "test"}, ConfigError, "opened in a run alone"),
        (None, {"split": "train"}, ConfigError, "split='train': choose from test, val"),
        ("none", {"split": "val"}, ConfigError, "weights='none' is no autoencoder"),
        ("digits", {"split": "val"}, ConfigError, "weights='digits' is no autoencoder"),
        ("digits/autoencoder", {"split": "val"}, NotPrepared, r"prepare_weights\("),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(made, weights, options, error, said):
    own, target, run = made
    with pytest.raises(error, match=said) as caught:
        reconstruction(weights or own, target, places=run.places, **options)
    assert "\n" not in str(caught.value)

"""A model that is saved comes back the same, whole or not at all, and a damaged one is one clear sentence."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tlray.cache import Places
from tlray.data.task import open_task
from tlray.deploy.package import load_model, measure_latency, save_model
from tlray.errors import DataError, RunError, UserError, WeightsError
from tlray.models.classifier import build_classifier
from tlray.models.kinds import KINDS
from tlray.models.weights import open_weights
from tlray.training.calibration import fit_temperature, operating_threshold
from tlray.training.metrics import evaluate

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 1, 28, 28), dtype=np.uint8)
KIND_CLASSES = [
    ("binary", ("a", "b")),
    ("multiclass", ("a", "b", "c")),
    ("ordinal", ("0", "1", "2", "3")),
    ("multilabel", ("x", "y", "z")),
]


@pytest.mark.parametrize(("kind", "classes"), KIND_CLASSES)
def test_a_loaded_model_gives_the_saved_networks_answers(saved, make_network, kind, classes):
    folder, network = saved(kind, classes), make_network(kind, list(classes)).eval()
    model = load_model(folder)
    with torch.inference_mode():
        logits = network(torch.from_numpy(IMAGES))
    assert torch.equal(model.logits(IMAGES), logits)
    expected = KINDS[kind].probabilities(logits.double() / 1.5).numpy()
    assert model.predict(IMAGES) == pytest.approx(expected, abs=1e-12)
    assert model.predict(IMAGES).dtype == np.float64
    assert model.predict(IMAGES).shape == (12, len(classes))
    assert (model.kind, model.classes, model.size, model.channels, model.temperature) == (kind, classes, 28, 1, 1.5)
    assert model.threshold == {"binary": 0.4, "multilabel": [0.3] * 3}.get(kind)


def test_files_say_what_is_needed(saved):
    folder = saved()
    config, metrics = (json.loads((folder / name).read_text()) for name in ("config.json", "metrics.json"))
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "metrics.json", "model.safetensors"]
    assert config["dropout"] == 0.25
    assert config["mean"] == [0.5]
    assert config["config"]["lr"] == 1e-3
    assert set(metrics) >= {
        "validation",
        "validation_calibrated",
        "test",
        "parameters",
        "megabytes",
        "ms_per_image",
        "temperature",
        "threshold",
    }
    assert metrics["parameters"] == sum(each.numel() for each in load_model(folder).network.parameters())
    assert (folder / "model.safetensors").stat().st_size / 1e6 == pytest.approx(metrics["megabytes"], abs=0.002)
    assert metrics["ms_per_image"] > 0


def test_metrics_of_a_real_model_are_reproduced(tmp_path, shared):
    """The promise: the loaded model gives the validation metrics of metrics.json to 1e-5, on real images."""
    places = Places(data=str(shared / "data"), cache=str(tmp_path / "cache"), offline=True)
    task = open_task("breastmnist", 32, places)
    encoder = open_weights(str(shared / "weights" / "mobilenet_v2-cifar10.safetensors"), "mobilenet_v2", task.channels, places)
    assert encoder is not None
    network = build_classifier("mobilenet_v2", task.kind, 2, task.channels, 0.5, encoder.mean, encoder.std)
    network.backbone.load_state_dict(encoder.state)
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(torch.from_numpy(np.array(task.val.images[start : start + 32]))) for start in range(0, 78, 32)])
    labels = np.asarray(task.val.labels)
    probabilities, temperature = KINDS["binary"].probabilities(logits).double().numpy(), fit_temperature("binary", logits, labels)
    calibrated = KINDS["binary"].probabilities(logits.double() / temperature).numpy()
    card = {
        "task": task.name, "kind": "binary", "classes": list(task.classes), "channels": task.channels, "size": task.size,
        "temperature": temperature, "threshold": operating_threshold("binary", calibrated, labels), "threshold_rule": "youden",
        "config": {}, "data": task.source, "weights": encoder.source, "banner": [], "test": {},
        "validation": evaluate("binary", probabilities, labels), "validation_calibrated": evaluate("binary", calibrated, labels),
    }  # fmt: skip
    save_model(tmp_path / "model", network, card)
    model = load_model(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert model.evaluate(task.val.images, labels) == pytest.approx(written["validation"], abs=1e-5)
    assert evaluate("binary", model.predict(task.val.images), labels) == pytest.approx(written["validation_calibrated"], abs=1e-5)


def test_saving_leaves_the_network_and_torchs_generator_alone(make_network, make_card, tmp_path):
    network, threads = make_network("binary", ["a", "b"]).train(), torch.get_num_threads()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    save_model(tmp_path / "model", network, make_card("binary", ["a", "b"]))
    load_model(tmp_path / "model")
    assert network.training
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_saving_again_replaces_the_model_and_leaves_nothing_beside_it(saved):
    first = saved(temperature=1.5)
    second = saved(temperature=2.5)
    assert first == second
    assert load_model(second).temperature == 2.5
    assert os.listdir(second.parent) == ["model"]


def test_a_saving_that_fails_leaves_the_old_model(saved, make_network, make_card):
    folder = saved()
    bad = make_card("binary", ["a", "b"], test={"auroc": {"low": 0.1}})  # the card's README needs a value
    with pytest.raises(KeyError):
        save_model(folder, make_network("binary", ["a", "b"]), bad)
    assert load_model(folder).classes == ("normal", "sick")
    assert os.listdir(folder.parent) == ["model"]


def test_an_unwritable_place_is_one_sentence(make_network, make_card, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_model(tmp_path / "file" / "model", make_network("binary", ["a", "b"]), make_card("binary", ["a", "b"]))


def test_the_card_says_what_it_is_and_what_it_is_not(saved):
    text = (saved(classes=("normal", "`rm` <b>")) / "README.md").read_text()
    assert "| auroc | 0.910 | 0.900 (0.850 to 0.950) |" in text
    assert "95 % stratified bootstrap over test images" in text
    assert "Not a medical device" in text
    assert "`'rm' <b>`" in text
    assert "PHANTOM" not in text


def test_the_card_names_the_arithmetic_where_the_model_has_another(saved):
    assert "It was trained and chosen in" not in (saved() / "README.md").read_text()
    text = (saved(config={"precision": "bfloat16"}) / "README.md").read_text()
    assert "It was trained and chosen in `bfloat16`; it computes in float32" in text


def test_the_card_of_a_phantom_model_warns_first(saved):
    text = (saved(data={"phantom": True}, banner=["weights were drawn too"]) / "README.md").read_text()
    assert text.index("PHANTOM DATA") < text.index("weights were drawn too") < text.index("An image classifier")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "no folder": (lambda folder: folder.rename(folder.with_name("gone")), RunError, "there is no .*config.json"),
    "no metrics": (lambda folder: (folder / "metrics.json").unlink(), RunError, "there is no .*metrics.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), RunError, "holds no model.safetensors"),
    "one bit": (lambda folder: flip(folder / "model.safetensors"), WeightsError, "not the file that config.json describes"),
    "cut config": (lambda folder: (folder / "config.json").write_text('{"format"'), RunError, "config.json cannot be read"),
    "list": (lambda folder: (folder / "config.json").write_text("[]"), RunError, "holds no object"),
    "no size": (lambda folder: change(folder, size=None), RunError, "no usable size"),
    "future": (lambda folder: change(folder, format=2), RunError, "another version of tlray"),
    "unknown backbone": (lambda folder: change(folder, backbone="resnet19"), UserError, "unknown backbone 'resnet19'"),
    "classes": (lambda folder: change(folder, classes=["a", "b", "c"]), WeightsError, "does not fit a small_cnn for 3 classes"),
}


def change(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_models_are_one_sentence(saved, name):
    folder = saved()
    damage, error, sentence = DAMAGE[name]
    damage(folder)
    with pytest.raises(error, match=sentence) as raised:
        load_model(folder)
    assert "\n" not in str(raised.value)


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_the_weights_does_not_run(saved, tmp_path):
    import hashlib

    folder, trace = saved(), tmp_path / "ran"
    content = pickle.dumps(Evil(trace))
    (folder / "model.safetensors").write_bytes(content)
    change(folder, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(WeightsError):
        load_model(folder)
    assert not trace.exists()


@pytest.mark.parametrize("images", [IMAGES[:, :, :20], IMAGES.astype(np.float32), IMAGES[0], np.repeat(IMAGES, 3, axis=1)])
def test_images_of_another_shape_or_type_are_refused(saved, images):
    with pytest.raises(DataError, match=r"takes uint8 images \[N, 1, 28, 28\]"):
        load_model(saved()).predict(images)


def test_no_images_give_no_answers_and_many_pass_in_batches(saved, monkeypatch):
    model = load_model(saved())
    assert model.predict(IMAGES[:0]).shape == (0, 2)
    whole = model.predict(IMAGES)
    monkeypatch.setattr("tlray.deploy.model.BATCH", 5)
    assert model.predict(IMAGES) == pytest.approx(whole, abs=1e-6)


def test_latency_is_in_milliseconds(make_network):
    assert 0.01 < measure_latency(make_network("binary", ["a", "b"]).eval(), 1, 28, repeats=5) < 1000

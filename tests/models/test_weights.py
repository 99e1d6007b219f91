"""Weights from nowhere, ImageNet and files: what is loaded, what is refused and in which words."""

import io
import json
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

from tlray.cache import Places, file_digest
from tlray.errors import WeightsError
from tlray.models import weights as module
from tlray.models.classifier import build_classifier
from tlray.models.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    encoder_of,
    imagenet_available,
    load_encoder,
    open_weights,
    save_weights,
)


@pytest.fixture(autouse=True)
def own_hub(tmp_path, monkeypatch):
    """torch hub's folder, empty: no test finds weights that this machine happens to have."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture
def small(tmp_path):
    """(model, file) of a small_cnn written by us, two classes, grey."""
    torch.manual_seed(1)
    model = build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.485,), (0.229,))
    path = tmp_path / "small.safetensors"
    save_weights(path, model, {"classes": ["normal", "pneumonia"], "task": "toy"})
    return model, path


@pytest.fixture(scope="module")
def mobilenet():
    """A torchvision state of 3 outputs, its batch-norm statistics not the default ones."""
    torch.manual_seed(2)
    state = models.mobilenet_v2(weights=None, num_classes=3).state_dict()
    return {key: torch.rand_like(value) + 0.5 if "running" in key else value for key, value in state.items()}


def refusal(path, backbone="mobilenet_v2", channels=1, places=None):
    """The sentence with which a file is refused."""
    with pytest.raises(WeightsError) as caught:
        open_weights(str(path), backbone, channels, places or Places(offline=True))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_none_is_no_encoder(places):
    assert open_weights("none", "resnet18", 1, places) is None


@pytest.mark.parametrize(("name", "features"), [("mobilenet_v2", 1280), ("resnet50", 2048)])
def test_the_cifar_weights_load_whole(shared, places, name, features):
    path = shared / "weights" / f"{name}-cifar10.safetensors"
    encoder = open_weights(str(path), name, 1, places)
    model = build_classifier(name, "binary", 2, 1, 0.0, encoder.mean, encoder.std)
    notes = load_encoder(model, encoder, ("a", "b"))
    assert notes[-1] == f"head of 10 outputs in {path} dropped: this task has 2"
    assert any("float16" in note for note in notes) == (name == "resnet50")
    assert (encoder.mean, encoder.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert encoder.head["weight"].shape == (10, features)
    assert encoder.source["sha256"] == file_digest(path)
    json.dumps(encoder.source)
    stored, loaded = load_file(path), model.backbone.state_dict()
    for key, theirs in model.backbone.torchvision_keys.items():
        assert torch.equal(loaded[key], stored[theirs].to(loaded[key].dtype)), key
        assert encoder.state[key].dtype in (torch.float32, torch.int64)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: value.half() if value.is_floating_point() else value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
    ],
    ids=["plain", "nested", "data-parallel", "half", "without-counters"],
)
def test_torchvision_layouts_give_the_same_encoder(tmp_path, places, mobilenet, wrap):
    torch.save(wrap(mobilenet), tmp_path / "weights.anything")
    encoder = open_weights(str(tmp_path / "weights.anything"), "mobilenet_v2", 1, places)
    model = build_classifier("mobilenet_v2", "multiclass", 3, 1, 0.0, encoder.mean, encoder.std)
    assert load_encoder(model, encoder, ("a", "b", "c"))[-1].endswith("kept, which does not name its classes")
    theirs = models.mobilenet_v2(weights=None, num_classes=3).eval()
    theirs.load_state_dict(mobilenet)
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), theirs(model.normalise(images)), rtol=2e-2, atol=2e-2)


def test_a_legacy_torch_file_is_read(tmp_path, places, mobilenet):
    torch.save(mobilenet, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert open_weights(str(tmp_path / "old.pth"), "mobilenet_v2", 1, places) is not None


def test_our_layout_comes_back_bit_for_bit(small, places):
    model, path = small
    encoder = open_weights(str(path), "small_cnn", 1, places)
    other = build_classifier("small_cnn", "binary", 2, 1, 0.0, encoder.mean, encoder.std)
    assert load_encoder(other, encoder, ("normal", "pneumonia")) == [f"head of 2 outputs in {path} kept"]
    assert (encoder.mean, encoder.std) == ((0.485,), (0.229,))
    assert encoder.source["metadata"]["task"] == "toy"
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(other(images), model(images))


def test_a_head_for_other_classes_is_dropped(small, places):
    _, path = small
    encoder = open_weights(str(path), "small_cnn", 1, places)
    other = build_classifier("small_cnn", "binary", 2, 1, 0.0, encoder.mean, encoder.std)
    before = other.linear.weight.clone()
    assert load_encoder(other, encoder, ("malignant", "benign")) == [f"head in {path} dropped: its classes are not this task's"]
    assert torch.equal(other.linear.weight, before)


def test_opening_draws_no_random_numbers_and_saving_leaves_one_file(small, places):
    _, path = small
    before = torch.get_rng_state()
    open_weights(str(path), "small_cnn", 1, places)
    assert torch.equal(torch.get_rng_state(), before)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_key_follows_content_not_file(small, tmp_path, places):
    model, path = small
    first = open_weights(str(path), "small_cnn", 1, places)
    save_weights(tmp_path / "copy.safetensors", model, {"classes": ["x", "y"]})
    assert open_weights(str(tmp_path / "copy.safetensors"), "small_cnn", 1, places).key == first.key
    with torch.no_grad():
        model.backbone.conv1[0].bias[0] += 1
    save_weights(path, model, {})
    assert open_weights(str(path), "small_cnn", 1, places).key != first.key
    assert encoder_of(first.state, first.head, (0.5,), first.std, {}).key != first.key


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.999])
@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_truncated_files_are_refused(tmp_path, mobilenet, form, share):
    path = tmp_path / "weights"
    if form == "safetensors":
        save_file(mobilenet, path)
    else:
        torch.save(mobilenet, path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert str(path) in refusal(path)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_poses_as_weights_is_not_executed(tmp_path, protocol):
    trap, sprung = tmp_path / "resnet18.safetensors", tmp_path / "sprung"
    trap.write_bytes(pickle.dumps(Malicious(sprung), protocol))
    refusal(trap, "resnet18")
    assert not sprung.exists()
    pickle.loads(trap.read_bytes())
    assert sprung.exists(), "the trap itself must work"


def test_a_torch_file_with_more_than_tensors_is_not_executed(tmp_path, mobilenet):
    sprung = tmp_path / "sprung"
    torch.save({"state_dict": mobilenet, "trap": Malicious(sprung)}, tmp_path / "weights.pt")
    assert "is not unpickled" in refusal(tmp_path / "weights.pt")
    assert not sprung.exists()


@pytest.mark.parametrize("value", [torch.zeros(3), [1, 2], {}, {"epoch": 3}, {"state_dict": {"a": torch.zeros(1), "b": 2}}])
def test_torch_files_of_other_things_are_refused(tmp_path, value):
    torch.save(value, tmp_path / "weights.pt")
    assert "no dictionary of tensors" in refusal(tmp_path / "weights.pt")


def test_another_architecture_is_named(tmp_path, mobilenet, small, shared):
    save_file(mobilenet, tmp_path / "mobile.safetensors")
    text = refusal(tmp_path / "mobile.safetensors", "resnet18")
    assert "not those of a resnet18: 100 of its 120 tensors" in text
    assert "first conv1.weight, which is not in the file" in text
    assert "those of a small_cnn, not of a resnet18" in refusal(small[1], "resnet18")
    assert "no tensor is named backbone." in refusal(tmp_path / "mobile.safetensors", "small_cnn")
    text = refusal(shared / "weights" / "resnet50-cifar10.safetensors", "resnet18")
    assert "layer1.0.conv1.weight, which is float16 [64, 64, 1, 1] in the file and float32 [64, 64, 3, 3] in the network" in text


def test_a_deeper_network_of_the_same_shapes_is_refused(tmp_path):
    torch.save(models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    assert "tensors too many, first layer1.2." in refusal(tmp_path / "resnet34.pth", "resnet18")


def test_other_channels_of_small_cnn_are_refused(small):
    text = refusal(small[1], "small_cnn", channels=3)
    assert "backbone.conv1.0.weight, which is float32 [8, 1, 5, 5] in the file and float32 [8, 3, 5, 5] in the network" in text


def test_numbers_that_are_not_finite_are_refused(tmp_path, mobilenet):
    state = {**mobilenet, "features.0.0.weight": torch.full_like(mobilenet["features.0.0.weight"], float("nan"))}
    save_file(state, tmp_path / "nan.safetensors")
    assert "not finite, in features.0.0.weight" in refusal(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    "metadata",
    [None, {"tlray": "{"}, {"tlray": "[]"}, {"tlray": "{}"}, {"tlray": '{"mean": [0.5], "std": [0.0]}'},
     {"tlray": '{"mean": [0.5], "std": [NaN]}'}, {"tlray": '{"mean": [0.5, 0.5], "std": [1, 1]}'}],
)  # fmt: skip
def test_our_layout_without_sound_metadata_is_refused(small, tmp_path, metadata):
    save_file(load_file(small[1]), tmp_path / "bare.safetensors", metadata=metadata)
    assert "tlray metadata" in refusal(tmp_path / "bare.safetensors", "small_cnn")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("these are not weights")
    assert "neither a safetensors nor a torch file" in refusal(tmp_path / "notes.txt")
    assert "cannot be opened" in refusal(tmp_path / "absent.safetensors")
    assert "it is a folder" in refusal(tmp_path)


def test_missing_imagenet_weights_say_where_they_were_looked_for(tmp_path):
    places = Places(data=str(tmp_path / "data"), cache=str(tmp_path), offline=True)
    text = refusal("imagenet", "resnet50", places=places)
    assert text == imagenet_available("resnet50", places)
    assert "offline" in text
    for folder in ("data/weights", "data", "hub/hub/checkpoints"):
        assert str(tmp_path / folder / "resnet50-0676ba61.pth") in text


def test_small_cnn_has_no_imagenet_weights():
    assert "small_cnn has no ImageNet weights" in refusal("imagenet", "small_cnn")


@pytest.mark.parametrize("folder", ["data/weights", "data", "hub/hub/checkpoints"])
def test_an_official_file_with_another_checksum_is_refused(tmp_path, mobilenet, folder):
    path = tmp_path / folder / "mobilenet_v2-b0353104.pth"
    path.parent.mkdir(parents=True)
    torch.save(mobilenet, path)
    places = Places(data=str(tmp_path / "data"), cache=str(tmp_path), offline=True)
    assert imagenet_available("mobilenet_v2", places) is None
    assert f"{path} is damaged" in refusal("imagenet", places=places)


@pytest.fixture
def official(tmp_path, mobilenet, monkeypatch):
    """Serve a state on loopback under a name that ends with its checksum, at the address where ours is looked for."""
    buffer = io.BytesIO()
    torch.save(mobilenet, buffer)
    served = tmp_path / "served"
    served.mkdir()
    (served / "state").write_bytes(buffer.getvalue())
    name = f"toy-{file_digest(served / 'state')[:8]}.pth"
    (served / "state").rename(served / name)
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setattr(module, "_imagenet_url", lambda backbone: url)
        yield served / name
        server.shutdown()
        thread.join()


def test_imagenet_weights_are_downloaded_once_into_torch_hubs_folder(official, tmp_path, mobilenet):
    places = Places(cache=str(tmp_path / "cache"))
    assert imagenet_available("mobilenet_v2", places) is None
    encoder = open_weights("imagenet", "mobilenet_v2", 1, places)
    assert torch.equal(encoder.state["stem.0.0.weight"], mobilenet["features.0.0.weight"])
    assert encoder.source["weights"] == "imagenet"
    assert (tmp_path / "hub/hub/checkpoints" / official.name).is_file()
    official.unlink()
    assert open_weights("imagenet", "mobilenet_v2", 1, Places(cache=str(tmp_path), offline=True)) is encoder


def test_an_altered_download_is_refused_and_leaves_nothing(official, tmp_path):
    official.write_bytes(official.read_bytes()[:-1] + b"x")
    text = refusal("imagenet", places=Places(cache=str(tmp_path / "cache")))
    assert "could not be downloaded" in text
    assert not list((tmp_path / "hub").rglob("*.pth"))

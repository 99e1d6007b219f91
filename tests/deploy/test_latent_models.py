"""The latent space of delivered models: features of stages, the same images for all, the test split's ledger, the command."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from tlray.cli import main
from tlray.deploy.latent import latent_of_models
from tlray.deploy.model import load_model
from tlray.deploy.package import save_model
from tlray.errors import ConfigError, DataError
from tlray.models.classifier import build_classifier
from tlray.report.latent import separability
from tlray.training.features import stage_features

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 40, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def toy(tmp_path_factory, toy_npz) -> Path:
    """96 images to validate, in a bright corner or not."""
    return toy_npz(tmp_path_factory.mktemp("latent") / "toy.npz", train=48, val=96, test=40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_card) -> list[Path]:
    """Three models: small_cnn at 28 px, the same run's resnet18 at 32 px, and another run's small_cnn."""
    root, made = tmp_path_factory.mktemp("models"), []
    for seed, (name, backbone, size) in enumerate([("a/toy-small_cnn", "small_cnn", 28), ("a/toy-resnet18", "resnet18", 32),
                                                   ("b/toy-small_cnn", "small_cnn", 28)]):  # fmt: skip
        torch.manual_seed(seed)
        network = build_classifier(backbone, "binary", 2, 1, 0.25, (0.5,), (0.5,))
        made.append(root / name / "model")
        save_model(made[-1], network, make_card("binary", ["0", "1"], size=size))
    return made


def copied(folders: list[Path], target: Path) -> list[Path]:
    """The models in a folder of the test's own, as it writes there."""
    root = folders[0].parents[2]
    shutil.copytree(root, target)
    return [target / folder.relative_to(root) for folder in folders]


@pytest.mark.parametrize(
    ("backbone", "maps"), [("small_cnn", [8 * 16, 16 * 16]), ("resnet18", [64 * 16, 64 * 16, 128 * 16, 256 * 6, 512 * 2])]
)
def test_stages_are_averaged_to_at_most_4_x_4_pixels(backbone, maps):
    torch.manual_seed(0)
    network = build_classifier(backbone, "binary", 2, 1, 0.25, (0.5,), (0.5,)).train()
    stages = network.backbone.stage_names
    assert [stage_features(network, IMAGES, stage).shape for stage in stages] == [(5, width) for width in maps]
    pooled = stage_features(network, IMAGES, "features")
    assert pooled.dtype == np.float32
    with torch.no_grad():
        expected = network.eval().backbone(network.normalise(torch.from_numpy(IMAGES))).numpy()
        first = network.backbone.forward_stages(network.normalise(torch.from_numpy(IMAGES)), stop=1)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    averaged = torch.nn.functional.adaptive_avg_pool2d(first, 4).flatten(1).numpy()
    np.testing.assert_allclose(stage_features(network, IMAGES, stages[0]), averaged, atol=1e-5)


def test_small_maps_stay_as_they_are_and_batches_do_not_matter():
    torch.manual_seed(0)
    network = build_classifier("resnet18", "binary", 2, 1, 0.0, (0.5,), (0.5,))
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 32, 32), dtype=np.uint8)
    with torch.no_grad():
        maps = network.eval().backbone.forward_stages(network.normalise(torch.from_numpy(images)), stop=4)
    assert maps.shape[-2:] == (2, 2)
    np.testing.assert_allclose(stage_features(network, images, "layer3"), maps.flatten(1).numpy(), atol=1e-5)
    large = np.random.default_rng(0).integers(0, 256, (33, 1, 300, 300), dtype=np.uint8)
    split = np.concatenate([stage_features(network, large[part], "stem") for part in (slice(0, 20), slice(20, 33))])
    np.testing.assert_allclose(stage_features(network, large, "stem"), split, atol=1e-5)
    assert stage_features(network, images[:0], "features").shape == (0, 512)


def test_models_of_several_sizes_show_the_same_images(folders, toy, places):
    svg, numbers = latent_of_models(folders, f"npz:{toy}", places, "val", perplexity=10)
    assert [row["view"] for row in numbers[::3]] == ["a/toy-small_cnn", "a/toy-resnet18", "b/toy-small_cnn"]
    assert {row["images"] for row in numbers} == {96}
    assert "Latent space of toy" in svg
    with np.load(toy) as file:
        images, labels = file["val_images"][:, None], file["val_labels"][:, 0]
    expected = separability(stage_features(load_model(folders[2]).network, images, "features"), labels)
    assert {name: numbers[6][name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert numbers[6] != numbers[0] | {"view": "b/toy-small_cnn"}
    assert latent_of_models(folders, f"npz:{toy}", places, "val", perplexity=10) == (svg, numbers)


def test_stages_stand_side_by_side_and_images_are_drawn_by_seed(folders, toy, places):
    stages = ("conv1", "features", "conv1")
    numbers = latent_of_models(folders[::2], f"npz:{toy}", places, "train", stages, perplexity=5, most=30)[1]
    assert [(row["view"], row["stage"]) for row in numbers[::3]] == [
        (f"{run}/toy-small_cnn", stage) for run in "ab" for stage in ("conv1", "features")
    ]
    assert {row["images"] for row in numbers} == {30}
    other = latent_of_models(folders[::2], f"npz:{toy}", places, "train", stages, perplexity=5, most=30, seed=1)[1]
    assert [row["silhouette"] for row in other] != [row["silhouette"] for row in numbers]


def test_the_test_split_is_opened_in_writing(folders, toy, places, tmp_path):
    models = copied(folders[:2], tmp_path / "models")
    numbers = latent_of_models(models, f"npz:{toy}", places, perplexity=5)[1]
    assert {row["images"] for row in numbers} == {40}
    for model in models:
        line = json.loads((model / "test_ledger.jsonl").read_text())
        assert (line["task"], line["purpose"], line["images"]) == (line["task"], f"latent space of {model}", 40)
    latent_of_models(models, f"npz:{toy}", places, perplexity=5, ledger=tmp_path / "ledger.jsonl")
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 2
    assert len((models[0] / "test_ledger.jsonl").read_text().splitlines()) == 1


def test_mistakes_are_found_before_the_test_split_is_opened(folders, toy, toy_npz, places, tmp_path):
    models, many = copied(folders, tmp_path / "models"), f"npz:{toy_npz(tmp_path / 'many.npz', kind='multiclass')}"
    with pytest.raises(ConfigError, match=r"resnet18 has no stage 'conv1': choose from stem, layer1, .*, features"):
        latent_of_models(models, f"npz:{toy}", places, stages=("conv1",))
    with pytest.raises(ConfigError, match="perplexity=0 is out of range"):
        latent_of_models(models, f"npz:{toy}", places, perplexity=0)
    with pytest.raises(DataError, match="is multiclass with 3 classes, but the model is binary with 2"):
        latent_of_models(models, many, places)
    with pytest.raises(ConfigError, match="no split 'all': choose test, val, train"):
        latent_of_models(models, f"npz:{toy}", places, split="all")
    with pytest.raises(ConfigError, match="at least one model"):
        latent_of_models([], f"npz:{toy}", places)
    assert not list(tmp_path.rglob("test_ledger.jsonl"))


def test_the_command_writes_a_picture_and_prints_its_numbers(folders, toy, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["latent", *map(str, folders), "--task", f"npz:{toy}", "--perplexity", "10", "--offline"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    rows = out.splitlines()
    assert rows[0] == "96 images of the val split; guessing the commonest label gets 0.500"
    assert re.split(r"\s{2,}", rows[1]) == ["model", "stage", "space", "silhouette", "5-NN accuracy", "variance"]
    assert [re.split(r"\s+", row)[:3] for row in rows[2:5]] == [
        ["a/toy-small_cnn", "features", space] for space in ("features", "PCA", "t-SNE")
    ]
    assert re.search(r"PCA +-?0\.\d{3} +[01]\.\d{3}  \d+% \+ \d+%$", rows[3])
    assert rows[-1] == "latent.svg"
    first = (tmp_path / "latent.svg").read_bytes()
    assert ElementTree.fromstring(first).tag == "{http://www.w3.org/2000/svg}svg"
    assert main([*command, "--json", "--seed", "0", "--out", str(tmp_path / "second.svg")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["picture"] == str(tmp_path / "second.svg")
    assert len(found["numbers"]) == 9
    assert (tmp_path / "second.svg").read_bytes() == first
    assert not list(folders[0].parents[2].rglob("test_ledger.jsonl"))


def test_the_command_opens_the_test_split_when_told(folders, toy, capsys, tmp_path):
    model = copied(folders[:1], tmp_path / "models")[0]
    command = [
        "latent",
        str(model),
        "--task",
        f"npz:{toy}",
        "--split",
        "test",
        "--stage",
        "conv1",
        "conv2",
        "--perplexity",
        "5",
        "--offline",
    ]
    assert main([*command, "--out", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out.startswith("40 images of the test split")
    assert len((model / "test_ledger.jsonl").read_text().splitlines()) == 1


MISTAKES = {
    "perplexity": (["--perplexity", "96"], r"perplexity=96 needs more than 96 images, but there are 96: lower it or take more images"),
    "stage": (["--stage", "conv3"], r"small_cnn has no stage 'conv3' \(did you mean 'conv\d'\?\): choose from conv1, conv2, features"),
    "folder": (["--out", "nowhere/x.svg"], r"--out nowhere/x\.svg: there is no folder nowhere, make it first"),
    "suffix": (["--out", "x.png"], r"--out x\.png: the picture is an SVG, name a file that ends in \.svg"),
    "split": (["--split", "all"], r"argument --split: invalid choice: 'all'"),
    "data": (["--data", "nowhere"], r"--data nowhere is no folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(folders, toy, capsys, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    flags, sentence = MISTAKES[mistake]
    assert main(["latent", str(folders[0]), "--task", f"npz:{toy}", "--offline", *flags]) == 2
    refused(capsys.readouterr(), sentence, tmp_path)


def test_a_missing_model_and_several_labels_an_image_are_one_sentence(saved, toy, toy_npz, capsys, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert main(["latent", "nowhere", "--task", f"npz:{toy}", "--offline"]) == 2
    refused(capsys.readouterr(), r"there is no nowhere/config\.json: name the folder of a model", work)
    many, model = toy_npz(tmp_path / "many.npz", kind="multilabel"), saved("multilabel", ("0", "1", "2"))
    assert main(["latent", str(model), "--task", f"npz:{many}", "--offline"]) == 2
    refused(capsys.readouterr(), r"needs one label per image, but many\S* is multilabel: choose another task", work)


def refused(printed, sentence: str, folder: Path) -> None:
    assert printed.out == ""
    assert re.search(sentence, printed.err)
    assert printed.err.startswith("tlray: ")
    assert printed.err.count("\n") == 1
    assert not list(folder.iterdir())

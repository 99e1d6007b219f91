"""Predicting image files and scoring other data sets."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlray.deploy.package import load_model
from tlray.deploy.predict import evaluate_task, predict_files
from tlray.errors import DataError
from tlray.training.metrics import evaluate

PIXELS = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)


def test_files_are_answered_in_order_like_arrays(saved, tmp_path):
    model, files = load_model(saved()), [tmp_path / "one.png", tmp_path / "two.png"]
    for turn, file in enumerate(files):
        Image.fromarray(np.rot90(PIXELS, turn)).save(file)
    answers = predict_files(model, files)
    expected = model.predict(np.stack([np.rot90(PIXELS, turn)[None] for turn in range(2)]))
    assert [answer["file"] for answer in answers] == [str(file) for file in files]
    for answer, row in zip(answers, expected, strict=True):
        assert list(answer["probabilities"].values()) == pytest.approx(row.tolist())
        assert answer["class"] == ("normal", "sick")[row.argmax()]
        assert answer["probability"] == row.max()
        assert answer["decision"] == ("normal", "sick")[int(row[1] > 0.4)]
    assert json.loads(json.dumps(answers)) == answers


def test_the_threshold_decides_apart_from_the_likeliest_class(saved, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    folder = saved()
    score = predict_files(load_model(folder), [tmp_path / "one.png"])[0]["probabilities"]["sick"]
    for threshold, decision in ((score - 1e-6, "sick"), (score + 1e-6, "normal")):
        answer = predict_files(load_model(saved(threshold=threshold)), [tmp_path / "one.png"])[0]
        assert (answer["decision"], answer["threshold"]) == (decision, threshold)


def test_findings_are_listed_and_other_kinds_have_no_decision(saved, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "one.png")
    many = predict_files(load_model(saved("multilabel", ("x", "y"), threshold=[0.0, 1.0])), [tmp_path / "one.png"])[0]
    assert many["decision"] == ["x"]
    one = predict_files(load_model(saved("multiclass", ("a", "b", "c"))), [tmp_path / "one.png"])[0]
    assert not {"decision", "threshold"} & set(one)


def test_colour_and_size_are_adapted(saved, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 61, 3), dtype=np.uint8)).save(tmp_path / "big.jpg")
    assert predict_files(load_model(saved()), [tmp_path / "big.jpg"])[0]["probability"] >= 0.5


def test_no_files_and_bad_files(saved, tmp_path):
    model = load_model(saved())
    assert predict_files(model, []) == []
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"text\.png"):
        predict_files(model, [tmp_path / "text.png"])


def classes_of(kind: str) -> tuple[str, ...]:
    return tuple(str(each) for each in range(3 if kind != "binary" else 2))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_another_task_is_scored_once_and_written_down(saved, toy_npz, tmp_path, places, kind):
    spec = f"npz:{toy_npz(tmp_path / f'{kind}.npz', kind=kind, seed=5)}"
    model, ledger = load_model(saved(kind, classes_of(kind))), tmp_path / "ledger.jsonl"
    found = evaluate_task(model, spec, places, ledger=ledger)
    with np.load(tmp_path / f"{kind}.npz") as file:
        labels = file["test_labels"] if kind == "multilabel" else file["test_labels"].reshape(-1).astype(int)
        probabilities = model.predict(file["test_images"][:, None])
    expected = evaluate(kind, probabilities, labels)
    assert {name: each["value"] for name, each in found["metrics"].items()} == pytest.approx(expected, nan_ok=True)
    assert found["metrics"]["auroc"]["low"] <= found["metrics"]["auroc"]["value"] <= found["metrics"]["auroc"]["high"]
    assert (found["images"], found["split"]) == (32, "test")
    if kind == "multiclass":
        assert found["at_threshold"] is None
    else:
        at = evaluate(kind, probabilities, labels, model.threshold)
        assert found["at_threshold"]["recall"]["value"] == pytest.approx(at["recall"])
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(line["task"], line["images"]) for line in lines] == [(found["task"], 32)]


def test_the_ledger_lies_with_the_model_by_default_and_validation_needs_none(saved, toy_npz, tmp_path, places):
    folder, spec = saved(), f"npz:{toy_npz(tmp_path / 'toy.npz')}"
    assert evaluate_task(load_model(folder), spec, places, split="val")["images"] == 32
    assert not (folder / "test_ledger.jsonl").exists()
    evaluate_task(load_model(folder), spec, places)
    assert "evaluate" in (folder / "test_ledger.jsonl").read_text()
    with pytest.raises(DataError, match="no split 'train'"):
        evaluate_task(load_model(folder), spec, places, split="train")


def test_tasks_that_do_not_fit_are_refused(saved, toy_npz, tmp_path, places):
    many = f"npz:{toy_npz(tmp_path / 'many.npz', kind='multiclass')}"
    with pytest.raises(DataError, match="is multiclass with 3 classes, but the model is binary with 2"):
        evaluate_task(load_model(saved()), many, places)
    with np.load(toy_npz(tmp_path / "grey.npz")) as file:
        colour = {name: np.repeat(array[..., None], 3, axis=3) if "images" in name else array for name, array in file.items()}
    colour = {name: array + np.arange(3, dtype=np.uint8) if "images" in name else array for name, array in colour.items()}
    np.savez(tmp_path / "colour.npz", **colour)
    with pytest.raises(DataError, match="has colour images"):
        evaluate_task(load_model(saved()), f"npz:{tmp_path / 'colour.npz'}", places)


def folder_task(root: Path, classes: tuple[str, str]) -> str:
    random = np.random.default_rng(2)
    for split in ("train", "val", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(root / split / name / f"{number}.png")
    return f"folder:{root}"


def test_class_names_are_compared(saved, tmp_path, places):
    model = load_model(saved(classes=("normal", "sick")))
    same = evaluate_task(model, folder_task(tmp_path / "same", ("normal", "sick")), places)
    assert same["notes"] == []
    other = evaluate_task(model, folder_task(tmp_path / "other", ("cat", "dog")), places)
    assert "(cat, dog) are named differently from the model's (normal, sick): they are matched by number" in other["notes"][0]
    swapped = load_model(saved(classes=("sick", "normal")))
    with pytest.raises(DataError, match="the model's classes in another order"):
        evaluate_task(swapped, f"folder:{tmp_path / 'same'}", places)

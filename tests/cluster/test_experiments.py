"""Every experiment in miniature, through its own command line and the real Ray: results, pictures, verdicts, a page, a resume."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tlray
from tlray.cluster.session import Session
from tlray.experiment import experiment
from tlray.results import read_results, read_summary

SEEDS = 2


def load(name: str) -> ModuleType:
    """An experiment's file as a module of its own, whose constants a test may change."""
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", Path(tlray.__file__).parents[1] / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory, toy_npz: Callable[..., Path]) -> dict[str, str]:
    """Small learnable data sets by kind."""
    folder = tmp_path_factory.mktemp("experiments")
    return {
        "source": f"npz:{toy_npz(folder / 'source.npz', train=256, seed=1)}",
        "target": f"npz:{toy_npz(folder / 'target.npz', train=256, val=64, test=64)}",
        "findings": f"npz:{toy_npz(folder / 'findings.npz', kind='multilabel')}",
    }


@pytest.fixture
def go(data, tmp_path, capsys, ray_session: Session) -> Callable[..., dict[str, Any]]:
    def run(module: ModuleType, name: str, *more: str, source: str = data["source"], status: int = 0) -> dict[str, Any]:
        argv = ["--source", source, "--target", data["target"], "--seeds", str(SEEDS), "--storage", str(tmp_path), "--name", "mini", *more]
        got = experiment(module.main, module.__doc__, source="chestmnist", target="pneumoniamnist", argv=argv, name=name)
        printed = capsys.readouterr()
        assert got == status, printed.err
        return {"folder": tmp_path / "mini", "out": printed.out, "err": printed.err}

    return run


def check(folder: Path, arms: int, ids: set[str], pictures: set[str]) -> dict[str, Any]:
    """What every finished experiment leaves."""
    summary, rows = read_summary(folder), read_results(folder)
    about = summary["comparison"]
    assert not summary["partial"]
    assert len(about["arms"]) == arms
    assert rows["arm"].nunique() == arms
    assert {claim["id"] for claim in about["claims"]} == ids
    assert {claim["verdict"] for claim in about["claims"]} <= {"holds", "does not hold", "cannot be told apart"}
    assert all(claim["measured"] for claim in about["claims"])
    assert about["conclusion"].endswith(".")
    page = (folder / "report.html").read_text()
    for name in pictures:
        assert (folder / "pictures" / f"{name}.svg").read_text().startswith("<?xml")
    assert {Path(each["file"]).stem for each in summary["pictures"]} == pictures
    for each in summary["pictures"]:
        assert each["title"] in page
    return about


@pytest.mark.slow
def test_low_data(go):
    done = go(load("low_data"), "low_data", "--samples", "24", "--set", "epochs=2")
    about = check(done["folder"], 12, {"R0a", "R0b", "R0c", "R2b"}, {"reconstructions", "latent"})
    draws = {json.dumps(arm["config"]["samples"]) for arm in about["arms"]}
    assert draws == {"24"}
    assert "SSIM" in (done["folder"] / "report.html").read_text()
    assert "R0c" in done["out"]


@pytest.mark.slow
def test_chest_to_pneumonia_and_its_resume(go):
    done = go(module := load("chest_to_pneumonia"), "chest_to_pneumonia", "--set", "epochs=3", "--samples", "32")
    about = check(done["folder"], 17, {"R0d", "R1a", "R1b", "R1c", "R2a", "R2b"}, {"latent", "reconstructions"})
    cached = {arm["arm"]: arm["cost"]["cached"] for arm in about["arms"]}
    assert cached["classifier, frozen"] == 1
    assert cached["frozen, shifted images"] == cached["classifier, trainable"] == 0
    again = go(module, "chest_to_pneumonia", "--set", "epochs=3", "--samples", "32", "--resume")
    assert read_summary(again["folder"])["comparison"]["arms"] == about["arms"], "nothing is trained again"
    refused = go(module, "chest_to_pneumonia", "--set", "epochs=4", "--samples", "32", "--resume", status=2)
    assert "was started with other settings (settings.epochs was 3 and is 4 now)" in refused["err"]


@pytest.mark.slow
def test_mnist_to_emnist(go):
    module = load("mnist_to_emnist")
    module.SHOTS, module.HOME = (1, 32, 64), (1, 64)
    done = go(module, "mnist_to_emnist", "--samples", "64/class", "--set", "steps_per_epoch=2")
    stems = {Path(part.removeprefix("npz:")).stem for part in (done["out"].split("source ")[1].split(",")[0],)}
    assert stems == {"source"}
    pictures = {path.stem for path in (done["folder"] / "pictures").glob("*.svg") if not path.stem.startswith("report-")}
    about = check(done["folder"], 9 + 6 + 2, {"R3a", "R3b"}, pictures)
    assert {"square", "augmentations"} < pictures
    assert len(pictures) == 4
    weights = {arm["config"]["weights"] for arm in about["arms"]}
    assert all("seed=0" in each for each in weights), "of the first seed, each seed has its own"
    assert len(about["tasks"]) == 2


@pytest.mark.slow
def test_fixed_or_finetune(go, data):
    module = load("fixed_or_finetune")
    module.TRIALS = 2
    more = ("--seeds", "1", "--samples", "16", "--set", "epochs=1", "--set", "batch_size=8", "--set", "size=32")
    done = go(module, "fixed_or_finetune", *more, source=f"{data['source']}?epochs=1&samples=16&batch_size=8")
    about = check(done["folder"], 13, {"R4a", "R4b", "R4c", "R4"}, set())
    last = [row for row in about["comparisons"] if row["metric"] == "accuracy"][-1]
    means = {arm["arm"]: arm["validation"]["mean"] for arm in about["arms"] if arm["arm"] != "searched"}
    assert (last["arm"], last["against"]) == ("searched", max(means, key=means.__getitem__))


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("low_data", ("--samples", "257"), "samples=257, but task"),
        ("low_data", ("--samples", "many"), "samples='many' is neither a number nor N/class"),
        ("low_data", ("--set", "seed=3"), "--set seed=...: use --target, --seeds or --samples"),
        ("low_data", ("--seeds", "0"), "--seeds: 0 is out of range"),
        ("chest_to_pneumonia", ("--set", "lr=-1"), "lr=-1.0 is out of range"),
        ("chest_to_pneumonia", ("--set", "layer_decay=0.5"), "arm 'classifier, trainable, decay' sets its own layer_decay"),
        ("chest_to_pneumonia", ("--source", "none"), "--source none: this experiment pretrains on its source"),
        ("low_data", ("--source", "chestmnst"), "so name a data set or a path to one (did you mean 'chestmnist'?)"),
        ("fixed_or_finetune", ("--source", "none"), "unfreeze='head' starts from frozen stages"),
        ("low_data", ("--target", "pneumoniamnst"), "unknown task 'pneumoniamnst' (did you mean 'pneumoniamnist'?)"),
        ("mnist_to_emnist", ("--samples", "300/class"), "samples='300/class', but task"),
        ("low_data", ("--target", "npz:/nowhere.npz"), "/nowhere.npz"),
        ("low_data", ("--storage", "ftp://bucket/runs"), "ftp://bucket/runs is no place to store in"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(go, tmp_path, name, more, sentence):
    said = go(load(name), name, *more, status=2)["err"]
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "mini").exists(), "the mended command may have the name"


def test_a_latent_space_needs_one_label_per_image(go, data):
    said = go(load("chest_to_pneumonia"), "chest_to_pneumonia", "--target", data["findings"], "--set", "epochs=2", status=2)["err"]
    assert "is multilabel" in said
    assert said.count("\n") == 1

"""What a search leaves behind: tables, the winner by the rule, figures on the test split, a model that a stranger can use."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tlray.config import FIELDS
from tlray.deploy.model import load_model
from tlray.report.stats import rescale
from tlray.results import FAILED, read_trials
from tlray.runs.delivery import seed_figures
from tlray.training.metrics import evaluate

COLUMNS = ("cell", "task", "backbone", "trial", "epoch", "phase", "status", "reason", "train_loss", "train_accuracy", "monitor", "best",
           "seconds", "cached", "time")  # fmt: skip
METRICS = ("loss", "accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity", "auroc", "average_precision", "ece")

STRANGER = """
import json, sys, torch
from safetensors.torch import load_file
from tlray.cache import Places
from tlray.data.task import open_task
from tlray.models.classifier import build_classifier
from tlray.models.kinds import KINDS
from tlray.training.metrics import evaluate

for folder in sys.argv[1:]:
    about = json.load(open(f"{folder}/config.json"))
    backbone, kind, classes, *rest = (about[name] for name in ("backbone", "kind", "classes", "channels", "dropout", "mean", "std"))
    model = build_classifier(backbone, kind, len(classes), *rest).eval()
    model.load_state_dict(load_file(f"{folder}/model.safetensors"))
    val = open_task(about["config"]["task"], about["size"], Places()).val
    with torch.inference_mode():
        logits = model(torch.from_numpy(val.images.copy()))
    print(json.dumps(evaluate(kind, KINDS[kind].probabilities(logits).numpy(), val.labels)))
"""


@pytest.fixture(scope="module")
def repeated(make_run):
    """A search whose winner is trained with three seeds, on another kind."""
    return make_run("repeated", "tune", "--trials", "2", "--epochs", "1", "--seeds", "3", "--concurrent", "2", kind="multiclass")


@pytest.fixture(scope="module")
def trained(make_run):
    """One training, on multi-label data."""
    return make_run("trained", "train", "--epochs", "2", "--set", "lr=3e-3", "--concurrent", "1", kind="multilabel")


def table(run) -> pd.DataFrame:
    return pd.read_parquet(run.folder / "results.parquet")


def ledger(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "test_ledger.jsonl").read_text().splitlines()]


def test_everything_that_is_promised_lies_in_the_run(searched):
    there = {path.relative_to(searched.folder).as_posix() for path in searched.folder.rglob("*")}
    cell = searched.cell.name
    assert {"run.json", "summary.json", "results.parquet", "test_ledger.jsonl", "report.html", f"{cell}/predictions.npz"} <= there
    assert {f"{cell}/model/{name}" for name in ("model.safetensors", "config.json", "metrics.json", "README.md")} <= there


def test_the_table_has_a_row_per_epoch_and_every_column(searched):
    rows = table(searched)
    assert {*COLUMNS, *(f"config/{name}" for name in FIELDS), *(f"val_{name}" for name in METRICS)} <= {*rows}
    assert len(rows) == searched.summary["cells"][0]["epochs"]
    for _, trial in rows.groupby("trial"):
        assert trial["epoch"].tolist() == list(range(1, len(trial) + 1))
        assert trial["best"].tolist() == trial["monitor"].cummax().tolist()
    assert set(rows["trial"]) == {0, 1, 2}
    assert set(rows["status"]) <= {"finished", "stopped"}
    assert rows["monitor"].tolist() == rows["val_auroc"].tolist()


def test_the_recipes_go_first(searched):
    first = table(searched).groupby("trial").first()
    assert first["config/lr"].tolist()[:2] == [1e-3, 5e-4]
    assert first["config/dropout"].tolist()[:2] == [0.0, 0.5]
    assert first["config/lr"][2] not in (1e-3, 5e-4)


def test_the_winner_is_the_best_row_of_the_table_by_the_rule(searched):
    rows = table(searched)
    best = rows.sort_values(["monitor", "val_loss", "epoch", "trial"], ascending=[False, True, True, True]).iloc[0]
    won = searched.summary["cells"][0]["winner"]
    assert (won["trial"], won["epoch"]) == (best["trial"], best["epoch"])
    assert won["monitor"] == best["monitor"]
    assert {name: won["config"][name] for name in ("lr", "dropout")} == {name: best[f"config/{name}"] for name in ("lr", "dropout")}


def test_the_delivered_model_has_the_validation_metrics_of_the_winning_row(searched):
    entry = searched.summary["cells"][0]
    rows = table(searched).set_index(["trial", "epoch"])
    row = rows.loc[(entry["winner"]["trial"], entry["winner"]["epoch"])]
    for name, value in entry["validation"].items():
        assert math.isclose(row[f"val_{name}"], value, abs_tol=1e-5), name


@pytest.mark.slow
def test_a_stranger_gets_the_written_metrics_from_the_model_file(searched, repeated, trained, tmp_path):
    models = [run.cell / "model" for run in (searched, repeated, trained)]
    script = tmp_path / "stranger.py"
    script.write_text(STRANGER)
    done = subprocess.run([sys.executable, script, *models], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line, model in zip(done.stdout.splitlines(), models, strict=True):
        got, written = json.loads(line), json.loads((model / "metrics.json").read_text())["validation"]
        assert got.keys() == written.keys()
        for name in written:
            assert math.isclose(got[name], written[name], abs_tol=1e-5), f"{model}: {name}"


def test_the_model_file_alone_needs_no_original_place(searched, tmp_path):
    os.rename(searched.cell / "model", tmp_path / "taken")
    try:
        model = load_model(tmp_path / "taken")
    finally:
        os.rename(tmp_path / "taken", searched.cell / "model")
    assert model.classes == ("0", "1")
    assert model.size == 28


def test_the_test_split_is_opened_once_per_cell(searched):
    (line,) = ledger(searched)
    won = searched.summary["cells"][0]["winner"]
    assert line["images"] == 32
    assert f"trial {won['trial']}, epoch {won['epoch']}" in line["purpose"]


def test_test_figures_are_those_of_the_written_predictions(searched):
    from sklearn.metrics import roc_auc_score

    with np.load(searched.cell / "predictions.npz") as file:
        labels, probabilities = file["test_labels"], file["test_probabilities"]
    figures = searched.summary["cells"][0]["test"]
    assert len(labels) == 32
    assert math.isclose(figures["accuracy"]["value"], (probabilities.argmax(axis=1) == labels).mean(), abs_tol=1e-12)
    assert math.isclose(figures["auroc"]["value"], roc_auc_score(labels, probabilities[:, 1]), abs_tol=1e-12)
    for each in figures.values():
        assert each["low"] <= each["value"] <= each["high"]
        assert "bootstrap" in each["interval"]


def test_a_binary_model_has_a_threshold_and_a_multiclass_one_has_none(searched, repeated, trained):
    binary, multiclass, multilabel = (run.summary["cells"][0] for run in (searched, repeated, trained))
    assert 0 <= binary["threshold"] <= 1
    assert binary["threshold_rule"] == "youden"
    assert multiclass["threshold"] is None
    assert len(multilabel["threshold"]) == 3
    assert all(entry["temperature"] > 0 for entry in (binary, multiclass, multilabel))


def test_seeds_give_the_mean_and_a_t_interval_of_the_winning_configuration(repeated):
    """All on uncalibrated probabilities: a multiclass AUROC changes with the temperature, which the repeats do not have."""
    entry = repeated.summary["cells"][0]
    seeds = entry["seeds"]
    with np.load(repeated.cell / "predictions.npz") as predicted:
        calibrated, labels = predicted["test_probabilities"], predicted["test_labels"]
    own = evaluate(entry["kind"], rescale(entry["kind"], calibrated, 1 / entry["temperature"]), labels)
    assert seeds["auroc"]["values"][0] == pytest.approx(own["auroc"], abs=1e-9)
    for name in ("accuracy", "auroc"):
        values = seeds[name]["values"]
        assert len(values) == 3
        assert abs(values[0] - entry["test"][name]["value"]) < 0.05  # the winner's own, there calibrated
        mean, deviation = np.mean(values), np.std(values, ddof=1)
        half = 4.302652729911275 * deviation / math.sqrt(3)  # the 97.5 % quantile of Student's t with 2 degrees of freedom
        assert math.isclose(seeds[name]["mean"], mean, abs_tol=1e-12)
        assert math.isclose(seeds[name]["low"], mean - half, abs_tol=1e-9)
        assert math.isclose(seeds[name]["high"], mean + half, abs_tol=1e-9)
    assert len(set(seeds["auroc"]["values"])) > 1


def test_repeats_differ_from_the_winner_by_their_seed_alone(repeated):
    won = repeated.summary["cells"][0]["winner"]["config"]
    for number in (0, 1):
        trial = json.loads((repeated.cell / "seeds" / "trials" / f"{number:04d}" / "trial.json").read_text())
        assert trial["config"] == {**won, "seed": number + 1}
        assert trial["status"] == "finished"


def test_a_repeat_that_broke_off_is_left_out_and_named(repeated, places, tmp_path):
    seeds = repeated.summary["cells"][0]["seeds"]
    whole, broken = read_trials(repeated.cell / "seeds")
    broken = replace(broken, status=FAILED, history=broken.history[:1])
    first = {name: figure["values"][0] for name, figure in seeds.items()}
    left = seed_figures(repeated.cell, [whole, broken], first, places, tmp_path / "test_ledger.jsonl")
    assert left is not None
    assert left["auroc"]["values"] == pytest.approx(seeds["auroc"]["values"][:2])
    assert left["auroc"]["interval"] == "95 % t-interval over 2 seeds; broke off: seed 2"


def test_every_seed_opens_the_test_split_once(repeated):
    assert [line["purpose"].split(" of ")[0] for line in ledger(repeated)] == ["winner", "repeat", "repeat"]


def test_one_training_is_delivered_like_a_search(trained):
    entry = trained.summary["cells"][0]
    assert entry["trials"] == {"finished": 1}
    assert entry["winner"]["config"]["lr"] == 3e-3
    assert load_model(trained.cell / "model").kind == "multilabel"
    assert len(table(trained)) == 2
    assert len(ledger(trained)) == 1


def test_the_summary_says_what_was_used(searched):
    summary = searched.summary
    assert summary["partial"] is False
    assert summary["kind"] == "search"
    assert {"tlray", "python", "torch", "ray"} <= summary["versions"].keys()
    assert summary["cells"][0]["data"]["file"] == str(searched.npz)
    assert summary["cells"][0]["audit"]["images"] == {"train": 64, "val": 32, "test": 32}
    assert summary["cells"][0]["trials"].keys() <= {"finished", "stopped"}
    assert sum(summary["cells"][0]["trials"].values()) == 3

"""A comparison is a full grid of paired seeds whose choice stands before the test split is opened."""

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cluster_toys import toy_config, without_clock

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.session import Session
from tlray.data.subsets import select
from tlray.data.task import open_task
from tlray.errors import ConfigError, DataError, RunError
from tlray.report.stats import t_interval
from tlray.results import FAILED, FINISHED, Trial, read_summary, read_trials, trial_folder, write_trial
from tlray.runs import compare
from tlray.runs.compare import FOLDER, Comparison, Question
from tlray.runs.folder import Run
from tlray.training.checkpoint import found, load_checkpoint
from tlray.training.metrics import evaluate

ACROSS = {"lr": [1e-3, 1e-6], "regularised": {"plain": {}, "dropped": {"dropout": 0.5, "label_smoothing": 0.1}}}
SEEDS = (0, 7)
ARMS = ["lr=0.001 plain", "lr=0.001 dropped", "lr=1e-06 plain", "lr=1e-06 dropped"]


@dataclass(frozen=True)
class Compared:
    run: Run
    done: Comparison
    at_first_opening: dict[str, Any]
    file: Path

    @property
    def about(self) -> dict[str, Any]:
        return self.done.summary["comparison"]

    @property
    def trials(self) -> list[Trial]:
        return read_trials(self.run.folder / FOLDER)


@pytest.fixture(scope="module")
def new_run(tmp_path_factory: pytest.TempPathFactory, places: Places) -> Callable[[str], Run]:
    def make(name: str) -> Run:
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        return Run(folder, places, Resources(0, 2, 1, 0.0))

    return make


@pytest.fixture(scope="module")
def compared(new_run, toy_npz, tmp_path_factory: pytest.TempPathFactory, ray_session: Session) -> Compared:
    """A comparison of 2 x 2 arms under 2 seeds, with the summary as it stood when the test split was first opened."""
    run, seen = new_run("compared"), []
    module = sys.modules["tlray.runs.evaluation"]
    real = module.open_test

    def looked(*arguments: Any) -> Any:
        seen.append(read_summary(run.folder))
        return real(*arguments)

    file = toy_npz(tmp_path_factory.mktemp("data") / "toy.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_test", looked)
        done = compare(toy_config(file, epochs=2, monitor="loss"), ACROSS, run, SEEDS, Question("A title", "Which?", ("accuracy", "auroc")))
    return Compared(run, done, seen[0], file)


def test_every_combination_is_trained_to_its_end_under_every_seed(compared: Compared):
    got = [(trial.arm, trial.config["lr"], trial.config["dropout"], trial.config["seed"]) for trial in compared.trials]
    wanted = [(arm, lr, dropout, seed) for seed in SEEDS
              for arm, (lr, dropout) in zip(ARMS, itertools.product([1e-3, 1e-6], [0.0, 0.5]), strict=True)]  # fmt: skip
    assert got == wanted, "seed by seed, so that an interrupted comparison has every arm"
    assert {(trial.status, len(trial.history)) for trial in compared.trials} == {(FINISHED, 2)}


def test_the_choice_stands_before_the_test_split_is_opened(compared: Compared):
    before, after = compared.at_first_opening["comparison"], compared.about
    assert before["chosen"] == after["chosen"]
    assert compared.at_first_opening["partial"]
    assert not [entry["arm"] for entry in before["arms"] if entry.get("test")]
    assert all(entry["test"] for entry in after["arms"])


def test_the_choice_is_the_best_mean_on_validation(compared: Compared):
    means = {}
    for arm in ARMS:
        losses = [min(row["val_loss"] for row in trial.history) for trial in compared.trials if trial.arm == arm]
        means[arm] = sum(losses) / len(losses)
    assert list(compared.about["chosen"].values()) == [min(means, key=means.__getitem__)]


def test_the_test_split_is_opened_once_for_all_trainings(compared: Compared):
    lines = [json.loads(line) for line in compared.run.ledger.read_text().splitlines()]
    assert [line["purpose"] for line in lines] == ["comparison: 8 trainings of 4 arms, after the choice by validation"]


def test_figures_are_those_of_the_scored_trainings_and_pairs_are_paired(compared: Compared):
    entry = compared.done.entry(ARMS[0])
    values = []
    for trial in compared.trials:
        if trial.arm == ARMS[0]:
            with np.load(trial_folder(compared.run.folder / FOLDER, trial.number) / "scored.npz", allow_pickle=False) as stored:
                values.append(evaluate("binary", stored["test_probabilities"].astype(float), stored["test_labels"])["accuracy"])
    plain = t_interval(values)
    assert entry["test"]["accuracy"] == {**plain, "low": max(0.0, plain["low"]), "high": min(1.0, plain["high"])}
    assert entry["test_noise"]["accuracy"]["value"] == pytest.approx(np.mean(values))
    rows = compared.about["comparisons"]
    assert [(row["metric"], row["arm"], row["against"]) for row in rows] == [
        (metric, arm, ARMS[0]) for metric in ("accuracy", "auroc") for arm in ARMS[1:]
    ]
    other = compared.done.values(ARMS[3], "accuracy")
    assert rows[2]["difference"] == pytest.approx(np.mean(np.subtract(other, values)))
    assert "accuracy" in compared.about["conclusion"]


def test_every_arm_has_its_cost(compared: Compared):
    for entry in compared.about["arms"]:
        cost = entry["cost"]
        assert cost["parameters"] > 1000
        assert cost["ms_per_image"] > 0
        assert cost["megabytes"] > 0
        assert 0 < cost["epoch_seconds"]["mean"] <= cost["to_best_seconds"]["mean"] <= cost["seconds"]["mean"]
        assert cost["cached"] == 0
        assert entry["gap"]["mean"] == pytest.approx(entry["train"]["accuracy"]["mean"] - entry["val"]["accuracy"]["mean"])


def test_of_each_training_the_best_epoch_is_kept_without_its_optimizer(compared: Compared):
    for trial in compared.trials:
        best = min(trial.history, key=lambda row: row["val_loss"])["epoch"]
        files = found(trial_folder(compared.run.folder / FOLDER, trial.number) / "checkpoints")
        assert [epoch for epoch, _ in files] == [best]
        assert not [key for key in load_checkpoint(files[0][1]).tensors if key.startswith("optimizer.")]


def test_asking_again_trains_nothing_and_opens_nothing(compared: Compared):
    before = {path: path.stat().st_mtime_ns for path in (compared.run.folder / FOLDER).rglob("*") if path.is_file()}
    ledger = compared.run.ledger.read_text()
    base = toy_config(compared.file, epochs=2, monitor="loss")
    again = compare(base, ACROSS, compared.run, SEEDS, Question("A title", "Which?", ("accuracy", "auroc")))
    after = {path: path.stat().st_mtime_ns for path in (compared.run.folder / FOLDER).rglob("*") if path.is_file()}
    assert after == before
    assert compared.run.ledger.read_text() == ledger
    assert again.summary["comparison"] == compared.about


@pytest.mark.slow
def test_a_comparison_that_was_cut_off_goes_on_with_what_is_missing(compared: Compared, new_run):
    """All but the last training had ended: they are not run again, and the figures are the same."""
    run, trials = new_run("cut"), compared.trials
    for trial in trials[:-1]:
        write_trial(run.folder / FOLDER, trial)
        source = trial_folder(compared.run.folder / FOLDER, trial.number)
        shutil.copytree(source / "checkpoints", trial_folder(run.folder / FOLDER, trial.number) / "checkpoints")
    files = [trial_folder(run.folder / FOLDER, trial.number) / "trial.json" for trial in trials[:-1]]
    before = [file.stat().st_mtime_ns for file in files]
    base = toy_config(compared.file, epochs=2, monitor="loss")
    again = compare(base, ACROSS, run, SEEDS, Question("A title", "Which?", ("accuracy", "auroc")))
    assert [file.stat().st_mtime_ns for file in files] == before
    assert without_clock(read_trials(run.folder / FOLDER)[-1].history) == without_clock(trials[-1].history)
    theirs, ours = again.summary["comparison"], compared.about
    assert [(entry["validation"], entry["test"]) for entry in theirs["arms"]] == [
        (entry["validation"], entry["test"]) for entry in ours["arms"]
    ]
    assert theirs["comparisons"] == ours["comparisons"]


def test_a_training_that_broke_off_is_compared_with_nothing(compared: Compared, new_run):
    run = new_run("broken")
    for trial in compared.trials:
        broke = {"status": FAILED, "reason": "out of memory", "history": trial.history[:1]} if trial.number == 5 else {}
        write_trial(run.folder / FOLDER, replace(trial, **broke))
    said = rf"1 of 8 trainings broke off.* {ARMS[1]} under seed 7 after 1 of 2 epochs \(out of memory; in .*/trials/0005\).*--resume"
    with pytest.raises(RunError, match=said):
        compare(toy_config(compared.file, epochs=2, monitor="loss"), ACROSS, run, SEEDS)
    assert read_summary(run.folder)["partial"]
    assert (run.folder / "report.html").is_file()
    assert not run.ledger.exists()


def test_a_run_of_other_settings_is_refused(compared: Compared):
    with pytest.raises(RunError, match="was started with another epochs"):
        compare(toy_config(compared.file, epochs=3, monitor="loss"), ACROSS, compared.run, SEEDS)


@pytest.mark.slow
def test_folds_repeat_every_arm_and_widen_the_interval(new_run, toy_npz, tmp_path, ray_session: Session):
    run, base = new_run("folds"), toy_config(toy_npz(tmp_path / "toy.npz"), epochs=1)
    done = compare(base, {"lr": [1e-3, 1e-4], "folds": [4]}, run, (0,))
    about = done.summary["comparison"]
    trials = done.trials["lr=0.001"]
    assert about["folds"] == 4
    assert [trial.config["fold"] for trial in trials] == [0, 1, 2, 3]
    task = open_task(base.task, 28, run.places)
    drawn = [select(task, done.grid.configs[index][1])[1] for index in (0, 2, 4, 6)]
    assert sorted(np.concatenate(drawn).tolist()) == list(range(64)), "every training image is validated on once"
    interval = done.entry("lr=0.001")["validation"]
    plain = t_interval(interval["values"])
    assert "Nadeau-Bengio" in interval["interval"]
    wider = (interval["high"] - interval["low"]) / (plain["high"] - plain["low"])
    assert wider == pytest.approx(np.sqrt((1 / 4 + 1 / 3) / (1 / 4)))
    assert all("Nadeau-Bengio" in each["interval"] for each in about["comparisons"])


@pytest.mark.parametrize(
    ("across", "error", "sentence"),
    [
        ({"lr": [1e-3, -1.0]}, ConfigError, "lr=-1.0 is out of range"),
        ({"samples": [8, 65]}, DataError, "samples=65, but task"),
        ({"folds": [40]}, DataError, "too few for every fold"),
        ({"unfreeze": ["last_7"], "weights": ["digits"]}, ConfigError, "small_cnn has 2 stages"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_before_anything_runs(new_run, toy_npz, tmp_path, across, error, sentence):
    run = new_run("refused")
    with pytest.raises(error) as caught:
        compare(toy_config(toy_npz(tmp_path / "toy.npz")), across, run)
    assert sentence in str(caught.value)
    assert not list(run.folder.iterdir())


def test_metrics_that_the_task_does_not_have_are_refused_before_anything_runs(new_run, toy_npz, tmp_path):
    run = new_run("metrics")
    with pytest.raises(ConfigError, match=r"metrics: mae is not measured for toy-.*, a task of kind binary"):
        compare(toy_config(toy_npz(tmp_path / "toy.npz")), {"lr": [1e-3]}, run, question=Question(metrics=("accuracy", "mae")))
    assert not list(run.folder.iterdir())

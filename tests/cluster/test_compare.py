"""A comparison is a full grid of paired seeds whose choice stands before the test split is opened."""

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import toy_config, without_clock

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.cluster.session import Session
from tlray.errors import ConfigError
from tlray.results import FINISHED, Trial, read_summary, read_trials, trial_folder, write_trial
from tlray.runs import compare
from tlray.runs.compare import FOLDER, arms_of
from tlray.runs.folder import Run

ACROSS, SEEDS = {"lr": [1e-3, 1e-6], "dropout": [0.0, 0.5]}, (0, 7)


@dataclass(frozen=True)
class Compared:
    run: Run
    summary: dict[str, Any]
    at_first_opening: dict[str, Any]
    trials: list[Trial]


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
    module = sys.modules[compare.__module__]  # the package's name `compare` is the function
    real = module.open_test

    def looked(*arguments: Any) -> Any:
        seen.append(read_summary(run.folder))
        return real(*arguments)

    file = toy_npz(tmp_path_factory.mktemp("data") / "toy.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_test", looked)
        summary = compare(toy_config(file, epochs=2, monitor="loss"), ACROSS, run, SEEDS)
    return Compared(run, summary, seen[0], read_trials(run.folder / FOLDER))


def test_every_combination_is_trained_to_its_end_under_every_seed(compared: Compared):
    got = [(trial.config["lr"], trial.config["dropout"], trial.config["seed"]) for trial in compared.trials]
    assert sorted(got) == sorted(itertools.product(*ACROSS.values(), SEEDS))
    assert {(trial.status, len(trial.history)) for trial in compared.trials} == {(FINISHED, 2)}


def test_the_choice_stands_before_the_test_split_is_opened(compared: Compared):
    assert compared.at_first_opening["chosen"] == compared.summary["chosen"]
    assert not [entry["arm"] for entry in compared.at_first_opening["arms"] if "test" in entry]
    assert all("test" in entry for entry in compared.summary["arms"])


def test_the_choice_is_the_best_mean_on_validation(compared: Compared):
    means = {}
    for arm in {trial.arm for trial in compared.trials}:
        losses = [min(row["val_loss"] for row in trial.history) for trial in compared.trials if trial.arm == arm]
        means[arm] = sum(losses) / len(losses)
    assert compared.summary["chosen"] == min(means, key=means.__getitem__)


def test_every_opening_of_the_test_split_is_written_down(compared: Compared):
    lines = [json.loads(line) for line in compared.run.ledger.read_text().splitlines()]
    purposes = {f"comparison: {trial.arm}, seed {trial.config['seed']}" for trial in compared.trials}
    assert len(lines) == len(compared.trials)
    assert {line["purpose"] for line in lines} == purposes


def test_a_comparison_that_was_cut_off_goes_on_with_what_is_missing(compared: Compared, new_run):
    """All but the last training had ended: they are not run again, and the figures are the same."""
    run, base = new_run("cut"), replace(toy_config(Path(compared.trials[0].config["task"][4:])), epochs=2, monitor="loss")
    for trial in compared.trials[:-1]:
        write_trial(run.folder / FOLDER, trial)
        folder = trial_folder(run.folder / FOLDER, trial.number) / "checkpoints"
        folder.symlink_to(trial_folder(compared.run.folder / FOLDER, trial.number) / "checkpoints")
    before = [(trial_folder(run.folder / FOLDER, number) / "trial.json").stat().st_mtime_ns for number in range(len(compared.trials) - 1)]
    summary = compare(base, ACROSS, run, SEEDS)
    after = [(trial_folder(run.folder / FOLDER, number) / "trial.json").stat().st_mtime_ns for number in range(len(compared.trials) - 1)]
    assert after == before
    assert without_clock(read_trials(run.folder / FOLDER)[-1].history) == without_clock(compared.trials[-1].history)
    assert (summary["arms"], summary["chosen"]) == (compared.summary["arms"], compared.summary["chosen"])


def test_arms_are_named_by_what_sets_them_apart(tmp_path: Path):
    base = toy_config(tmp_path / "toy.npz")
    assert list(arms_of(base, {"lr": [1e-3, 0.1], "augment": ["none"]})) == ["lr=0.001 augment=none", "lr=0.1 augment=none"]
    assert arms_of(base, {}) == {"base": base}


@pytest.mark.parametrize(
    ("across", "sentence"),
    [({"lrr": [1e-3]}, "across: unknown field 'lrr' (did you mean 'lr'?)"), ({"lr": [-1.0]}, "lr=-1.0 is out of range")],
)
def test_unknown_fields_and_values_are_refused_before_anything_runs(tmp_path: Path, across: dict, sentence: str):
    with pytest.raises(ConfigError) as caught:
        arms_of(toy_config(tmp_path / "toy.npz"), across)
    assert sentence in str(caught.value)

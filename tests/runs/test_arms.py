"""What a comparison compares: names of arms, replicates, and what is refused."""

from pathlib import Path

import pytest

from tlray.config import Config
from tlray.errors import ConfigError
from tlray.runs.arms import SEED, Replicate, arms_of, config_of, make_grid, replicates_of

BASE = Config(task="digits", backbone="small_cnn")


def test_arms_are_named_by_what_sets_them_apart(tmp_path: Path):
    assert arms_of({"lr": [1e-3, 0.1], "augment": ["none"]}) == {
        "lr=0.001 augment=none": {"lr": 1e-3, "augment": "none"},
        "lr=0.1 augment=none": {"lr": 0.1, "augment": "none"},
    }
    assert arms_of({}) == {"base": {}}
    assert list(arms_of({"weights": ["none", f"{tmp_path}/deep/net.safetensors", f"mnist?samples=8/class&seed={SEED}"]})) == [
        "weights=none", "weights=net", "weights=mnist?samples=8/class",
    ]  # fmt: skip
    assert list(arms_of({"weights": ["digits/autoencoder", f"npz:{tmp_path}/scans.npz/autoencoder"]})) == [
        "weights=digits/autoencoder", "weights=scans/autoencoder",
    ]  # fmt: skip


def test_settings_that_go_together_have_one_name():
    arms = arms_of({"recipe": {"plain": {}, "soft": {"label_smoothing": 0.1, "dropout": 0.5}}, "lr": [0.1]})
    assert arms == {"plain lr=0.1": {"lr": 0.1}, "soft lr=0.1": {"label_smoothing": 0.1, "dropout": 0.5, "lr": 0.1}}


def test_the_seed_of_the_replicate_takes_its_place_in_weights():
    fields = {"weights": f"digits?samples=8/class&seed={SEED}"}
    config = config_of(BASE, fields, Replicate(3))
    assert (config.weights, config.seed) == ("digits?samples=8/class&seed=3", 3)


def test_folds_repeat_every_arm():
    across = {"lr": [0.1, 0.2], "folds": [3]}
    assert replicates_of(across, [0, 5]) == [Replicate(seed, fold, 3) for seed in (0, 5) for fold in range(3)]
    grid = make_grid(BASE, across, [0, 5])
    assert grid.arms == ["lr=0.1", "lr=0.2"]
    assert (grid.folds, grid.seeds) == (3, [0, 5])
    assert [(config.seed, config.fold, config.folds, config.lr) for _, config in grid.configs[:4]] == [
        (0, 0, 3, 0.1), (0, 0, 3, 0.2), (0, 1, 3, 0.1), (0, 1, 3, 0.2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("across", "seeds", "sentence"),
    [
        ({"lrr": [1e-3]}, [0], "across: unknown field 'lrr' (did you mean 'lr'?)"),
        ({"recipe": {"plain": {"dropuot": 1}}}, [0], "across: unknown field 'dropuot' (did you mean 'dropout'?)"),
        ({"lr": []}, [0], "across: lr has no values"),
        ({"lr": [0.1], "recipe": {"slow": {"lr": 0.01}}}, [0], "across: lr is set twice in 'slow'"),
        ({"lr": [0.1, 0.1]}, [0], "two arms are called 'lr=0.1'"),
        ({"seed": [0, 1]}, [0], "seed repeats every arm"),
        ({"fold": [0, 1]}, [0], "name folds=[K]"),
        ({"folds": [3, 5]}, [0], "folds takes one number"),
        ({"lr": [-1.0]}, [0], "lr=-1.0 is out of range"),
        ({"lr": 1e-3}, [0], "across: lr needs a list of values, such as [0.001]"),
        ({"unfreeze": "full"}, [0], "across: unfreeze needs a list of values, such as ['full']"),
        ({"recipe": {"plain": None}}, [0], "across: recipe needs {name: {field: value}}, but 'plain' stands for None"),
        ({"folds": 5}, [0], "folds takes one number of at least 2"),
        ({"folds": [1]}, [0], "folds takes one number of at least 2"),
        ({"folds": [-1]}, [0], "folds takes one number of at least 2"),
        ({"monitor": ["auroc", "loss"]}, [0], "monitor chooses among the arms"),
        ({}, 5, "seeds must be a list of different numbers"),
        ({}, [0, 0], "seeds must be a list of different numbers"),
        ({}, [], "seeds must be a list of different numbers"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_sentence(across, seeds, sentence):
    with pytest.raises(ConfigError) as caught:
        make_grid(BASE, across, seeds)
    assert sentence in str(caught.value)

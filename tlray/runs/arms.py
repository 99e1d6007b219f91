"""What a comparison compares: arms (named configurations) and replicates (seeds, folds) that all arms share, so that they are paired."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tlray.config import FIELDS, Config
from tlray.errors import ConfigError
from tlray.registry import did_you_mean

Across = Mapping[str, Sequence[Any] | Mapping[str, Mapping[str, Any]]]
"""Field -> its values, or any other word -> {name: {field: value, ...}} for settings that go together under one name."""
SEED = "{seed}"
"""Stands in a text value for the seed of the replicate: `weights="mnist?samples=8/class&seed={seed}"`."""


@dataclass(frozen=True)
class Replicate:
    """One repetition of every arm: a seed and, in a cross-validation, one of its folds."""

    seed: int
    fold: int | None = None
    folds: int | None = None


def replicates_of(across: Across, seeds: Sequence[int]) -> list[Replicate]:
    """Every repetition: the seeds, or with `folds` in across all folds of each. Raises ConfigError when there is nothing to repeat."""
    if not isinstance(seeds, Sequence) or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError("seeds must be a list of different numbers, at least one, such as range(5)")
    if "fold" in across:
        raise ConfigError("across: name folds=[K]; every fold of the K is then trained")
    if "folds" not in across:
        return [Replicate(seed) for seed in seeds]
    folds = across["folds"]
    if not isinstance(folds, Sequence) or len(folds) != 1 or not isinstance(folds[0], int) or folds[0] < 2:
        raise ConfigError("across: folds takes one number of at least 2, such as folds=[5], since arms are paired fold by fold")
    return [Replicate(seed, fold, folds[0]) for seed in seeds for fold in range(folds[0])]


def arms_of(across: Across) -> dict[str, dict[str, Any]]:
    """Every combination of the named values, as name -> fields: {"unfreeze=head lr=0.001": {"unfreeze": "head", "lr": 0.001}}.

    Raises ConfigError for an unknown field, an empty dimension, or two that set the same field.
    """
    dimensions = [_choices(name, values) for name, values in across.items() if name != "folds"]
    arms = {}
    for chosen in itertools.product(*dimensions):
        fields: dict[str, Any] = {}
        for name, values in chosen:
            if twice := sorted(fields.keys() & values.keys()):
                raise ConfigError(f"across: {twice[0]} is set twice in {name!r}: name it in one place")
            fields |= values
        label = " ".join(name for name, _ in chosen) or "base"
        if label in arms:
            raise ConfigError(f"across: two arms are called {label!r}: give them names of their own")
        arms[label] = fields
    return arms


def _choices(name: str, values: Sequence[Any] | Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(label, fields) of every value of one dimension."""
    if isinstance(values, str) or not isinstance(values, Sequence | Mapping):
        raise ConfigError(f"across: {name} needs a list of values, such as [{values!r}]")
    if not len(values):
        raise ConfigError(f"across: {name} has no values")
    if isinstance(values, Mapping):
        if wrong := [label for label, fields in values.items() if not isinstance(label, str) or not isinstance(fields, Mapping)]:
            raise ConfigError(f"across: {name} needs {{name: {{field: value}}}}, but {wrong[0]!r} stands for {values[wrong[0]]!r}")
        bundles = [(label, dict(fields)) for label, fields in values.items()]
    else:
        bundles = [(f"{name}={_short(name, value)}", {name: value}) for value in values]
    for _, fields in bundles:
        if unknown := [field for field in fields if field not in FIELDS]:
            raise ConfigError(f"across: unknown field {unknown[0]!r}{did_you_mean(unknown[0], FIELDS)}")
        if fixed := sorted(fields.keys() & {"seed", "fold", "folds"}):
            raise ConfigError(f"across: {fixed[0]} repeats every arm and cannot set arms apart: use seeds, or folds=[K]")
        if "monitor" in fields:
            raise ConfigError("across: monitor chooses among the arms and must be the same for all: set it once")
    return bundles


def short_name(spec: str) -> str:
    """A task or weights as they read in an arm's name: files and folders by their stem, without the seed's place."""
    text = spec.replace(f"?seed={SEED}", "").replace(f"&seed={SEED}", "")
    if "?" in text or not ("/" in text or ":" in text):
        return text
    path = Path(text.partition(":")[2] or text)
    return f"{path.parent.stem}/autoencoder" if path.name == "autoencoder" and path.parent.name else path.stem


def _short(name: str, value: Any) -> str:
    return short_name(value) if name in ("task", "weights") and isinstance(value, str) else str(value)


def config_of(base: Config, fields: Mapping[str, Any], replicate: Replicate) -> Config:
    """The training of one arm in one replicate. Raises ConfigError for values that no Config may have."""
    filled = {name: value.replace(SEED, str(replicate.seed)) if isinstance(value, str) else value for name, value in fields.items()}
    if replicate.fold is not None:
        filled |= {"folds": replicate.folds, "fold": replicate.fold}
    return replace(base, **filled, seed=replicate.seed)


@dataclass(frozen=True)
class Grid:
    """The trainings of a comparison, replicate by replicate, so that an interrupted one has some of every arm.

    configs: (arm, Config) in the order of the trials' numbers.
    """

    base: Config
    replicates: list[Replicate]
    arms: list[str]
    configs: list[tuple[str, Config]]

    @property
    def folds(self) -> int | None:
        """Folds of the cross-validation, None without one."""
        return self.replicates[0].folds

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(dict.fromkeys(each.seed for each in self.replicates))

    def first(self, arm: str) -> Config:
        """An arm's training in the first replicate."""
        return next(config for name, config in self.configs if name == arm)


def make_grid(base: Config, across: Across, seeds: Sequence[int]) -> Grid:
    """Every arm in every replicate. Raises ConfigError for wrong names, values or combinations."""
    replicates, arms = replicates_of(across, seeds), arms_of(across)
    configs = [(arm, config_of(base, fields, replicate)) for replicate in replicates for arm, fields in arms.items()]
    return Grid(base, replicates, list(arms), configs)

"""What a search will do, settled before Ray starts: tasks and weights that can be had, cells, the space, an estimate of the time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tlray.cache import Places
from tlray.config import AS_WEIGHTS, Config
from tlray.data.subsets import select
from tlray.data.task import Task, available, open_task
from tlray.errors import ConfigError
from tlray.models.backbones import build_backbone
from tlray.models.weights import imagenet_available, open_weights
from tlray.training.metrics import chance_metrics, monitor_value
from tlray.training.phases import Phase, phases
from tlray.training.pretrain import pretraining_config
from tlray.training.setup import BFLOAT16_TRAINS_FASTER

DEFAULT_TASKS = ("pneumoniamnist", "breastmnist")
DEFAULT_BACKBONES = ("resnet50", "mobilenet_v2")
PHANTOM, PHANTOM_SOURCE = "phantom_pneumonia", "phantom_chest?epochs=3"


@dataclass(frozen=True)
class Scale:
    """How much a search does unless it is told: trials per cell, epochs per training, pixels on a side.

    precisions: arithmetic by backbone where an earlier session of the run has chosen it; None: the machine decides.
    """

    trials: int
    epochs: int
    size: int
    precisions: dict[str, str] | None = None


LAPTOP, SERVER, GPU = Scale(8, 4, 28), Scale(12, 6, 28), Scale(30, 20, 224)


def default_scale(has: dict[str, float]) -> Scale:
    """By what the machine has: with a GPU, with eight cores or more, or with fewer."""
    if has["GPU"]:
        return GPU
    return SERVER if has["CPU"] >= 8 else LAPTOP


SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
    "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
    "scheduler": CategoricalDistribution(("constant", "step", "cosine", "one_cycle", "plateau", "slanted_triangular")),
    "unfreeze": CategoricalDistribution(("full", "head", "last_1", "last_2", "first_2", "head_then_full", "gradual")),
    "layer_decay": FloatDistribution(0.5, 1.0),
    "label_smoothing": FloatDistribution(0.0, 0.2),
    "augment": CategoricalDistribution(("none", "flip", "shift", "flip_shift", "rotate", "affine", "erase", "mixup", "collage")),
}
"""What the main job searches. Scientific: unfreeze, augment; nuisance: the rest."""

FIRST: tuple[dict[str, Any], ...] = (
    {"unfreeze": "full", "lr": 1e-3, "augment": "shift"},
    {"unfreeze": "full", "lr": 5e-4, "dropout": 0.5, "augment": "shift"},
    {"unfreeze": "head", "lr": 1e-3, "dropout": 0.5},
)
"""Recipes that go first and run to their end, so that the winner is never worse than they are on validation."""

PLATEAU_EPOCHS = 5
"""Epochs that a phase must have before the plateau scheduler can differ from a constant rate."""

MS_PER_IMAGE = {
    # (a, b): full training of one image takes about a + b (size / 28)^2 milliseconds on one core of a 2026 x86 server, float32
    "small_cnn": (0.02, 0.13), "resnet18": (1.2, 1.9), "mobilenet_v2": (0.9, 1.2), "resnet50": (4.0, 5.0),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One study: a task and a backbone. base: everything that is not searched. name: its folder's. why: its precision was chosen."""

    name: str
    base: Config
    task: Task
    space: dict[str, BaseDistribution]
    first: tuple[dict[str, Any], ...]
    why: str = "default"

    def plans(self) -> list[list[Phase]]:
        """The phases of every schedule that a trial may have."""
        domain = self.space.get("unfreeze")
        names = list(domain.choices) if isinstance(domain, CategoricalDistribution) else [self.base.unfreeze]
        names += [recipe["unfreeze"] for recipe in self.first if "unfreeze" in recipe]
        stages = build_backbone(self.base.backbone, self.task.channels, 0.0).stage_names
        configs = [replace(self.base, unfreeze=str(name)) for name in dict.fromkeys(names)]
        return [phases(config, stages) for config in configs if _allowed(config, {}, stages)]

    def epoch_seconds(self, threads: int) -> float | None:
        """Estimated time of an epoch in which everything trains, None for a backbone without figures."""
        seconds = image_seconds(self.base, threads)
        if seconds is None:
            return None
        steps = self.base.steps_per_epoch
        images = steps * self.base.batch_size if steps else len(select(self.task, self.base)[0])
        return seconds * (images + len(self.task.val) / 3)


def image_seconds(config: Config, threads: int) -> float | None:
    """Estimated CPU time of training one image fully; a second thread is worth about .7 of the first."""
    if config.backbone not in MS_PER_IMAGE:
        return None
    a, b = MS_PER_IMAGE[config.backbone]
    faster = BFLOAT16_TRAINS_FASTER.get(config.backbone, 1.0) if config.precision == "bfloat16" else 1.0
    return (a + b * (config.size / 28) ** 2) / 1000 / (1 + 0.7 * (threads - 1)) / faster


def choose_tasks(named: Sequence[str] | None, size: int, places: Places) -> tuple[list[str], list[str]]:
    """The tasks to search, and banner lines. Named ones never fall back: opening them later says what is missing.

    Default tasks that cannot be had are replaced, once, by the embedded phantom.
    """
    if named:
        return list(named), []
    reasons = {task: available(task, size, places) for task in DEFAULT_TASKS}
    tasks = [task for task in DEFAULT_TASKS if reasons[task] is None]
    missing = [f"{task} cannot be had: {reason}" for task, reason in reasons.items() if reason]
    if not missing:
        return tasks, []
    return [*tasks, PHANTOM], [
        f"PHANTOM DATA: {PHANTOM}, drawn by a seeded generator, stands in for {' and '.join(t for t in reasons if reasons[t])}.",
        "Its figures say nothing about patients or about how good a method is.",
        *missing,
    ]


def choose_weights(named: str | None, task: str, backbone: str, places: Places) -> tuple[str, str | None]:
    """The weights of a cell, and a banner line where they are a fallback. Named weights never fall back."""
    if named is not None:
        return named, None
    if backbone == "small_cnn":
        return "none", None
    reason = imagenet_available(backbone, places)
    if reason is None:
        return "imagenet", None
    if task.startswith("phantom_"):
        return (
            PHANTOM_SOURCE,
            f"Weights of {backbone} for {task} are pretrained here on {PHANTOM_SOURCE}, as ImageNet's cannot be had: {reason}",
        )
    return "none", f"{backbone} trains {task} from scratch, WITHOUT TRANSFER, as ImageNet weights cannot be had: {reason}"


def plan_cells(
    tasks: Sequence[str], backbones: Sequence[str], weights: str | None, base: Config, fixed: dict[str, Any], places: Places,
    space: dict[str, BaseDistribution] | None = None, first: Sequence[dict[str, Any]] | None = None,
) -> tuple[list[Cell], list[str]]:  # fmt: skip
    """Every cell, checked as far as it can be without Ray, and banner lines about weights.

    Raises the UserError of whatever is missing or wrong: data, weights, names, a space in which nothing can be chosen.
    """
    cells, banner = [], []
    for task in tasks:
        opened = open_task(task, base.size, places)
        for backbone in backbones:
            source, line = choose_weights(weights, task, backbone, places)
            banner += [line] if line else []
            cells.append(_cell(opened, replace(base, task=task, backbone=backbone, weights=source, **fixed), fixed, places, space, first))
    return cells, list(dict.fromkeys(banner))


def _cell(
    task: Task, base: Config, fixed: dict[str, Any], places: Places, space: dict[str, BaseDistribution] | None,
    first: Sequence[dict[str, Any]] | None,
) -> Cell:  # fmt: skip
    check_training(base, task, places)
    stages = build_backbone(base.backbone, task.channels, 0.0).stage_names
    free = {name: domain for name, domain in (SPACE if space is None else space).items() if name not in fixed}
    if space is None:
        free = _possible(free, base, stages)
    recipes = [{**recipe, **{k: v for k, v in fixed.items() if k in recipe}} for recipe in (FIRST if first is None else first)]
    usable = [recipe for recipe in recipes if first is not None or _allowed(base, recipe, stages)]
    configs = [replace(base, **recipe) for recipe in usable]
    for config in configs:
        phases(config, stages)
    unique = [recipe for index, recipe in enumerate(usable) if configs[index] not in configs[:index]]
    return Cell(f"{task.name}-{base.backbone}", base, task, free, tuple(unique))


def _possible(space: dict[str, BaseDistribution], base: Config, stages: Sequence[str]) -> dict[str, BaseDistribution]:
    """The default space without what this cell cannot have: frozen starts without weights, two phases in one epoch, a plateau too short."""
    possible = dict(space)
    if base.epochs < PLATEAU_EPOCHS and "scheduler" in possible:
        courses = [each for each in possible["scheduler"].choices if each != "plateau"]  # type: ignore[attr-defined]
        possible["scheduler"] = CategoricalDistribution(courses)
    if "unfreeze" in possible:
        choices = [each for each in possible["unfreeze"].choices if _allowed(base, {"unfreeze": each}, stages)]  # type: ignore[attr-defined]
        possible["unfreeze"] = CategoricalDistribution(choices)
        if len(choices) == 1:
            del possible["unfreeze"]
    elif base.unfreeze == "head":
        possible.pop("layer_decay", None)
    return possible


def _allowed(base: Config, values: dict[str, Any], stages: Sequence[str]) -> bool:
    try:
        phases(replace(base, **values), stages)
    except ConfigError:
        return False
    return True


def check_training(config: Config, task: Task, places: Places) -> None:
    """Check what a training needs before any trial starts: subset, weights that are there, a size that the backbone takes.

    So also for the pretraining that its weights come from. Raises the UserError of whatever is missing or wrong, also for an
    autoencoder, of which no run can deliver a classifier.
    """
    if config.objective == "autoencoder":
        raise ConfigError(f"objective='autoencoder' gives no classifier: an autoencoder is a pretraining, name it as {AS_WEIGHTS}")
    _, val, split = select(task, config)
    monitor_value(chance_metrics(task.kind, len(task.classes), np.asarray(split.labels[val])), config.monitor)
    source = pretraining_config(config)
    _check_network(config, task)
    if source is None:
        open_weights(config.weights, config.backbone, task.channels, places)
        return
    opened = open_task(source.task, source.size, places)
    if source.objective == "autoencoder":  # it looks at no labels
        select(opened, source)
        _check_network(source, opened)
    else:
        check_training(source, opened, places)


def _check_network(config: Config, task: Task) -> None:
    backbone = build_backbone(config.backbone, task.channels, config.dropout)
    backbone.check_size(config.size)
    phases(config, backbone.stage_names)


def estimate(cells: Sequence[Cell], trials: int, epochs: int, concurrent: int, threads: int) -> float | None:
    """Seconds that all trials are likely to take on CPUs: the first ones whole, of the others about half their epochs; None if unknown.

    Half, because ASHA stops about every second trial at each rung, and schedules with frozen stages cost less.
    """
    total = 0.0
    for cell in cells:
        seconds = cell.epoch_seconds(threads)
        if seconds is None:
            return None
        whole = min(trials, len(cell.first))
        total += seconds * epochs * (whole + 0.5 * (trials - whole)) / concurrent
    return total

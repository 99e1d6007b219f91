"""What experiments draw from a finished comparison: latent spaces of its arms, lines over a setting, augmented images."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tlray.cache import digest, write_json
from tlray.config import RECONSTRUCTION, Config
from tlray.data.task import Task, open_task
from tlray.errors import RunError
from tlray.report.latent import View, embed_pca, embed_tsne, latent_picture, separability, subsample
from tlray.report.lines import augmented, lines, square
from tlray.report.style import nice
from tlray.runs.compare import FOLDER, Comparison
from tlray.runs.delivery import assemble
from tlray.runs.folder import Drawing, Run
from tlray.runs.planning import SPACE
from tlray.runs.reconstruction import reconstruction
from tlray.training.features import stage_features

PERPLEXITY = 30.0
MOST = 500
"""Validation images in a latent space of an experiment."""


def _embedded(
    comparison: Comparison, arm: str, replicate: int, stage: str, task: Task | None = None
) -> tuple[np.ndarray, np.ndarray, Task]:
    """Features float [N, D], labels and task of validation images as one training of an arm sees them at a stage.

    Multi-label images are labelled by whether they have any finding.
    """
    trial = comparison.trials[arm][replicate]
    row = trial.best_row(comparison.grid.base.minimise)
    assert row is not None
    prepared = assemble(comparison.run.folder / FOLDER, trial, row["epoch"], comparison.run.places)
    shown = task or prepared.task
    split, chosen = (prepared.val_split, prepared.val) if task is None else (task.val, np.arange(len(task.val)))
    labels = np.asarray(split.labels[chosen])
    if shown.kind == "multilabel":
        labels = (labels.sum(axis=1) > 0).astype(np.int64)
    some = subsample(labels, MOST)
    return stage_features(prepared.model, np.asarray(split.images[chosen[some]]), stage), labels[some], shown


def latent_drawing(comparison: Comparison, name: str, arms: Mapping[str, str], stages: Sequence[str], title: str) -> Drawing:
    """PCA and t-SNE of validation images, one column per arm (arm -> its short name) and stage, all of the first replicate."""
    views, classes = [], ()
    for arm, short in arms.items():
        for stage in stages:
            features, labels, task = _embedded(comparison, arm, 0, stage)
            views.append(View(short, stage, features, labels))
            classes = task.classes
    perplexity = min(PERPLEXITY, (len(views[0].labels) - 1) // 3)
    svg, _ = latent_picture(title, views, classes, perplexity=perplexity)
    caption = f"{len(views[0].labels)} validation images, seed {comparison.grid.seeds[0]}, t-SNE with perplexity {perplexity:g}."
    return Drawing(name, title, svg, caption)


def separabilities(
    comparison: Comparison, arm: str, stage: str = "features", space: str = "features", task: Task | None = None
) -> list[float]:
    """Leave-one-out 5-NN accuracy of validation images in a space (features, PCA or t-SNE in two dimensions), one per replicate.

    task: whose validation images are shown; by default the arm's own.
    """
    found = []
    for replicate in range(len(comparison.trials[arm])):
        points, labels, _ = _embedded(comparison, arm, replicate, stage, task)
        if space == "PCA":
            points = embed_pca(points)[0]
        elif space == "t-SNE":
            points = embed_tsne(points, min(PERPLEXITY, (len(points) - 1) // 3), 0)
        found.append(separability(points, labels)["knn_accuracy"])
    return found


def reconstruction_drawing(weights: str, target: Config, run: Run) -> Drawing:
    """What the autoencoder that `weights` names makes of test images of its source, with MSE, PSNR and SSIM."""
    kept = run.folder / f"reconstruction-{digest(weights, target.backbone, target.size)[:16]}.json"
    if not kept.is_file():  # a run that is taken up again does not open the test split again
        write_json(kept, reconstruction(weights, target, run))
    try:
        found = json.loads(kept.read_text())
    except ValueError:
        raise RunError(f"{kept} is damaged: remove it and resume, it is made anew") from None
    figures = ", ".join(
        f"{nice(name)} {found[name]['value']:.4f} [{found[name]['low']:.4f}, {found[name]['high']:.4f}]" for name in RECONSTRUCTION
    )
    caption = f"{found['images']} test images of {found['source']}: {figures} (95 % bootstrap over images). {found['definition']}"
    return Drawing("reconstructions", "Autoencoder: inputs over reconstructions", found["svg"], caption)


def line_drawing(
    comparison: Comparison, name: str, series: Mapping[str, Sequence[tuple[float, str]]], metric: str, title: str, xlabel: str, caption: str
) -> Drawing:  # fmt: skip
    """A test metric over a setting. series: name -> (value of the setting, arm)."""
    points: dict[str, list[tuple[float, dict[str, Any]]]] = {
        each: [(x, comparison.entry(arm)["test"][metric]) for x, arm in arms] for each, arms in series.items()
    }
    seeds = len(comparison.grid.seeds)
    band = f" Bands: 95 % t-intervals over {seeds} seeds." if seeds > 1 else ""
    return Drawing(name, title, lines(title, points, xlabel, f"test {metric}"), caption + band)


def square_drawing(comparison: Comparison, tasks: Sequence[str], arm_of: Callable[[str, str], str], metric: str) -> Drawing:
    """A test metric of every source and target. arm_of: (source, target) -> arm."""
    cells = {(source, target): comparison.entry(arm_of(source, target))["test"][metric] for source in tasks for target in tasks}
    title = f"Test {metric} by source and target"
    return Drawing("square", title, square(title, tasks, tasks, cells, ("target", "source")), "Means with 95 % t-intervals over seeds.")


def augmented_drawing(config: Config, run: Run) -> Drawing:
    """What every augmentation that is searched makes of eight training images of a task with one label per image."""
    task = open_task(config.task, config.size, run.places)
    chosen = np.sort(subsample(np.asarray(task.train.labels), 8, seed=1))
    searched: Any = SPACE["augment"]
    svg = augmented("Augmentations", task.train.images[chosen], task.train.labels[chosen], task.classes, searched.choices)
    return Drawing("augmentations", "Augmentations", svg, f"Eight training images of {task.name}; soft labels under mixed ones.")

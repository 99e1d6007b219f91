"""The latent space of delivered models on a task: what each makes of the same images, at one or several of its stages."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlray.cache import Places
from tlray.data.held_out import open_test
from tlray.data.task import Split, Task, open_task
from tlray.deploy.model import Model, load_model
from tlray.deploy.predict import fitting
from tlray.errors import ConfigError, DataError
from tlray.report.latent import MOST, View, check_perplexity, latent_picture, subsample
from tlray.storage import AnyPath, place
from tlray.training.features import POOLED, check_stage, stage_features

log = logging.getLogger(__name__)
SPLITS = {"test": "test", "val": "validation", "train": "training"}
"""Short name -> as it is written."""


def latent_of_models(
    folders: Sequence[str | AnyPath],
    task: str,
    places: Places,
    split: str = "test",
    stages: Sequence[str] = (POOLED,),
    perplexity: float = 30,
    seed: int = 0,
    most: int = MOST,
    ledger: AnyPath | None = None,
) -> tuple[str, list[dict[str, Any]]]:
    """PCA and t-SNE of what models make of a task's images: one column for each model and stage, all of the same images.

    Args:
        folders: of delivered models; they may differ in size, the task is prepared at each one's.
        task: as in Config.task, with one label per image.
        split: test, val or train. The test split is opened through `open_test`, once for each model.
        stages: names that every one of the models has, see `stage_features`.
        perplexity, seed: of t-SNE; the seed also draws the images.
        most: images that are shown, drawn by label.
        ledger: where openings of the test split are written down; by default `test_ledger.jsonl` in each model's folder.

    Returns (inline SVG, numbers) as `latent_picture` does. What differs between the task and a model's own is logged as a warning.
    Raises RunError, WeightsError for folders without a sound model, ConfigError for an unknown stage or split or a bad perplexity,
    DataError when the task does not fit a model or has several labels per image.
    """
    if not folders or not stages:
        raise ConfigError("a latent space needs at least one model and one stage: name them")
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}: choose {', '.join(SPLITS)}")
    check_perplexity(perplexity)
    models, tasks = [load_model(folder) for folder in folders], []
    stages = list(dict.fromkeys(stages))
    for model in models:
        for stage in stages:
            check_stage(model.network, stage)
    for model in models:
        tasks.append(open_task(task, model.size, places))
        _check(model, tasks[-1])
    names, views = _names(folders), []
    for name, model, opened in zip(names, models, tasks, strict=True):
        data = _open(opened, split, model, ledger)
        chosen = subsample(np.asarray(data.labels), most, seed)
        images, labels = np.array(data.images[chosen]), np.asarray(data.labels)[chosen]
        views += [View(name, stage, stage_features(model.network, images, stage), labels) for stage in stages]
    title = f"Latent space of {tasks[0].name}, {len(views[0].labels):,} images of the {SPLITS[split]} split"
    return latent_picture(title, views, tasks[0].classes, perplexity, seed, most)


def _check(model: Model, task: Task) -> None:
    """DataError when a model's features of a task cannot be shown by label; a warning about what differs."""
    if task.kind == "multilabel":
        raise DataError(f"a latent space needs one label per image, but {task.name} is multilabel: choose another task")
    for note in fitting(model, task):
        log.warning("%s: %s", model.folder, note)


def _open(task: Task, split: str, model: Model, ledger: AnyPath | None) -> Split:
    if split == "test":
        return open_test(task, ledger or model.folder / "test_ledger.jsonl", f"latent space of {model.folder}")
    return task.val if split == "val" else task.train


def _names(folders: Sequence[str | AnyPath]) -> list[str]:
    """As much of each folder's end as tells it from the others, without the `model` that all of them end with."""
    parts = [place(folder).resolve().parts for folder in folders]
    parts = [each[:-1] if each[-1] == "model" and len(each) > 2 else each for each in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(folder) for folder in folders]

"""The frozen prefix, computed once for everybody: pooled features of a whole split in a memory-mapped array.

They depend on weights and pixels alone, so every trial, epoch and worker of a node reads the same file.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tlray.cache import Places, build_once, digest
from tlray.data.task import Split
from tlray.errors import ConfigError
from tlray.models.classifier import Classifier
from tlray.registry import did_you_mean

FORMAT = 1


def extraction_batch(size: int) -> int:
    """Images per forward pass without gradients: a fixed rule of the image size, because batch size is part of the last digits."""
    return max(32, min(512, 512 * 64 * 64 // size**2))


def feature_key(prefix_key: str, backbone: str, split_key: str, model: Classifier, size: int, precision: str) -> str:
    """Names the features by everything they depend on; subsets and folds index into the full split's array."""
    normalisation = [model.mean.tolist(), model.std.tolist()]
    return digest(FORMAT, prefix_key, backbone, "pooled", split_key, normalisation, size, precision)


@torch.no_grad()
def extract(model: Classifier, split: Split, size: int, precision: str, device: torch.device) -> np.ndarray:
    """Pooled features of every image of a split in eval mode: float32 [N, num_features] (float64 under precision float64)."""
    model.backbone.eval()
    step = extraction_batch(size)
    rows = np.empty((len(split), model.backbone.num_features), np.float64 if precision == "float64" else np.float32)
    for start in range(0, len(split), step):
        images = torch.from_numpy(np.array(split.images[start : start + step])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            features = model.backbone(model.normalise(images))
        rows[start : start + step] = features.to(torch.float64 if precision == "float64" else torch.float32).cpu().numpy()
    return rows


def cached_features(
    key: str, model: Classifier, split: Split, size: int, precision: str, device: torch.device, places: Places
) -> np.ndarray:
    """The features named by `key`, memory-mapped; extracted by the first process that needs them while others wait."""

    def build(folder: Path) -> None:
        np.save(folder / "features.npy", extract(model, split, size, precision, device))

    folder = build_once(places.folder("features") / key, build)
    return np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)


POOLED = "features"
"""What `stage_features` calls the pooled vector below the head."""
MAP = 4
"""Pixels on a side that `stage_features` keeps of a stage's maps."""


def check_stage(model: Classifier, stage: str) -> None:
    """Raise ConfigError, listing the choices, when a network has no such stage for `stage_features`."""
    choices = [*model.backbone.stage_names, POOLED]
    if stage not in choices:
        guess = did_you_mean(stage, choices)
        raise ConfigError(f"{model.backbone.name} has no stage {stage!r}{guess}: choose from {', '.join(choices)}")


@torch.no_grad()
def stage_features(model: Classifier, images: np.ndarray, stage: str) -> np.ndarray:
    """What a network makes of images up to a stage, in eval mode (in which the backbone is left): float32 [N, D].

    Args:
        images: uint8 [N, C, H, W]; N may be 0.
        stage: one of the backbone's; its maps are averaged to 4 x 4 pixels where they are larger, and flattened. Or `features`: the
            pooled vector that the linear head sees.

    Raises ConfigError, listing the stages, for an unknown one, and for images too small for the backbone.
    """
    check_stage(model, stage)
    backbone, step, rows = model.backbone.eval(), extraction_batch(images.shape[-1]), []
    stop = None if stage == POOLED else backbone.stage_names.index(stage) + 1
    for start in range(0, max(1, len(images)), step):
        batch = torch.from_numpy(np.array(images[start : start + step])).to(model.mean.device)
        maps = backbone.forward_stages(model.normalise(batch), stop=stop)
        if stop is None:
            maps = backbone.pool(maps)
        elif max(maps.shape[-2:]) > MAP:
            maps = F.adaptive_avg_pool2d(maps, (min(MAP, maps.shape[-2]), min(MAP, maps.shape[-1])))
        rows.append(maps.flatten(1).float().cpu().numpy())
    return np.concatenate(rows)

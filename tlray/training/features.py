"""The frozen prefix, computed once for everybody: its output for a split in a memory-mapped array.

It depends on weights and pixels alone, so every trial, epoch and worker of a node reads the same file.
"""

import functools
import math
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tlray.cache import Places, build_once, digest, map_new
from tlray.config import Config
from tlray.data.subsets import select
from tlray.data.task import Split, Task
from tlray.errors import ConfigError, DataError
from tlray.models.backbones import build_backbone
from tlray.models.classifier import Classifier
from tlray.registry import did_you_mean
from tlray.training.feature_files import budget, evict, note_extraction, pin
from tlray.training.lanes import run_in_lanes
from tlray.training.phases import Phase, as_loaded
from tlray.training.setup import available_threads

FORMAT = 3
LEAST_OPERATIONS = 40
"""Operations that each cached byte must save: reading a byte takes about as long as 40 of them on a core of a 2026 server."""

ATTEMPTS = 5
"""How often features are looked for that others delete meanwhile."""


@dataclass(frozen=True)
class Prefix:
    """A frozen prefix. stages: how many it has. shape: of its output, (C, H, W), or (features,) where the pooling belongs to it.

    operations: of one image's forward pass, counting additions and multiplications.
    """

    stages: int
    shape: tuple[int, ...]
    operations: float

    @property
    def size(self) -> int:
        """Bytes of one image's output in float32."""
        return 4 * math.prod(self.shape)

    @property
    def pooled(self) -> bool:
        """Whether it is the whole backbone with its pooling."""
        return len(self.shape) == 1

    def affordable(self, images: int, precision: str = "float32") -> bool:
        """Whether the output for so many images shall be kept: it saves enough for each byte, and there is room for it.

        A rule on numbers alone, so that every process decides alike: ResNet-50 at 224 px behind layer2 would be 8.4 GB for
        PneumoniaMNIST's 5,232 images - no; behind layer4, pooled, 43 MB - yes.
        """
        return self.operations >= LEAST_OPERATIONS * self.size and self.stored(images, precision) <= budget() / 2

    def stored(self, images: int, precision: str) -> int:
        """Bytes of the file of so many images' output."""
        return images * self.size * (2 if precision == "float64" else 1)


@functools.lru_cache(maxsize=16)
def prefixes(backbone: str, channels: int, size: int) -> dict[str, Prefix]:
    """Every prefix of a backbone by its last stage, bottom to top, measured by passing one black image of `size` px; draws nothing."""
    with torch.random.fork_rng(devices=[]):
        network = build_backbone(backbone, channels, 0.0).eval()
    maps, operations, found = torch.zeros(1, network.channels, size, size), 0, {}
    for index, name in enumerate(network.stage_names):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            maps = network.forward_stages(maps, index, index + 1)
            output = network.pool(maps) if name == network.stage_names[-1] else maps
        operations += counter.get_total_flops()
        found[name] = Prefix(index + 1, tuple(output.shape[1:]), float(operations))
    return found


def prefix_of(backbone: str, channels: int, stages: int, size: int) -> Prefix:
    """The first `stages` stages of a backbone for images of `size` px."""
    return list(prefixes(backbone, channels, size).values())[stages - 1]


@dataclass(frozen=True)
class Frozen:
    """A network and its frozen prefix, of weights that `encoder` names: what an extraction needs and depends on."""

    model: Classifier
    prefix: Prefix
    encoder: str
    size: int
    precision: str
    device: torch.device


def extraction_batch(size: int, device: torch.device) -> int:
    """Images per forward pass without gradients: a fixed rule of image size and device, because batch size is part of the last digits.

    On a CPU so few that their maps stay in its caches (256 of 32 px, 64 of 64 px: at 64 px a MobileNetV2 is twice as fast as in batches
    of 512), on a GPU enough to fill it.
    """
    most, side = (256, 32) if device.type == "cpu" else (512, 128)
    return max(32, min(most, most * side**2 // size**2))


def needed_rows(images: int, *indices: np.ndarray) -> np.ndarray | None:
    """Which images of a split to extract, for trainings that read those at `indices`: sorted numbers, or None for all.

    All where at least half are read: then every draw and fold shares one file. Else those alone: a few drawn images must not cost
    the whole split.
    """
    wanted = np.unique(np.concatenate(indices))
    return None if 2 * len(wanted) >= images else wanted


def drawn_rows(task: Task, train: np.ndarray, val: np.ndarray, val_split: Split) -> tuple[np.ndarray | None, np.ndarray | None]:
    """`needed_rows` of the train split and of the one that `val` points into, for a training that draws these; equal where it is one."""
    if val_split is task.train:
        both = needed_rows(len(task.train), train, val)
        return both, both
    return needed_rows(len(task.train), train), needed_rows(len(val_split), val)


def worth_caching(config: Config, phase: Phase, drawn: int, extracted: int) -> bool:
    """Whether a phase with a frozen prefix shall read its output from the cache.

    It shall where it trains on at least a quarter as many images (each counted as often as it comes) as would be extracted for it:
    extracting a large split for a few batches would cost more than it saves. A rule on numbers alone, so that every run decides alike.

    Args:
        drawn: images of the split that are trained on.
        extracted: images of the split whose features would be computed.
    """
    of_epoch = config.steps_per_epoch * config.batch_size if config.steps_per_epoch else drawn
    return 4 * phase.epochs * of_epoch >= extracted


def kept_boundaries(task: Task, config: Config, plans: Iterable[Sequence[Phase]]) -> list[str]:
    """The stages behind which a training by one of these plans reads its frozen features from the cache, bottom to top.

    Where it augments no images; but for the plan it is `config`.
    """
    train, val, val_split = select(task, config)
    rows = zip(drawn_rows(task, train, val, val_split), (task.train, val_split), strict=True)
    extracted = [len(split) if needed is None else len(needed) for needed, split in rows]
    found = prefixes(config.backbone, task.channels, config.size)
    reached = {
        as_loaded(plan, number, list(found))
        for plan in plans for number, phase in enumerate(plan) if worth_caching(config, phase, len(train), extracted[0])
    }  # fmt: skip
    return [name for name, each in found.items() if each.stages in reached and each.affordable(sum(extracted), config.precision)]


def feature_key(frozen: Frozen, split_key: str, rows: np.ndarray | None = None) -> str:
    """Names features by everything they depend on: weights, backbone, boundary, pixels, normalisation, arithmetic, which of some.

    Not by torch's version or the processor, on which their last bits depend: the cache is one node's.
    """
    model, which = frozen.model, None if rows is None else rows.tolist()
    normalisation, name = [model.mean.tolist(), model.std.tolist()], model.backbone.name
    arithmetic = [frozen.size, frozen.precision, frozen.device.type]
    return digest(FORMAT, frozen.encoder, name, frozen.prefix.stages, split_key, normalisation, arithmetic, which)


def stored_as(frozen: Frozen, images: int) -> tuple[type[np.floating], tuple[int, ...]]:
    """Type and shape of the array of so many images' features."""
    prefix = frozen.prefix
    shape = prefix.shape if prefix.pooled else (*prefix.shape[1:], prefix.shape[0])
    return np.float64 if frozen.precision == "float64" else np.float32, (images, *shape)


def extract(frozen: Frozen, split: Split, rows: np.ndarray | None, out: Path) -> int:
    """Write the prefix's output for the images `rows` of a split (None: all), in eval mode, to the file `out`; how many cores took part.

    float32 (float64 under precision float64): [N, features] where it is pooled, else [N, H, W, C], channels last, as networks read it.
    A CPU computes each batch with one thread, on as many cores as are idle.
    """
    model, prefix, device = frozen.model, frozen.prefix, frozen.device
    model.backbone.eval()
    step, dtype = extraction_batch(frozen.size, device), torch.float64 if frozen.precision == "float64" else torch.float32
    numbers = np.arange(len(split)) if rows is None else rows
    found = map_new(out, *stored_as(frozen, len(numbers)))

    @torch.no_grad()
    def batch(start: int) -> None:
        images = torch.from_numpy(split.images[numbers[start : start + step]]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=frozen.precision == "bfloat16"):
            output = model.backbone.forward_stages(model.normalise(images), 0, prefix.stages)
            output = model.backbone.pool(output) if prefix.pooled else output.permute(0, 2, 3, 1)
        found[start : start + step] = output.to(dtype).cpu().numpy()

    lanes = run_in_lanes(batch, range(0, len(numbers), step), available_threads() if device.type == "cpu" else 1)
    found.flush()
    return lanes


def cached_features(frozen: Frozen, split: Split, split_key: str, rows: np.ndarray | None, places: Places) -> np.ndarray:
    """The features of the images `rows` of a split (None: all) as `extract` writes them, memory-mapped.

    Extracted by the first process that needs them while others wait; the least recently used of all that no unfinished run
    reads make room before, until the budget is kept.
    """
    features, key = places.folder("features"), feature_key(frozen, split_key, rows)
    folder, made = features / key, False
    images = len(split) if rows is None else len(rows)
    kind, shape = stored_as(frozen, images)

    def build(temporary: Path) -> None:
        nonlocal made
        evict(features, max(0.0, budget() - frozen.prefix.stored(images, frozen.precision)))
        started = time.monotonic()
        lanes = extract(frozen, split, rows, temporary / "features.npy")
        note_extraction(features, key=key, images=images, seconds=time.monotonic() - started, lanes=lanes)
        made = True

    for _ in range(ATTEMPTS):
        build_once(folder, build)
        try:
            os.utime(folder)
            pin(folder, places.run)
            found = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            if (found.dtype, found.shape) != (np.dtype(kind), shape):
                raise ValueError(f"{found.dtype} {list(found.shape)} in place of {np.dtype(kind)} {list(shape)}")
        except FileNotFoundError:  # evicted by another process since
            if folder.is_dir() and not (folder / "features.npy").exists():  # by something else, which took the file alone
                shutil.rmtree(folder, ignore_errors=True)
            continue
        except (ValueError, EOFError, IsADirectoryError) as error:
            raise DataError(f"the features in {folder} are damaged ({error}): delete that folder to have them made anew") from None
        if made:
            evict(features, budget(), keep=key)  # others may have extracted at the same time
        return found
    raise DataError(f"{folder} is deleted as often as it is made: is another program clearing the cache?")


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
    backbone, step, rows = model.backbone.eval(), extraction_batch(images.shape[-1], model.mean.device), []
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

"""The frozen prefix, computed once for everybody: its output for a whole split in a memory-mapped array.

It depends on weights and pixels alone, so every trial, epoch and worker of a node reads the same file.
"""

import contextlib
import functools
import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tlray.cache import Places, build_once, digest
from tlray.data.task import Split
from tlray.errors import ConfigError, DataError
from tlray.models.backbones import build_backbone
from tlray.models.classifier import Classifier
from tlray.registry import did_you_mean

FORMAT = 2
BUDGET_GIB = 8.0
"""Room for all features of a node, `$TLRAY_FEATURES_GIB` if that is set; one pair of splits may take half of it."""
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

    def affordable(self, images: int) -> bool:
        """Whether the output for so many images shall be kept: it saves enough for each byte, and there is room for it.

        A rule on numbers alone, so that every process decides alike: ResNet-50 at 224 px behind layer2 would be 8.4 GB for
        PneumoniaMNIST - no; behind layer4, pooled, 39 MB - yes.
        """
        return self.operations >= LEAST_OPERATIONS * self.size and images * self.size <= budget() / 2


def budget() -> float:
    """Bytes that all features of this node may take. Raises ConfigError when the environment names no number."""
    text = os.environ.get("TLRAY_FEATURES_GIB", str(BUDGET_GIB))
    try:
        return max(0.0, float(text)) * 2**30
    except ValueError:
        raise ConfigError(f"TLRAY_FEATURES_GIB={text!r} is not a number of GiB: correct it or unset it") from None


@functools.lru_cache(maxsize=64)
def prefix_of(backbone: str, channels: int, stages: int, size: int) -> Prefix:
    """The first `stages` stages of a backbone for images of `size` px, measured by passing one black image; draws nothing."""
    with torch.random.fork_rng(devices=[]):
        network = build_backbone(backbone, channels, 0.0).eval()
    whole = stages == len(network.stage_names)
    image = torch.zeros(1, network.channels, size, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = network.forward_stages(image, 0, stages)
        output = network.pool(output) if whole else output
    return Prefix(stages, tuple(output.shape[1:]), float(counter.get_total_flops()))


def extraction_batch(size: int) -> int:
    """Images per forward pass without gradients: a fixed rule of the image size, because batch size is part of the last digits."""
    return max(32, min(512, 512 * 64 * 64 // size**2))


def feature_key(prefix_key: str, backbone: str, stages: int, split_key: str, model: Classifier, size: int, precision: str) -> str:
    """Names the features by everything they depend on; subsets and folds index into the full split's array."""
    normalisation = [model.mean.tolist(), model.std.tolist()]
    return digest(FORMAT, prefix_key, backbone, stages, split_key, normalisation, size, precision)


@torch.no_grad()
def extract(model: Classifier, prefix: Prefix, split: Split, size: int, precision: str, device: torch.device, out: Path) -> None:
    """Write the prefix's output for every image of a split, in eval mode, to the file `out`.

    float32 (float64 under precision float64): [N, features] where it is pooled, else [N, H, W, C], channels last, as networks read it.
    """
    model.backbone.eval()
    step, kind = extraction_batch(size), np.float64 if precision == "float64" else np.float32
    shape = prefix.shape if prefix.pooled else (*prefix.shape[1:], prefix.shape[0])
    rows = np.lib.format.open_memmap(out, mode="w+", dtype=kind, shape=(len(split), *shape))
    for start in range(0, len(split), step):
        images = torch.from_numpy(np.array(split.images[start : start + step])).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            output = model.backbone.forward_stages(model.normalise(images), 0, prefix.stages)
            output = model.backbone.pool(output) if prefix.pooled else output.permute(0, 2, 3, 1)
        rows[start : start + step] = output.to(torch.float64 if precision == "float64" else torch.float32).cpu().numpy()
    rows.flush()


def cached_features(
    key: str, model: Classifier, prefix: Prefix, split: Split, size: int, precision: str, device: torch.device, places: Places
) -> np.ndarray:
    """The features named by `key` as `extract` writes them, memory-mapped.

    Extracted by the first process that needs them while others wait; then the least recently used of all that no unfinished run
    has pinned make room, until the budget is kept.
    """
    folder, made = places.folder("features") / key, False

    def build(temporary: Path) -> None:
        nonlocal made
        extract(model, prefix, split, size, precision, device, temporary / "features.npy")
        made = True

    for _ in range(ATTEMPTS):
        build_once(folder, build)
        try:
            os.utime(folder)
            _pin(folder, places.run)
            rows = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:  # evicted by another process since
            continue
        except ValueError as error:
            raise DataError(f"the features in {folder} are damaged ({error}): delete that folder to have them made anew") from None
        if made:
            evict(folder.parent, budget(), keep=key)
        return rows
    raise DataError(f"{folder} is deleted as often as it is made: is another program clearing the cache?")


def _pin(folder: Path, run: str | None) -> None:
    """Note that a run reads these features; they are kept while it is unfinished."""
    if run is not None:
        pins = folder / "pins"
        pins.mkdir(exist_ok=True)
        (pins / digest(run)[:16]).write_text(run)


def pinned(folder: Path) -> bool:
    """Whether a run that has not come to its end reads these features."""
    return any(_unfinished(Path(pin.read_text())) for pin in folder.glob("pins/*"))


def _unfinished(run: Path) -> bool:
    if not run.is_dir():
        return False
    try:
        return bool(json.loads((run / "summary.json").read_text())["partial"])
    except (OSError, ValueError, KeyError):
        return True


def sizes(features: Path) -> dict[str, int]:
    """Key -> bytes of all features in a folder, the least recently used first."""
    found = []
    for folder in features.iterdir() if features.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):  # evicted by another process meanwhile
            if not folder.name.startswith("."):
                found.append((folder.stat().st_mtime, folder.name, (folder / "features.npy").stat().st_size))
    return {name: size for _, name, size in sorted(found)}


def evict(features: Path, most: float, keep: str | None = None) -> list[str]:
    """Delete the least recently used features until all take at most `most` bytes; never `keep` and never pinned ones. Their keys.

    A process that reads one keeps what it has mapped.
    """
    known, gone = sizes(features), []
    total = sum(known.values())
    for key, size in known.items():
        if total <= most:
            break
        if key != keep and not pinned(features / key):
            with contextlib.suppress(FileNotFoundError):
                going = features / f".{key}.going-{os.getpid()}"
                os.replace(features / key, going)  # at once, so that nobody finds half of it
                shutil.rmtree(going, ignore_errors=True)
            total -= size
            gone.append(key)
    return gone


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

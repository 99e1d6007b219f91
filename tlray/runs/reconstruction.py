"""How well a pretrained autoencoder draws its source's images again: figures with intervals, and a picture."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tlray.cache import Places
from tlray.config import RECONSTRUCTION, Config
from tlray.data.held_out import open_test
from tlray.errors import ConfigError
from tlray.models.autoencoder import Autoencoder
from tlray.report.reconstructions import reconstruction_pairs
from tlray.runs.folder import Run
from tlray.training.features import extraction_batch
from tlray.training.pretrain import open_autoencoder
from tlray.training.reconstruction import DEFINITION, image_metrics
from tlray.training.setup import set_up_process

SHOWN = 8
"""Images in the picture."""
RESAMPLES = 1000


def reconstruction(
    weights: str, target: Config, run: Run | None = None, *, split: str = "test", places: Places | None = None, seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """How well the autoencoder that `weights` names draws images of its own source, which it was not trained on.

    Args:
        weights: SOURCE/autoencoder[?field=value&...], which has been made.
        target: a training that would start from it; its backbone, size and threads count.
        run: where the opening of the test split is written down.
        split: test, or val (on which its best epoch was chosen), which needs no run.
        places: where things lie; the run's unless given.
        seed: of the images shown and of the bootstrap.

    Returns:
        {"weights", "source", "split", "images": how many, "mse", "psnr", "ssim": {"value", "low", "high", "interval"} each,
        "definition": what they are, in one sentence, "svg": inline picture of inputs over reconstructions}.

    Raises ConfigError when `weights` names no autoencoder or the test split is asked for outside a run, NotPrepared when the
    autoencoder has not been made.
    """
    if split not in ("test", "val"):
        raise ConfigError(f"split={split!r}: choose from test, val")
    if split == "test" and run is None:
        raise ConfigError("the test split is opened in a run alone, which writes it down: name one, or take split='val'")
    places = places or (run.places if run else Places())
    set_up_process(target)
    source, model = open_autoencoder(replace(target, weights=weights), places)
    if split == "test":
        assert run is not None
        images = open_test(source.task, run.ledger, f"reconstruction by {weights} ({source.config.backbone})").images
    else:
        images = source.val_split.images[source.val]
    rows = reconstruction_rows(model, images)
    return {
        "weights": weights, "source": source.task.name, "split": split, "images": len(images), **_intervals(rows, seed),
        "definition": DEFINITION, "svg": _drawn(f"Reconstructions by {source.task.name}/autoencoder", model, images, seed),
    }  # fmt: skip


@torch.no_grad()
def rebuilt(model: Autoencoder, images: np.ndarray) -> np.ndarray:
    """What an autoencoder in eval mode makes of images uint8 [N, C, H, W]: float32 [N, C, H, W] in 0..1."""
    return model(torch.from_numpy(np.array(images))).float().numpy()


def reconstruction_rows(model: Autoencoder, images: np.ndarray) -> np.ndarray:
    """mse, psnr and ssim of each of images uint8 [N, C, H, W], float64 [N, 3]; batch by batch, as in training."""
    step, rows = extraction_batch(images.shape[-1], torch.device("cpu")), []
    for start in range(0, len(images), step):
        batch = np.asarray(images[start : start + step])
        rows.append(image_metrics(batch / 255, rebuilt(model, batch)))
    return np.concatenate(rows)


def _drawn(title: str, model: Autoencoder, images: np.ndarray, seed: int) -> str:
    """The picture of a few images, drawn by the seed, in the order of the split."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:SHOWN])
    shown = np.asarray(images[chosen])
    drawn = rebuilt(model, shown)
    return reconstruction_pairs(title, shown / 255, drawn, image_metrics(shown / 255, drawn)[:, RECONSTRUCTION.index("ssim")])


def _intervals(rows: np.ndarray, seed: int) -> dict[str, dict[str, Any]]:
    """Means over images with 95 % percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13)."""
    random, count = np.random.default_rng(seed), len(rows)
    means = np.stack([rows[random.integers(0, count, count)].mean(axis=0) for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {
        name: {"value": float(rows[:, at].mean()), "low": float(low[at]), "high": float(high[at]), "interval": "95 % bootstrap over images"}
        for at, name in enumerate(RECONSTRUCTION)
    }

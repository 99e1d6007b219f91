"""Writing a delivered model: weights, what is needed to use them, what they achieved, and a card in plain words."""

import copy
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tlray.cache import file_digest, write_bytes, write_json
from tlray.deploy.card import model_card
from tlray.deploy.model import FORMAT, Model, load_model
from tlray.errors import RunError
from tlray.models.classifier import Classifier, describe
from tlray.models.weights import save_weights
from tlray.storage import AnyPath, RemotePath, place

__all__ = ["Model", "load_model", "measure_latency", "save_model"]

CARD = (
    "task", "kind", "classes", "channels", "size", "temperature", "threshold", "threshold_rule", "config", "data", "weights",
    "validation", "validation_calibrated", "test", "banner",
)  # fmt: skip
"""What a card must say; `config` is the training's Config, `data` Task.source, `weights` Encoder.source."""
MEASURED = ("validation", "validation_calibrated", "test")


def save_model(folder: str | AnyPath, model: Classifier, card: dict[str, Any]) -> None:
    """Write model.safetensors, config.json, metrics.json and README.md, all at once: a reader sees the whole folder or none.

    In a store config.json, without which nobody reads the others, goes first and comes last.

    A model already there is replaced. `model` is left as it is.

    Args:
        folder: RUN/<cell>/model.
        model: the classifier that is delivered.
        card: the entries named in CARD. validation: metrics at threshold .5 on uncalibrated probabilities;
            validation_calibrated and test: of the calibrated ones, test with intervals; banner: lines no one may overlook.

    Raises RunError when the folder cannot be written, KeyError when the card lacks an entry.
    """
    folder, card = place(folder), {name: card[name] for name in CARD}
    delivered = copy.deepcopy(model).cpu().eval()
    metrics = {
        **{name: card.pop(name) for name in MEASURED},
        **describe(delivered),
        "ms_per_image": measure_latency(delivered, card["channels"], card["size"]),
        "ms_per_image_how": "median, one image at a time, one CPU thread",
        "temperature": card["temperature"],
        "threshold": card["threshold"],
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = None if isinstance(folder, RemotePath) else folder.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.making-", dir=beside))
        try:
            _fill(temporary, delivered, card, metrics)
            if isinstance(folder, RemotePath):
                _upload(temporary, folder)
            else:
                _swap(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise RunError(f"the model cannot be written to {folder} ({error.strerror}): make room or get permission") from error


def _fill(folder: Path, model: Classifier, card: dict[str, Any], metrics: dict[str, Any]) -> None:
    dropout = model.head[0]
    assert isinstance(dropout, torch.nn.Dropout)
    about = {name: card[name] for name in ("task", "kind", "classes", "channels", "size")}
    save_weights(folder / "model.safetensors", model, about)
    config = {
        "format": FORMAT,
        **card,
        "backbone": model.backbone.name,
        # str() of a float32 is the shortest text that gives it back: .485, not .48500001431
        **{name: [float(str(each)) for each in getattr(model, name).numpy()] for name in ("mean", "std")},
        "dropout": dropout.p,
        "sha256": file_digest(folder / "model.safetensors"),
    }
    write_json(folder / "config.json", config)
    write_json(folder / "metrics.json", metrics)
    write_bytes(folder / "README.md", model_card(config, metrics).encode())
    os.chmod(folder, 0o755)


def _upload(new: Path, folder: RemotePath) -> None:
    """Let the files of `new` take the place of those of `folder`."""
    (folder / "config.json").unlink(missing_ok=True)
    for file in sorted(new.iterdir(), key=lambda each: each.name == "config.json"):
        (folder / file.name).upload(file)


def _swap(new: Path, folder: Path) -> None:
    """Let `new` take the place of `folder`; the old one goes only when the new one stands there."""
    old = new.with_name(new.name.replace(".making-", ".old-"))
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def measure_latency(model: Classifier, channels: int, size: int, repeats: int = 30) -> float:
    """Milliseconds for one image [1, channels, size, size] on one CPU thread: the median of `repeats` after a warm-up.

    The number of threads is put back; `model` must be on the CPU and in eval mode.
    """
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, channels, size, size), dtype=np.uint8))
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(repeats + 5):
                start = time.perf_counter()
                model(image)
                times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * float(np.median(times[5:]))

"""A delivered model: read from its folder without unpickling anything, checked, ready to predict."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tlray.cache import file_digest, read_json
from tlray.config import Config
from tlray.errors import ConfigError, DataError, RunError, WeightsError
from tlray.models.classifier import Classifier, build_classifier
from tlray.models.kinds import KINDS
from tlray.models.weights import read_tensors
from tlray.storage import AnyPath, at_hand, place
from tlray.training.metrics import evaluate

FORMAT = 1
"""Version of a model folder's layout."""
BATCH = 512
"""Images that go through the network at once."""
FIELDS: dict[str, Any] = {
    "format": int, "task": str, "kind": str, "classes": list, "channels": int, "size": int, "backbone": str, "mean": list,
    "std": list, "dropout": (int, float), "temperature": (int, float), "threshold": (int, float, list, type(None)), "sha256": str,
    "data": dict,
}  # fmt: skip
"""What `config.json` must have, and of which type."""


@dataclass(frozen=True)
class Model:
    """A classifier with the classes, size, temperature and threshold that belong to it; made by `load_model`."""

    network: Classifier
    config: dict[str, Any]
    metrics: dict[str, Any]
    folder: AnyPath

    @property
    def kind(self) -> str:
        """binary, multiclass, multilabel or ordinal."""
        return self.config["kind"]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities (multilabel: names of the findings)."""
        return tuple(self.config["classes"])

    @property
    def channels(self) -> int:
        """Channels of the images it was trained on: 1 (grey) or 3."""
        return self.config["channels"]

    @property
    def size(self) -> int:
        """Pixels on a side that it takes."""
        return self.config["size"]

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become calibrated probabilities; chosen on validation."""
        return self.config["temperature"]

    @property
    def threshold(self) -> float | list[float] | None:
        """Calibrated probability above which class 1 (or each finding) is called; None where the top class decides."""
        return self.config["threshold"]

    def logits(self, images: np.ndarray) -> torch.Tensor:
        """Logits float32 [N, outputs] of images uint8 [N, C, size, size], C one of the model's channels or 1.

        Raises DataError when the images have another shape or type.
        """
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, self.channels) or shape[2:] != (self.size, self.size):
            raise DataError(
                f"the model takes uint8 images [N, {self.channels}, {self.size}, {self.size}], not {images.dtype} {list(shape)}: "
                "resize them with tlray.data.images.resize"
            )
        batches = [images[start : start + BATCH] for start in range(0, max(1, len(images)), BATCH)]
        with torch.inference_mode():
            return torch.cat([self.network(torch.from_numpy(np.array(batch))) for batch in batches])

    def predict(self, images: np.ndarray, calibrated: bool = True) -> np.ndarray:
        """Probabilities float64 [N, K] of images uint8 [N, C, size, size]; not calibrated: as in training, temperature 1."""
        logits = self.logits(images).double() / (self.temperature if calibrated else 1.0)
        return KINDS[self.kind].probabilities(logits).numpy()

    def evaluate(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Every metric at threshold .5 on uncalibrated probabilities: on the validation split, those in `metrics.json`."""
        return evaluate(self.kind, self.predict(images, calibrated=False), labels)


def load_model(folder: str | AnyPath) -> Model:
    """Read a model folder and check it against its own checksum. Draws nothing from torch's generator.

    Raises RunError when the folder is none of a model or its JSON is damaged, WeightsError when the weights are.
    """
    folder = place(folder)
    config, metrics = (_read_json(folder / name) for name in ("config.json", "metrics.json"))
    for name, kind in FIELDS.items():
        if not isinstance(config.get(name), kind):
            raise RunError(f"{folder / 'config.json'} is damaged, it has no usable {name}: deliver the model anew")
    if config["format"] != FORMAT or config["kind"] not in KINDS:
        raise RunError(f"{folder} was made by another version of tlray (format {config['format']}): this one reads format {FORMAT}")
    if unfit := _unfit(config):
        raise RunError(f"{folder / 'config.json'} is damaged, its {unfit} cannot be: deliver the model anew")
    path = folder / "model.safetensors"
    if not path.is_file():
        raise RunError(f"{folder} holds no model.safetensors: name the folder of a whole model")
    with at_hand(path) as file:
        if file_digest(file) != config["sha256"]:
            raise WeightsError(f"{path} is damaged: it is not the file that config.json describes; deliver the model anew")
        tensors, _ = read_tensors(file)
    with torch.random.fork_rng(devices=[]):
        network = build_classifier(
            config["backbone"],
            config["kind"],
            len(config["classes"]),
            config["channels"],
            config["dropout"],
            config["mean"],
            config["std"],
        )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit a {config['backbone']} for {len(config['classes'])} classes: deliver it anew") from error
    return Model(network.eval().requires_grad_(False), config, metrics, folder)


def _unfit(config: dict[str, Any]) -> str | None:
    """The first entry that no model can have, None where all are sound."""
    classes, channels, threshold = config["classes"], config["channels"], config["threshold"]
    try:
        Config(backbone=config["backbone"], size=config["size"], dropout=config["dropout"])
    except ConfigError as error:
        return str(error)
    named = all(isinstance(name, str) for name in classes)
    if not named or len(classes) < 2 - (config["kind"] == "multilabel") or len(set(classes)) < len(classes):
        return "classes"
    if channels not in (1, 3) or not 0 < config["temperature"] < math.inf:
        return "channels or temperature"
    for name in ("mean", "std"):
        values = config[name]
        if len(values) not in (1, 3) or not all(_finite(each) and (name == "mean" or each > 0) for each in values):
            return name
    several = config["kind"] == "multilabel"
    thresholds = threshold if isinstance(threshold, list) else [threshold]
    if threshold is not None and not (isinstance(threshold, list) == several and all(map(_finite, thresholds))):
        return "threshold"
    return "threshold" if several and threshold is not None and len(threshold) != len(classes) else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise RunError(f"there is no {path}: name the folder of a model, RUN/<task>-<backbone>/model") from error
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): deliver the model anew") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged, it holds no object: deliver the model anew")
    return value

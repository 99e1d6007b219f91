"""From a Config to the things that train: task, subset, model, encoder. Shared by training, selection and delivery."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tlray.cache import Places, digest
from tlray.config import Config, pretraining_source
from tlray.data.loader import mix
from tlray.data.subsets import select
from tlray.data.task import Split, Task, open_task
from tlray.models.autoencoder import Network, build_autoencoder
from tlray.models.classifier import build_classifier
from tlray.models.weights import PLAIN_MEAN, PLAIN_STD, Encoder, load_encoder, open_weights
from tlray.training.phases import Phase, phases


@dataclass(frozen=True)
class Prepared:
    """Everything a training needs before its first step.

    train, val: indices int64 into task.train and into val_split (which is task.train under cross-validation).
    model: a Classifier, or an Autoencoder where `config.objective` says so; both look alike to a training.
    encoder: key of the weights that the backbone starts from ("none" when untrained).
    """

    config: Config
    task: Task
    train: np.ndarray
    val: np.ndarray
    val_split: Split
    model: Any
    plan: list[Phase]
    encoder: str
    encoder_source: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def split_keys(self) -> tuple[str, str]:
        """Content keys of the train split and of the split that `val` points into."""
        keys = [digest(self.task.fingerprint, name) for name in ("train", "val")]
        return keys[0], keys[0] if self.val_split is self.task.train else keys[1]


def available_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


BFLOAT16_TRAINS_FASTER = {"resnet18": 1.4, "resnet50": 1.4}
"""Backbones that train faster in bfloat16 on CPUs with AVX512-BF16, and how much at 32 px (more at 64 px). MobileNetV2 trains .4 times
as fast, its depthwise convolutions being slow there; small_cnn as fast."""


def default_precision(backbone: str, gpus: float) -> tuple[str, str]:
    """The arithmetic to train a backbone with on this machine where nobody named one, and why; by a stated rule, never timed.

    bfloat16 on GPUs that have it and, on CPUs with AVX512-BF16, for the backbones that train faster so; else float32.
    """
    if gpus:
        if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU multiplies it"
        return "float32", "no bfloat16 on the GPU" if torch.cuda.is_available() else "the GPUs are elsewhere"
    if backbone not in BFLOAT16_TRAINS_FASTER:
        return "float32", "on CPUs this backbone trains no faster in bfloat16"
    return ("bfloat16", "the CPU has AVX512-BF16") if cpu_multiplies_bfloat16() else ("float32", "the CPU has no AVX512-BF16")


def cpu_multiplies_bfloat16() -> bool:
    """Whether Linux lists AVX512-BF16 among this processor's abilities; False where nobody says."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return any("avx512_bf16" in line for line in file if line.startswith("flags"))
    except OSError:
        return False


def set_up_process(config: Config) -> None:
    """Give torch the Config's threads and plain flags, whatever ran in this process before."""
    torch.set_num_threads(config.threads or available_threads())
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # torch's default keeps 10 of float32's 23 bits in convolutions


def open_encoder(config: Config, channels: int, places: Places) -> Encoder | None:
    """The weights that `config.weights` names; None for none. Raises NotPrepared when they must be pretrained first."""
    if pretraining_source(config.weights) is None:
        return open_weights(config.weights, config.backbone, channels, places)
    from tlray.training.pretrain import open_pretrained

    return open_pretrained(config, channels, places)


def new_model(config: Config, task: Task, places: Places) -> tuple[Network, Encoder | None, list[str]]:
    """A model as it stands before its first step: head (an autoencoder's decoder) by seed, backbone by seed or from `weights`."""
    encoder = open_encoder(config, task.channels, places)
    mean, std = (encoder.mean, encoder.std) if encoder else (PLAIN_MEAN, PLAIN_STD)
    torch.manual_seed(mix("model", config.seed))
    if config.objective == "autoencoder":
        model = build_autoencoder(config.backbone, task.channels, config.size, config.dropout, mean, std)
    else:
        model = build_classifier(config.backbone, task.kind, len(task.classes), task.channels, config.dropout, mean, std)
    model.backbone.check_size(config.size)
    notes = load_encoder(model, encoder, task.classes) if encoder else []
    return (model.double() if config.precision == "float64" else model), encoder, notes


def prepare(config: Config, places: Places) -> Prepared:
    """Open and check everything that a training needs; raises the UserError of whatever is missing or wrong."""
    task = open_task(config.task, config.size, places)
    train, val, val_split = select(task, config)
    model, encoder, notes = new_model(config, task, places)
    plan = phases(config, model.backbone.stage_names)
    key, source = (encoder.key, encoder.source) if encoder else ("none", {"weights": "none"})
    return Prepared(config, task, train, val, val_split, model, plan, key, source, tuple(notes))

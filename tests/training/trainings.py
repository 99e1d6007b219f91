"""Helpers of the tests of training: a whole training in one call, and tensors compared bit by bit."""

from typing import Any

import torch

from tlray.cache import Places
from tlray.config import Config
from tlray.training.checkpoint import Checkpoint
from tlray.training.fit import Epoch, fit

SETTINGS: dict[str, Any] = {"backbone": "small_cnn", "batch_size": 8, "epochs": 2, "threads": 1}

NOT_NUMBERS = ("seconds", "time")
"""What an epoch's row holds besides what the numbers decide."""


def config_of(task: str, **settings: Any) -> Config:
    return Config(task=task, **{**SETTINGS, **settings})


def train(config: Config, places: Places, **more: Any) -> tuple[list[Epoch], Checkpoint]:
    """Every epoch of a training and its state at the end."""
    epochs = list(fit(config, places, **more))
    return epochs, epochs[-1].state()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Equal names and equal bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def numbers(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without times; NaN, which equals nothing, as None, as a file would give it back."""
    return [{key: None if value != value else value for key, value in row.items() if key not in NOT_NUMBERS} for row in history]

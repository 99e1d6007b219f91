"""A small delivered model for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tlray.models.classifier import Classifier, build_classifier


def card_of(kind: str, classes: list[str], **changes: Any) -> dict[str, Any]:
    """A complete card with made-up figures."""
    threshold = {"binary": 0.4, "multilabel": [0.3] * len(classes)}.get(kind)
    return {
        "task": "toy", "kind": kind, "classes": classes, "channels": 1, "size": 28, "temperature": 1.5, "threshold": threshold,
        "threshold_rule": "youden", "config": {"monitor": "auroc", "unfreeze": "full", "lr": 1e-3, "seed": 0},
        "data": {"file": "toy.npz", "sha256": "ab"}, "weights": {"weights": "none"}, "validation": {"auroc": 0.91},
        "validation_calibrated": {"auroc": 0.91}, "banner": [],
        "test": {"auroc": {"value": 0.9, "low": 0.85, "high": 0.95, "interval": "95 % stratified bootstrap over test images"}},
    } | changes  # fmt: skip


def network_of(kind: str, classes: list[str]) -> Classifier:
    """small_cnn for grey 28 px images, freshly drawn by seed 0."""
    torch.manual_seed(0)
    return build_classifier("small_cnn", kind, len(classes), 1, 0.25, (0.5,), (0.5,))


@pytest.fixture(scope="session")
def make_card() -> Callable[..., dict[str, Any]]:
    """`make_card(kind, classes, **changes)`."""
    return card_of


@pytest.fixture(scope="session")
def make_network() -> Callable[..., Classifier]:
    """`make_network(kind, classes)`."""
    return network_of


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """`saved(kind, classes, **changes)` saves a model and returns its folder."""

    def save(kind: str = "binary", classes: tuple[str, ...] = ("normal", "sick"), **changes: Any) -> Path:
        from tlray.deploy.package import save_model

        folder = tmp_path / "toy-small_cnn" / "model"
        save_model(folder, network_of(kind, list(classes)), card_of(kind, list(classes), **changes))
        return folder

    return save

"""What the tests of training share: toy tasks by kind, encoders in files, a look at the runners of a training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from trainings import config_of

from tlray.cache import Places
from tlray.config import Config
from tlray.models.classifier import build_classifier
from tlray.models.weights import save_weights
from tlray.training.loop import PhaseRunner


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory, toy_npz: Callable[..., Path]) -> Callable[..., str]:
    """`toy(kind="binary", train=20, val=12, ...)`: the `npz:` name of a learnable toy task."""
    folder, known = tmp_path_factory.mktemp("toys"), {}

    def name(kind: str = "binary", train: int = 20, val: int = 12, **more: int) -> str:
        key = (kind, train, val, *sorted(more.items()))
        if key not in known:
            known[key] = toy_npz(folder / f"toy{len(known)}.npz", kind, train=train, val=val, test=8, **more)
        return f"npz:{known[key]}"

    return name


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`encoder(backbone, seed=0, untrained=False)`: a file of weights for grey images; batch-norm statistics are made uneven
    unless `untrained`."""
    folder = tmp_path_factory.mktemp("encoders")

    def path(backbone: str, seed: int = 0, untrained: bool = False) -> str:
        file = folder / f"{backbone}-{seed}{'-untrained' * untrained}.safetensors"
        if not file.exists():
            torch.manual_seed(seed)
            model = build_classifier(backbone, "binary", 2, 1, 0.0, (0.5,), (0.5,))
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None and not untrained:
                    module.running_mean.normal_(0, 0.1)
                    module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            save_weights(file, model, {})
        return str(file)

    return path


ROUGH = {"dropout": 0.3, "augment": "affine", "layer_decay": 0.7, "warmup": 0.2, "scheduler": "one_cycle", "label_smoothing": 0.1}
"""All that draws random numbers or keeps count of steps."""


@pytest.fixture(scope="session")
def gradual(toy: Callable[..., str], encoder: Callable[..., str]) -> Config:
    """A training of small_cnn in three phases of two epochs each, with everything random that there is."""
    return config_of(toy(), weights=encoder("small_cnn"), unfreeze="gradual", epochs=6, **ROUGH)


@pytest.fixture(scope="session")
def head(toy: Callable[..., str], encoder: Callable[..., str]) -> Config:
    """A training of the head alone, on the features of a resnet18."""
    return config_of(toy(), backbone="resnet18", weights=encoder("resnet18"), unfreeze="head", dropout=0.3, lr=0.01)


@pytest.fixture
def own(tmp_path: Path) -> Places:
    """A cache of the test's own."""
    return Places(None, str(tmp_path / "cache"), True)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[PhaseRunner]:
    """Every runner that a training makes, as it goes along."""
    runners, before = [], PhaseRunner.__init__

    def init(self, *arguments):
        before(self, *arguments)
        runners.append(self)

    monkeypatch.setattr(PhaseRunner, "__init__", init)
    return runners

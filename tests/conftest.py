"""What all tests share: a private cache, one Ray, toy data, the real data when it is there."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tlray.cache import Places
from tlray.cluster.session import Session, apply_settings, started

ROOT = Path(__file__).resolve().parents[1]

TOY_LABELS = {"binary": 2, "multiclass": 3, "multilabel": 3}


def pytest_configure() -> None:
    """Set what child processes inherit: Ray's switches (it reads them when imported), the sources and tests' own modules on the path."""
    apply_settings()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache of this session, also for child processes: no test reads or fills the user's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLRAY_CACHE", str(folder))
        patch.delenv("TLRAY_DATA", raising=False)
        yield folder


@pytest.fixture(scope="session")
def places(session_cache: Path) -> Places:
    """The session's cache, no data folder, no network."""
    return Places(data=None, cache=str(session_cache), offline=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights: `$TLRAY_SHARED`, else `shared` beside the repository."""
    folder = Path(os.environ.get("TLRAY_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("shared data folder not found")
    return folder


def write_toy(path: Path, kind: str = "binary", train: int = 64, val: int = 32, test: int = 32, size: int = 28, seed: int = 0) -> Path:
    """Write a learnable npz of MedMNIST's layout and return its path.

    Grey noise uint8 [N, size, size]; label k is a bright square in the k-th corner. Binary: class 1 has one and class 0
    none. Multiclass: one of three corners. Multilabel: three findings, each there or not. Labels are uint8 [N, 1] or [N, 3].
    """
    random, labels_by_kind = np.random.default_rng(seed), TOY_LABELS[kind]
    arrays, side = {}, size // 4
    corners = [(1, 1), (1, size - side - 1), (size - side - 1, 1)]
    for split, count in (("train", train), ("val", val), ("test", test)):
        images = random.integers(0, 120, (count, size, size), dtype=np.uint8)
        if kind == "multilabel":
            labels = random.integers(0, 2, (count, labels_by_kind))
            labels[:2] = [[0] * labels_by_kind, [1] * labels_by_kind]
            present = labels
        else:
            labels = random.permutation(np.arange(count) % labels_by_kind)[:, None]
            present = labels if kind == "binary" else np.eye(labels_by_kind, dtype=int)[labels[:, 0]]
        for row, column in np.argwhere(present):
            top, left = corners[column]
            images[row, top : top + side, left : left + side] += 100
        arrays |= {f"{split}_images": images, f"{split}_labels": labels.astype(np.uint8)}
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def toy_npz() -> Callable[..., Path]:
    """`toy_npz(path, kind="binary", train=64, val=32, test=32, size=28, seed=0)` writes learnable toy data and returns `path`."""
    return write_toy


@pytest.fixture(scope="session")
def ray_session(session_cache: Path) -> Iterator[Session]:
    """The one Ray of the session on two CPUs, started as the tool starts its own, by the first test that asks."""
    with started(cpus=2) as session:
        yield session

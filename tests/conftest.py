"""What all tests share: a private cache, one Ray, toy data, the real data when it is there."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import CREDENTIALS, Store, served, server
from toy_data import write_toy

from tlray.cache import Places
from tlray.cluster.session import Session, apply_settings, started

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Set what child processes inherit: Ray's switches (it reads them when imported), the sources and tests' own modules on the path.

    Also the key to the tests' own object store; the user's would open his.
    """
    apply_settings()
    os.environ.update(CREDENTIALS)
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


@pytest.fixture(scope="session")
def toy_npz() -> Callable[..., Path]:
    """`toy_npz(path, kind="binary", train=64, val=32, test=32, size=28, seed=0)` writes learnable toy data and returns `path`."""
    return write_toy


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The one S3 server of the session on loopback, started by the first test that asks."""
    if not server().is_file():
        pytest.skip(f"there is no S3 server {server()}: `make env` installs it")
    with served(tmp_path_factory.mktemp("s3") / "log") as store:
        yield store


@pytest.fixture(scope="session")
def ray_session(session_cache: Path) -> Iterator[Session]:
    """The one Ray of the session on two CPUs, started as the tool starts its own, by the first test that asks."""
    with started(cpus=2) as session:
        yield session

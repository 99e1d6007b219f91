"""Two searches in one cluster at the same time, and two users of one machine: neither disturbs the other."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import get, without_clock

from tlray.cluster.session import Session, token_file
from tlray.results import Trial, read_summary, read_trials

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def command(file: Path, storage: Path, name: str) -> list[str]:
    """The main job on toy data, one trial at a time with one thread, so that equal searches have equal results."""
    what = ["--tasks", f"npz:{file}", "--backbones", "small_cnn", "--weights", "none", "--trials", "4", "--epochs", "8", "--offline"]
    how = ["--concurrent", "1", "--cpus-per-trial", "1", "--set", "precision=float32", "--storage", str(storage), "--name", name]
    return [sys.executable, "-u", str(ROOT / "experiments" / "tune_backbones.py"), *what, *how]


class Process:
    """A running command; its lines are kept as they come."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self.running = subprocess.Popen(command, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self.named = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.running.stdout is not None
        for line in self.running.stdout:
            self.lines.append(line)
            if line.startswith("Dashboard: "):
                self.named.set()
        self.named.set()

    @property
    def dashboard(self) -> str:
        """The address that it names; waits for it."""
        assert self.named.wait(timeout=180)
        line, *_ = [line for line in self.lines if line.startswith("Dashboard: ")]  # on a cluster it is named again at the end
        return line.split()[1]

    def end(self) -> None:
        """Wait until it has ended well."""
        assert self.running.wait(timeout=300) == 0, "".join(self.lines)[-4000:]


def trials_of(run: Path) -> list[Trial]:
    """Every trial of a complete run."""
    summary = read_summary(run)
    assert not summary["partial"]
    return read_trials(run / summary["cells"][0]["cell"])


def results(run: Path) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """Number, status and history of every trial."""
    return [(trial.number, trial.status, without_clock(trial.history)) for trial in trials_of(run)]


def times(run: Path) -> tuple[float, float]:
    """When the first and the last epoch of a run ended."""
    rows = [row["time"] for trial in trials_of(run) for row in trial.history]
    return min(rows), max(rows)


def assert_alike(first: Path, second: Path) -> None:
    assert [number for number, *_ in results(first)] == list(range(4))
    assert results(first) == results(second)


def test_two_searches_in_one_cluster(toy_npz, tmp_path: Path, ray_session: Session):
    import ray

    file = toy_npz(tmp_path / "toy.npz", train=640)
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
    both = [Process(command(file, tmp_path, name), environment) for name in ("one", "two")]
    for each in both:
        each.end()
    assert_alike(tmp_path / "one", tmp_path / "two")
    (begun, over), (began, ended) = times(tmp_path / "one"), times(tmp_path / "two")
    assert begun < ended, "they were to run at the same time"
    assert began < over, "they were to run at the same time"
    assert [each.dashboard for each in both] == [f"http://{ray_session.dashboard}"] * 2


@pytest.fixture
def home() -> Iterator[Path]:
    """The home of another user, where this one's own tests' folder is closed to him."""
    if os.geteuid():
        pytest.skip("only root may start a process as another user")
    folder = Path(tempfile.mkdtemp(prefix="tlray-nobody-", dir="/tmp"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


ENTER = """
mkdir "$1/python"; mount --bind "$2" "$1/python"
mount -t tmpfs -o mode=755 tmpfs "$3"; mkdir -p "$2"; mount --move "$1/python" "$2"
shift 3; exec "$@"
"""
"""In a mount namespace of its own: the interpreter $2 can be entered, though the folder $3 above it is closed to others."""


def as_nobody(command: list[str], home: Path) -> list[str]:
    """The command as another user, whom the file system holds to what others may do."""
    changed = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    python = Path(sys.base_prefix).resolve()
    closed = [each for each in reversed(python.parents) if not each.stat().st_mode & stat.S_IXOTH]
    return ["unshare", "--mount", "sh", "-ec", ENTER, "sh", str(home), str(python), str(closed[0]), *changed] if closed else changed


def test_two_users_on_one_machine(toy_npz, tmp_path: Path, home: Path):
    """Each has a Ray, a cache and a token of his own; Ray's folder in /tmp they share."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TLRAY_")) and name != "TMPDIR"}
    mine, theirs = tmp_path / "home", home
    mine.mkdir()
    first = Process(command(toy_npz(mine / "toy.npz", train=640), mine, "run"), {**kept, "HOME": str(mine)})
    shutil.copy(mine / "toy.npz", theirs / "toy.npz")
    second = Process(as_nobody(command(theirs / "toy.npz", theirs, "run"), home), {**kept, "HOME": str(theirs)})
    assert first.dashboard != second.dashboard
    tokens = [token_file_of(each) for each in (mine, theirs)]
    for dashboard, own, other in ((first.dashboard, *tokens), (second.dashboard, *reversed(tokens))):
        assert get(f"{dashboard}/api/jobs/", own.read_text().strip())[0] == 200
        assert get(f"{dashboard}/api/jobs/", other.read_text().strip())[0] in (401, 403)
    assert first.running.poll() is None, "they were to run at the same time"
    first.end()
    second.end()
    assert {path.stat().st_uid for path in theirs.rglob("*")} - {os.geteuid()} == {NOBODY}
    assert stat.S_IMODE(tokens[1].stat().st_mode) == 0o600
    assert_alike(mine / "run", theirs / "run")


def token_file_of(home: Path) -> Path:
    return home / ".ray" / token_file().name

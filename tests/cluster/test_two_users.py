"""Two users of one machine search at the same time, each with a home of their own, and neither disturbs the other."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tlray.results import read_summary

ROOT = Path(__file__).resolve().parents[2]
USERS = (61001, 61002)
"""User ids that nobody has."""


OPEN_UP = (
    'mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --bind /mnt "$1" && shift 2 && exec "$@"'
)
"""For a shell with mounts of its own: make a folder reachable although one above it is root's alone."""


@pytest.fixture
def homes() -> Iterator[dict[int, Path]]:
    """A home for each user, where every user may go; pytest's own folders are root's alone."""
    if os.geteuid() or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("only root, with setpriv and unshare of util-linux, can be two users")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        found = {user: Path(folder, str(user)) for user in USERS}
        for user, home in found.items():
            home.mkdir(mode=0o700)
            os.chown(home, user, user)
        yield found


def as_user(user: int, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """This Python, started by a user; also where it lies below a folder that is closed to others, such as /root."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", sys.executable, *arguments]
    base = Path(sys.base_prefix)
    if closed := [above for above in reversed(base.parents) if not above.stat().st_mode & 0o001]:
        command = ["unshare", "--mount", "sh", "-c", OPEN_UP, "sh", str(base), str(closed[0]), *command]
    return subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_two_users_search_at_the_same_time(homes, toy_npz):
    first = homes[USERS[0]]
    reads = as_user(USERS[0], first, "-c", "import rich, tlray")
    said = reads.communicate()[1]
    if reads.returncode:
        pytest.skip(f"other users may not read this checkout or its environment: {said.strip().splitlines()[-1]}")
    running = {}
    for user, home in homes.items():
        file = toy_npz(home / "toy.npz", seed=user)
        file.chmod(0o644)
        tuned = [
            str(ROOT / "experiments" / "tune_backbones.py"), "--tasks", f"npz:{file}", "--backbones", "small_cnn",
            "--weights", "none", "--trials", "2", "--epochs", "1", "--cpus-per-trial", "1", "--name", "mine", "--offline",
        ]  # fmt: skip
        running[user] = as_user(user, home, *tuned)
    for user, process in running.items():
        try:
            out, error = process.communicate(timeout=500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, error
        summary = read_summary(homes[user] / "runs" / "mine")
        assert summary["cells"][0]["trials"] == {"finished": 2}
        assert (homes[user] / ".cache" / "tlray").is_dir()
        assert str(homes[user] / ".ray" / "auth_token") in out

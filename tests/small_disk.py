"""A file system so small that it fills up, for tests of what happens then."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs whose room can be changed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def room(self, kilobytes: int) -> None:
        """Give it so much room beyond what it holds."""
        stat = os.statvfs(self.folder)
        held = (stat.f_blocks - stat.f_bfree) * stat.f_frsize // 1024
        subprocess.run(["mount", "-o", f"remount,size={held + kilobytes}k", str(self.folder)], check=True)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """A tmpfs of so many kilobytes at `folder`; skips the test, saying why, where none may be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tlray-test", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here, so none can be filled: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

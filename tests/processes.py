"""The processes of a run of the main job, found by who started whom: a test that kills, or counts what is left, touches no others."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, told from a later one of the same number by when it started (in ticks)."""

    pid: int
    started: str
    name: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and was not waited for does not."""
        now = _stat(self.pid)
        return now is not None and now[1] == self.started and now[2] != "Z"


def _stat(pid: int) -> tuple[int, str, str] | None:
    """(parent, start, state); None where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), fields[19], fields[0]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def family(pid: int) -> list[Process]:
    """A process and all that descend from it, itself first."""
    stats = {number: stat for entry in os.listdir("/proc") if entry.isdigit() and (stat := _stat(number := int(entry)))}
    found, wanted = [], [pid]
    while wanted:
        number = wanted.pop(0)
        if number in stats:
            found.append(Process(number, stats[number][1], _name(number)))
            wanted += [child for child, stat in stats.items() if stat[0] == number]
    return found

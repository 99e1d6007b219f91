"""The files of cached features on this node: their budget, who reads them, which go first, and a record of every extraction."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tlray.cache import digest, read_json
from tlray.errors import ConfigError
from tlray.storage import RemotePath, place

BUDGET_GIB = 8.0
"""Room for all features of a node, `$TLRAY_FEATURES_GIB` if that is set; one pair of splits may take half of it.

What unfinished runs read stays beyond it.
"""
PINNED_SECONDS = 86400.0
"""How long a run in an object store keeps features after it has last opened them."""
RECORD = "extractions.jsonl"
"""File beside the features with a line for each extraction: key, images, seconds, lanes."""


def budget() -> float:
    """Bytes that all features of this node may take. Raises ConfigError when the environment names no number from 0."""
    text = os.environ.get("TLRAY_FEATURES_GIB", str(BUDGET_GIB))
    with contextlib.suppress(ValueError):
        if (gib := float(text)) >= 0:
            return gib * 2**30
    raise ConfigError(f"TLRAY_FEATURES_GIB={text!r} is not a number of GiB: correct it or unset it")


def note_extraction(features: Path, **facts: Any) -> None:
    """Add a line to the record of extractions; lines of several processes do not mix."""
    with open(features / RECORD, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def pin(folder: Path, run: str | None) -> None:
    """Note that a run reads these features; they are kept while it is unfinished."""
    if run is not None:
        pins = folder / "pins"
        pins.mkdir(exist_ok=True)
        (pins / digest(run)[:16]).write_text(run)


def readers(folder: Path) -> set[str]:
    """The runs that read these features and have not come to their end; one in an object store is not asked, but given a day."""
    found = set()
    for pin in folder.glob("pins/*"):
        with contextlib.suppress(FileNotFoundError):  # evicted by another process meanwhile
            run, age = pin.read_text(), time.time() - pin.stat().st_mtime
            if _unfinished(run, age):
                found.add(run)
    return found


def _unfinished(run: str, age: float) -> bool:
    folder = place(run)
    if isinstance(folder, RemotePath):
        return age < PINNED_SECONDS
    try:
        return folder.is_dir() and bool(read_json(folder / "summary.json")["partial"])
    except (OSError, ValueError, LookupError, TypeError):  # also where this user may not look
        return True


def sizes(features: Path) -> dict[str, int]:
    """Key -> bytes of all features in a folder, the least recently used first."""
    found = []
    for file in features.glob("[!.]*/features.npy"):
        with contextlib.suppress(FileNotFoundError):  # evicted by another process meanwhile
            found.append((file.parent.stat().st_mtime, file.parent.name, file.stat().st_size))
    return {name: size for _, name, size in sorted(found)}


def _sweep(features: Path) -> None:
    """Delete what processes that were killed have left: features half made, as `build_once` names them, and half deleted."""
    for left in features.glob(".*.making-*"):
        lock = left.with_name(f"{left.name.partition('.making-')[0]}.lock")
        with contextlib.suppress(Timeout), FileLock(lock, timeout=0):  # whoever makes them holds it
            shutil.rmtree(left, ignore_errors=True)
    for left in features.glob(".*.going-*"):
        shutil.rmtree(left, ignore_errors=True)


def evict(features: Path, most: float, keep: str | None = None) -> list[str]:
    """Delete the least recently used features until all take at most `most` bytes; never `keep` and never pinned ones. Their keys.

    A process that reads one keeps what it has mapped. What killed processes have left goes first, and does not count.
    """
    _sweep(features)
    known, gone = sizes(features), []
    total = sum(known.values())
    for key, size in known.items():
        if total <= most:
            break
        if key != keep and not readers(features / key):
            with contextlib.suppress(FileNotFoundError):
                going = features / f".{key}.going-{os.getpid()}"
                os.replace(features / key, going)  # at once, so that nobody finds half of it
                shutil.rmtree(going, ignore_errors=True)
            total -= size
            gone.append(key)
    return gone

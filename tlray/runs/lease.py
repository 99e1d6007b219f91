"""Who works on a run in an object store, where nothing can be locked: a claim that its owner renews, and that goes stale when he is gone.

Each process writes a claim of its own and then looks whose else there are: of two that come at once at most one stays, and stores list
what was written before. Ages are told by the store's clock alone.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlray import storage
from tlray.errors import RunError, StorageError
from tlray.storage import RemotePath, hand_over, handed_over, take_back

log = logging.getLogger(__name__)
_held: set[str] = set()
"""Names of the claims of this process that are not given back."""
RENEWED = 20.0
"""Seconds between two renewals of a claim."""
STALE = 240.0
"""Seconds without renewal after which a claim counts no more; longer than a driver waits for a store that does not answer, with the last
try, and with the time since the last renewal."""
LAST_PATIENCE, LAST_ANSWER = 2.0, 10.0
"""What `storage.PATIENCE` and `storage.ANSWER` are for who is on his way out."""
_hurry, _before = threading.Lock(), list[tuple[float, float]]()
"""What they were before, for each thread that is in a hurry; the first one found them as they are meant to be."""


@contextlib.contextmanager
def held(run: RemotePath) -> Iterator[None]:
    """Hold a run while the block runs.

    Raises RunError when another process holds it, saying who, and how long to wait if that one is gone.
    """
    claim = run.parent / ".leases" / run.name / f"{secrets.token_hex(8)}.json"
    text = json.dumps(_oneself()).encode()
    _held.add(claim.name)
    try:
        claim.write_bytes(text)
        if other := _other(claim):
            claim.unlink(missing_ok=True)
            raise RunError(f"{run} is in use by {other}")
        take_back(run)
        with _kept(run, claim, text):
            yield
        if not handed_over(run):
            claim.unlink(missing_ok=True)
    except StorageError:
        raise  # it would not answer now either: the claim goes stale by itself
    except BaseException:
        with hurried(), contextlib.suppress(StorageError):
            claim.unlink(missing_ok=True)
        raise
    finally:
        _held.discard(claim.name)


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Within the block a store that is away is not waited for: somebody wants to leave."""
    with _hurry:
        _before.append((storage.PATIENCE, storage.ANSWER))
        storage.PATIENCE, storage.ANSWER = LAST_PATIENCE, LAST_ANSWER
    try:
        yield
    finally:
        with _hurry:
            first = _before[0]
            _before.pop()
            if not _before:
                storage.PATIENCE, storage.ANSWER = first


@contextlib.contextmanager
def _kept(run: RemotePath, claim: RemotePath, text: bytes) -> Iterator[None]:
    """Renew a claim in a thread while the block runs."""
    released = threading.Event()
    keeper = threading.Thread(target=_keep, args=(run, claim, text, released), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        released.set()
        keeper.join(RENEWED)  # it may be waiting for a store that does not answer


def _keep(run: RemotePath, claim: RemotePath, text: bytes, released: threading.Event) -> None:
    """Renew the claim until it is released, or somebody has taken it for stale."""
    while not released.wait(RENEWED):
        try:
            if not claim.exists():
                hand_over(run, f"{run} was taken over by another process while this one was not heard of: leave it to that one")
                return
            claim.write_bytes(text)
        except StorageError as error:  # whoever writes to the run says so to the user
            log.warning("the claim on %s cannot be renewed: %s", run, error)


def _other(claim: RemotePath) -> str | None:
    """Who else holds the run, and for how long he may not answer; removes the claims of those that are gone."""
    now = claim.modified()
    for info in claim.parent.listed():
        file = claim.parent / info.base_name
        if file == claim or not info.is_file:
            continue
        age = max(0.0, now - info.mtime_ns / 1e9)
        owner = _owner(file)
        if age > STALE or owner is None or _gone(owner, file.name):
            file.unlink(missing_ok=True)
            continue
        return (
            f"{owner.get('user')} on {owner.get('host')} (process {owner.get('process')}, last heard of {age:.0f} s ago): wait for it, or "
            f"give another --name; if that process is gone, --resume works in {STALE - age + 1:.0f} s"
        )
    return None


def _owner(file: RemotePath) -> dict[str, Any] | None:
    """What a claim says, None when it has been withdrawn meanwhile."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}


def _oneself() -> dict[str, Any]:
    user, process = os.environ.get("USER") or str(os.getuid()), os.getpid()
    return {"user": user, "host": socket.gethostname(), "machine": _machine(), "process": process, "began": _began(process)}


def _gone(owner: dict[str, Any], name: str) -> bool:
    """Whether a claim's owner ran on this machine and runs no more, or left its block; where that cannot be told, no."""
    if (machine := _machine()) is None or owner.get("machine") != machine:
        return False
    return name not in _held if owner["process"] == os.getpid() else _began(owner["process"]) != owner["began"]


def _machine() -> str | None:
    """This start of this machine and the space of its process numbers, None where the system does not say."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _began(process: int) -> str | None:
    """When a process of this machine began, in the system's ticks; None when there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None

"""Ways to spoil an input, each drawn by a seed: bytes of a file, what stands in a path's place, values in JSON, words of a command."""

import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any


class Bomb:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.write_text, (self.mark, "executed")


def _truncated(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def _flipped(data: bytes, random: Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(random.choice((1, 1, 8, 64))):
        spoilt[random.randrange(len(spoilt))] ^= 1 << random.randrange(8)
    return bytes(spoilt)


def _head_flipped(data: bytes, random: Random) -> bytes:
    head = min(len(data), 256)
    return _flipped(data[:head], random) + data[head:]


def _tail_flipped(data: bytes, random: Random) -> bytes:
    tail = max(0, len(data) - 256)
    return data[:tail] + _flipped(data[tail:], random)


def _zeroed(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    length = min(len(data) - start, random.choice((1, 16, 512)))
    return data[:start] + bytes(length) + data[start + length :]


def _cut_out(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + data[start + random.choice((1, 7, 300)) :]


def _inserted(data: bytes, random: Random) -> bytes:
    start = random.randrange(len(data))
    return data[:start] + random.randbytes(random.choice((1, 5, 100))) + data[start:]


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    _truncated, _flipped, _head_flipped, _tail_flipped, _zeroed, _cut_out, _inserted,
    lambda data, random: b"",
    lambda data, random: random.randbytes(len(data)),
    lambda data, random: data + data,
    lambda data, random: b"[" * 100_000,
    lambda data, random: b"\xff\xfe this is a text\n",
)  # fmt: skip


def spoil_bytes(path: Path, random: Random, mark: Path) -> str:
    """Change the content of a file, or put a pickled bomb in its place; in words what was done."""
    if random.random() < 0.1:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
        return "a bomb"
    way = random.choice(BYTES)
    path.write_bytes(way(path.read_bytes(), random))
    return way.__name__


def spoil_place(path: Path, random: Random) -> str:
    """Put something that is no ordinary file in the place of one; in words what."""
    path.unlink()
    what = random.choice(("nothing", "a folder", "a pipe", "a loop", "an endless file"))
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a loop":
        path.symlink_to(path)
    elif what == "an endless file":
        path.symlink_to("/dev/zero")
    return what


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 7, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "x", "\ud800", "<script>", [], ["x"], [[0]], {}, {"x": {}},
)  # fmt: skip


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a nested value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [spot for key in keys for spot in ((value, key), *_spots(value[key]))]


def spoil_json(path: Path, random: Random) -> str:
    """Replace or remove values in a JSON file, or the whole; in words what was done."""
    value = json.loads(path.read_text())
    said = []
    for _ in range(random.choice((1, 1, 2))):
        spots = _spots(value)
        if random.random() < 0.05 or not spots:
            value = random.choice(VALUES)
            said.append(f"all = {value!r}")
            continue
        container, key = random.choice(spots)
        if random.random() < 0.3:
            del container[key]
            said.append(f"no {key!r}")
        else:
            container[key] = random.choice(VALUES)
            said.append(f"{key!r} = {container[key]!r}")
    path.write_text(json.dumps(value))
    return ", ".join(said)


WORDS = (
    "", " ", "-1", "0", "1", "2.5", "1e309", "nan", "inf", "9" * 400, "9" * 5000, "0x10", "\uff11\uff12", "\u0663", "..", "../..", "/",
    "/dev/null", "/dev/zero", "/proc/self/mem", "~", "~nobody_of_that_name/x", "a" * 300, "a" * 5000, "b/" * 2100, "{}", "%s", "[bold]",
    "\udcff", "\n", "--", "-", "none", "None", "npz:", "folder:", "npz:/dev/zero", "npz:~nobody_of_that_name/x.npz", "folder:/dev",
    "npz:" + "a" * 300, "s3://", "s3://bucket/x", "digits", "digits?x=1", "digits?seed=nan", "digits/autoencoder?epochs=0", "imagenet",
    "small_cnn", "x=y", "lr=", "lr=nan", "lr=1e400", "=", "size=8", "samples=0/class", "samples=9999999999", "samples=-3", "batch_size=1e3",
    "folds=1", "fold=0", "folds=2,3", "sensitivity@2", "sensitivity@nan", "auroc+auroc", "loss", "it's \"quoted\"", "C:\\x", "threads=0",
    "epochs=0", "precision=float8", "unfreeze=last_99999999999999999999",
)  # fmt: skip
"""Words that a user, or a script with an unset variable, may put on a command line."""


def spoil_words(words: Sequence[str], random: Random) -> list[str]:
    """A command line with some words replaced, dropped, doubled or added; the first, the command, mostly stays."""
    spoilt = list(words)
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(min(1, len(spoilt) - 1), len(spoilt))
        way = random.random()
        if way < 0.6:
            spoilt[at] = random.choice(WORDS)
        elif way < 0.75:
            del spoilt[at]
        elif way < 0.85:
            spoilt.insert(at, spoilt[random.randrange(len(spoilt))])
        else:
            spoilt.insert(at, random.choice(WORDS))
        if not spoilt:
            break
    return spoilt

"""What the nodes of a run lend each other: prepared data, pretrained weights and files of weights, in the run's storage.

`<storage>/.cache/files/` holds contents, each named by its sha256; `<storage>/.cache/<kind>/<name>.json` says which of them make up a
folder of a node's own cache; `RUN/loans.json` says what the run's driver found under names that other nodes may be unable to look up.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlray.cache import Places, build_once, copy_file, file_digest, write_json
from tlray.errors import RunError
from tlray.storage import AnyPath, RemotePath, place

_known: dict[str, dict[str, Any]] = {}
"""Run -> its loans, as this process has read them."""


def shelf_beside(run: AnyPath) -> str | None:
    """Where the nodes of a run lend each other things, None where all of them see this machine's cache."""
    return str(run.parent / ".cache") if isinstance(run, RemotePath) or os.environ.get("RAY_ADDRESS") else None


def lend_folder(folder: Path, places: Places) -> None:
    """Put the files of a folder of this node's cache on the shelf, unless they are there."""
    if places.shelf is None:
        return
    shelf = place(places.shelf)
    note = shelf / folder.parent.name / f"{folder.name}.json"
    if not note.is_file():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {file.name: _lend(file, shelf) for file in sorted(folder.iterdir()) if file.is_file()})


def _lend(file: Path, shelf: AnyPath) -> str:
    digest = file_digest(file)
    target = shelf / "files" / digest
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(file, target)
    return digest


def borrow_folder(kind: str, name: str, places: Places) -> Path | None:
    """A folder of this node's cache, filled from the shelf where it is missing; None when nobody has lent it.

    Raises RunError when what lies on the shelf is damaged.
    """
    folder = Path(places.cache, kind, name)
    if folder.is_dir() or places.shelf is None:
        return folder if folder.is_dir() else None
    shelf = place(places.shelf)
    note = shelf / kind / f"{name}.json"
    try:
        files = json.loads(note.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise RunError(f"{note} is damaged: remove it, and what it stands for is lent anew") from None
    return build_once(folder, lambda temporary: _fetch(shelf, files, temporary))


def _fetch(shelf: AnyPath, files: Mapping[str, str], folder: Path) -> None:
    """Copy files from the shelf, checking every one against its digest."""
    for name, digest in files.items():
        source = shelf / "files" / str(digest)
        if name != Path(name).name or not re.fullmatch("[0-9a-f]{64}", str(digest)):
            raise RunError(f"{shelf} has a note that names no files of it ({name}): remove the notes in there")
        try:
            copy_file(source, folder / name)
        except FileNotFoundError:
            raise RunError(f"{source} is gone, though a note names it: remove {shelf}, and what it holds is lent anew") from None
        if file_digest(folder / name) != digest:
            raise RunError(f"{source} is damaged, its content has another sha256 than its name: remove it and resume")


def lend(run: AnyPath, places: Places, tasks: Mapping[tuple[str, int], Path], files: Mapping[str, Path]) -> None:
    """Lend what the driver of a run found, and note under which names.

    Args:
        run: its directory.
        tasks: (Config.task, size) -> folder of its prepared arrays in this node's cache.
        files: name, see `borrow_file` -> file of weights.
    """
    if places.shelf is None:
        return
    shelf = place(places.shelf)
    for folder in set(tasks.values()):
        lend_folder(folder, places)
    loans = _read(run)
    loans["tasks"] |= {_task(spec, size): folder.name for (spec, size), folder in tasks.items()}
    loans["files"] |= {name: {file.name: _lend(file, shelf)} for name, file in files.items()}
    write_json(run / "loans.json", loans)
    _known[str(run)] = loans


def borrow_task(spec: str, size: int, places: Places) -> Path | None:
    """This node's folder of the arrays that the run's driver found for a task; None when it has lent none."""
    name = _lent("tasks", _task(spec, size), places)
    return None if name is None else borrow_folder("tasks", name, places)


def borrow_file(name: str, places: Places) -> Path | None:
    """This node's copy of a file of weights (`imagenet BACKBONE`, or the path that Config.weights gives); None when it was not lent."""
    files = _lent("files", name, places)
    if files is None:
        return None
    ((file, digest),) = files.items()
    shelf = place(places.shelf or "")
    return build_once(Path(places.cache, "borrowed", digest[:16]), lambda temporary: _fetch(shelf, files, temporary)) / file


def _lent(kind: str, name: str, places: Places) -> Any:
    if places.shelf is None or places.run is None:
        return None
    if name not in _known.get(places.run, {}).get(kind, {}):
        _known[places.run] = _read(place(places.run))
    return _known[places.run][kind].get(name)


def _read(run: AnyPath) -> dict[str, Any]:
    file = run / "loans.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"tasks": {}, "files": {}}
    except ValueError:
        raise RunError(f"{file} is damaged: remove it and resume, it is made anew") from None


def _task(spec: str, size: int) -> str:
    return f"{spec} at {size} px"

"""A run's directory: made, locked, taken up again; what stands in it at the end; weights that must be there before its trials."""

import contextlib
import json
import platform
import re
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

import tlray
from tlray.cache import Places, read_sealed, write_bytes, write_sealed
from tlray.cluster.resources import Resources, cluster, divide, machine, places_for
from tlray.config import Config
from tlray.data.task import open_task
from tlray.errors import Interrupted, RunError, StorageError, raise_unless_of_the_file, refusal, unwritable
from tlray.lending import lend, shelf_beside
from tlray.models.weights import file_name, weights_file
from tlray.report.page import write_report
from tlray.report.style import standalone
from tlray.results import read_summary, write_results
from tlray.runs.claims import Claim
from tlray.runs.lease import held, hurried
from tlray.runs.progress import Screen
from tlray.storage import AnyPath, RemotePath, place, remove_tree
from tlray.training.pretrain import missing_pretraining, pretraining_config
from tlray.training.setup import available_threads

PACKAGES = ("ray", "torch", "torchvision", "optuna", "medmnist", "scikit-learn", "numpy")

BEGUN = re.compile(r"\.lock$|\.run\.json\.")
"""What is left of a run that was killed before anything was asked of it."""


@dataclass(frozen=True)
class Run:
    """A run directory and what was asked of it."""

    folder: AnyPath
    places: Places
    resources: Resources
    console: Console = field(default_factory=Screen)
    banner: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name, which is its directory's."""
        return self.folder.name

    @property
    def ledger(self) -> AnyPath:
        """Where every opening of the test split is written down."""
        return self.folder / "test_ledger.jsonl"


def new_run(folder: str | AnyPath, data: str | None = None, resume: bool = False) -> Run:
    """A run directory for `compare`, made where it is missing, with all that this machine has; `data` as in `Places.data`.

    Raises RunError when it holds something already and `resume` is not set.
    """
    where = place(folder)
    folder = where.expanduser().resolve() if isinstance(where, Path) else where
    if not resume:
        check_folder(folder, resume=False)
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, Places(data=data, run=str(folder), shelf=shelf_beside(folder)), divide([machine()], 0, None, None, None))


def check_folder(folder: AnyPath, resume: bool) -> None:
    """Raise RunError when a run directory exists without `resume`, or with it does not, or cannot be made; leaves nothing behind."""
    if isinstance(folder, RemotePath):
        folder.reach()
    if resume and not (folder / "run.json").is_file():
        raise RunError(f"{folder} is no run that could be resumed: check --storage and --name, or leave out --resume")
    if not resume and folder.exists() and (not folder.is_dir() or not all(BEGUN.match(each.name) for each in folder.iterdir())):
        raise RunError(f"{folder} exists already: give another --name, or --resume to take it up")
    if isinstance(folder, RemotePath):
        return
    above = next(each for each in [folder, *folder.parents] if each.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".tlray-", dir=above).cleanup()  # os.access says yes to root, also where nothing can be made
    except OSError:
        raise RunError(f"{folder} cannot be made, {above} is not a folder that may be written: choose another --storage") from None


@contextlib.contextmanager
def opened(folder: AnyPath, asked: dict[str, Any], resume: bool) -> Iterator[None]:
    """Make a new run directory, or take up an old one that was asked the same; only one process at a time may.

    Raises RunError when `check_folder` does, when the run was asked something else, or when it is in use.
    """
    check_folder(folder, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder) if isinstance(folder, RemotePath) else FileLock(folder / ".lock", timeout=0):
            if resume:
                _same_question(folder / "run.json", asked)
            else:
                write_sealed(folder / "run.json", asked)
            yield
    except Timeout:
        raise RunError(f"{folder} is in use by another process: wait for it, or give another --name") from None
    except OSError as error:
        if not unwritable(error):
            raise
        if not (folder / "run.json").is_file():
            remove_tree(folder)  # nothing was begun: the same command may have the name when there is room
            raise RunError(refusal(error, folder)) from error
        raise RunError(f"{refusal(error, folder)}, and the same command with --resume goes on") from error


def finished(folder: AnyPath) -> dict[str, Any] | None:
    """The summary of a run that has come to its end, None otherwise."""
    if not (folder / "summary.json").is_file():
        return None
    summary = read_summary(folder)
    return None if summary["partial"] else summary


def report_due(folder: AnyPath) -> bool:
    """Whether a run's report is missing or older than its summary, which is written right before it."""
    try:
        return _written(folder / "report.html") < _written(folder / "summary.json")
    except FileNotFoundError:
        return True


def _written(file: AnyPath) -> float:
    """When, seconds since 1970. FileNotFoundError when it is not there."""
    return file.modified() if isinstance(file, RemotePath) else file.stat().st_mtime


def interrupted(run: Run, leave: Callable[[], object] = lambda: None) -> Interrupted:
    """What is said after Ctrl-C. `leave` leaves a table first, unless the store is away."""
    without = ""
    try:
        with hurried():
            leave()
    except StorageError:
        without = " but not in a table, as the storage does not answer"
    return Interrupted(f"interrupted; what is done is saved{without}: the same command with --resume goes on in {run.folder}")


def _same_question(file: AnyPath, asked: dict[str, Any]) -> None:
    try:
        before = read_sealed(file)
    except (OSError, ValueError) as error:
        raise_unless_of_the_file(error, file)
        raise RunError(f"{file} is damaged: start a run of another --name") from None
    now = json.loads(json.dumps(asked))
    different = [f"{name} was {old!r} and is {new!r} now" for name, old, new in _differences("", before, now)]
    if different:
        raise RunError(f"{file.parent} was started with other settings ({', '.join(different[:3])}): repeat its command with --resume")


def _differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, before, now) of every value that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(f"{name}.{key}".lstrip("."), before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(f"{name}[{index}]", *pair)
    elif before != now:
        yield name, before, now


def prepare_weights(configs: Sequence[Config], run: Run) -> None:
    """Pretrain whatever weights these trainings need and that are not there, in as few TorchTrainers as possible.

    First, what they read is lent to the nodes that lack it.
    """
    _lend(configs, run)
    needed: dict[str, Config] = {}
    for config in configs:
        source = missing_pretraining(config, run.places)
        if source:
            needed.setdefault(str(source), source)
    if not needed:
        return
    from tlray.cluster.distributed import pretrain_all  # imports Ray

    nodes = cluster()
    on_gpus = places_for(nodes, 1, 1)
    at_once = run.resources.concurrent * run.resources.processes
    workers = on_gpus or max(1, run.resources.workers, min(len(needed), places_for(nodes, 1, 0), at_once))
    resources = divide(nodes, workers, 1, None, 1.0 if on_gpus else 0.0)
    sources = [replace(each, threads=resources.cpus) for each in needed.values()]
    kinds = Counter(f"{each.backbone} on {each.task}{' (autoencoder)' * (each.objective == 'autoencoder')}" for each in sources)
    names = ", ".join(kind if count == 1 else f"{count} times {kind}" for kind, count in kinds.items())
    run.console.print(f"Pretraining {names} ({resources.processes} worker{'s' * (workers > 1)}) ...", markup=False, highlight=False)
    started = time.monotonic()
    pretrain_all(sources, run.places, resources, run.name, run.folder / "ray")
    run.console.print(f"  done in {time.monotonic() - started:.0f} s", markup=False)


def _lend(configs: Sequence[Config], run: Run) -> None:
    if run.places.shelf is None:
        return
    own, tasks, files = replace(run.places, shelf=None), {}, {}
    for config in {replace(config, seed=0): config for config in configs}.values():
        source = pretraining_config(config)
        for each in (config, source) if source else (config,):
            if (each.task, each.size) not in tasks:
                tasks[each.task, each.size] = open_task(each.task, each.size, own).folder
        if source is None and config.weights != "none":
            files[file_name(config.weights, config.backbone)] = weights_file(config.weights, config.backbone, own)
    lend(run.folder, run.places, tasks, files)


def finish(
    run: Run, kind: str, rows: list[dict[str, Any]], entries: list[dict[str, Any]], *, partial: bool, seconds: float,
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write results.parquet, summary.json and report.html; the summary.

    Args:
        kind: search or compare.
        rows: of the tidy table, see `tlray.results.rows_of`.
        entries: one per cell.
        more: further entries of the summary.
    """
    if rows:
        write_results(run.folder / "results.parquet", rows)
    versions = {"tlray": tlray.__version__, "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    summary = {
        "run": run.name, "kind": kind, "partial": partial, "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.argv),
        "banner": list(run.banner), "versions": versions, "hardware": hardware(), "resources": vars(run.resources),
        "seconds": seconds, "cells": entries, **(more or {}),
    }  # fmt: skip
    write_sealed(run.folder / "summary.json", summary)
    if rows:
        write_report(run.folder)
    return summary


@dataclass(frozen=True)
class Drawing:
    """A picture that belongs in a report.

    name: of its file, letters, digits and hyphens. svg: inline, as `tlray.report.style.Picture` makes it.
    """

    name: str
    title: str
    svg: str
    caption: str


def add_to_report(run: Run, drawings: Sequence[Drawing], claims: Sequence[Claim]) -> dict[str, Any]:
    """Put pictures and verdicts into a finished comparison's summary and page; the summary.

    Each picture stands in `pictures/`, as a file of its own, and in `pictures/inline/` for the page.
    """
    folder = run.folder / "pictures" / "inline"
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        write_bytes(folder / f"{drawing.name}.svg", drawing.svg.encode())
        write_bytes(folder.parent / f"{drawing.name}.svg", standalone(drawing.svg).encode())
    summary = read_summary(run.folder)
    summary["pictures"] = [{"file": f"pictures/inline/{each.name}.svg", "title": each.title, "caption": each.caption} for each in drawings]
    summary["comparison"]["claims"] = [vars(each) for each in claims]
    write_sealed(run.folder / "summary.json", summary)
    write_report(run.folder)
    return summary


def hardware() -> dict[str, Any]:
    """What this machine is, for the summary."""
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpus": available_threads(), "machine": platform.machine(), "system": platform.system(), "gpus": ", ".join(names) or "none"}

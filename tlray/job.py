"""The main job behind the command line: settle what to do, say it, do it, and end with a table and the next commands."""

import argparse
import contextlib
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tlray.arguments import absolute
from tlray.cache import Places, read_sealed
from tlray.cluster.resources import Node, Resources, cluster, divide, machine, total
from tlray.cluster.sampler import check_space
from tlray.cluster.session import Session, started
from tlray.config import Config, parse_settings
from tlray.deploy.card import COMPUTES_IN
from tlray.errors import Interrupted, RunError, StorageError, raise_unless_of_the_file
from tlray.lending import shelf_beside
from tlray.report.page import write_report
from tlray.report.tensorboard import write_tensorboard
from tlray.results import read_summary
from tlray.runs.folder import Run, check_folder, finished, interrupted, opened, report_due
from tlray.runs.lease import hurried
from tlray.runs.planning import DEFAULT_BACKBONES, Cell, Scale, choose_tasks, default_scale, estimate, plan_cells
from tlray.runs.progress import screen
from tlray.runs.search import search
from tlray.storage import AnyPath, place
from tlray.training.features import kept_boundaries
from tlray.training.pretrain import missing_pretraining
from tlray.training.setup import default_precision


def tune_backbones(arguments: argparse.Namespace, places: Places) -> None:
    """Search every (task, backbone) that was asked for. Raises the UserError of whatever is wrong, before Ray starts where it can."""
    fixed = parse_settings(arguments.settings)
    folder = check_name(arguments.storage, arguments.name or time.strftime("%Y%m%d-%H%M%S"), arguments.resume)
    nodes = nodes_there()
    scale, resources = _scale(arguments, folder, nodes), _resources(arguments, nodes)
    check_rule(arguments.threshold_rule)
    trials, base = arguments.trials or scale.trials, replace(_base(arguments, scale), threads=resources.cpus)
    tasks, banner = choose_tasks(arguments.tasks, base.size, places)
    backbones = dict.fromkeys(arguments.backbones or DEFAULT_BACKBONES)
    cells, lines = plan_cells(list(dict.fromkeys(tasks)), list(backbones), arguments.weights, base, fixed, places)
    cells = [_with_precision(cell, fixed, scale, resources) for cell in cells]
    _search(arguments, folder, places, resources, cells, [*banner, *lines], trials, arguments.seeds, arguments.time_budget)


def train_one(arguments: argparse.Namespace, places: Places) -> None:
    """Train one configuration and deliver its model: a search of one trial."""
    fixed = parse_settings(arguments.settings)
    folder, arguments.concurrent = check_name(arguments.storage, arguments.name or time.strftime("%Y%m%d-%H%M%S"), arguments.resume), 1
    nodes = nodes_there()
    scale, resources = _scale(arguments, folder, nodes), replace(_resources(arguments, nodes), why="it is the only trial")
    check_rule(arguments.threshold_rule)
    base = replace(_base(arguments, scale), threads=resources.cpus, backbone=arguments.backbone)
    cells, banner = plan_cells([arguments.task], [arguments.backbone], arguments.weights, base, fixed, places, space={}, first=[{}])
    cells = [_with_precision(cell, fixed, scale, resources) for cell in cells]
    _search(arguments, folder, places, resources, cells, banner, 1, 1, None)


def _scale(arguments: argparse.Namespace, folder: AnyPath, nodes: Sequence[Node]) -> Scale:
    """What is done where no flag says how much: by what is there, but after a resume as the run began, wherever it goes on."""
    if not arguments.resume:
        return default_scale({name: total(nodes, name) for name in ("CPU", "GPU")})
    try:
        begun = read_sealed(folder / "run.json")
        bases = [cell["base"] for cell in begun["cells"]]
        precisions = {base["backbone"]: base["precision"] for base in bases}
        return Scale(begun["trials"], bases[0]["epochs"], bases[0]["size"], precisions)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise_unless_of_the_file(error, folder / "run.json")
        raise RunError(f"{folder / 'run.json'} is damaged: start a run of another --name") from None


def _with_precision(cell: Cell, fixed: dict[str, Any], scale: Scale, resources: Resources) -> Cell:
    """The cell with the arithmetic that it trains in: as named, as the run began, or by this machine; float32 on a cluster of others."""
    if "precision" in fixed:
        return replace(cell, why="named")
    if scale.precisions is not None:
        precision, why = scale.precisions.get(cell.base.backbone, cell.base.precision), "as the run began"
    elif os.environ.get("RAY_ADDRESS"):
        precision, why = "float32", "a cluster's machines may differ; --set precision=bfloat16 where all have it"
    else:
        precision, why = default_precision(cell.base.backbone, resources.gpus)
    return replace(cell, base=replace(cell.base, precision=precision), why=why)


def _base(arguments: argparse.Namespace, scale: Scale) -> Config:
    return Config(
        size=arguments.size if arguments.size is not None else scale.size,
        epochs=arguments.epochs or scale.epochs,
        monitor=arguments.monitor,
        seed=arguments.seed,
    )


def nodes_there() -> list[Node]:
    """This machine, or the machines of the cluster that RAY_ADDRESS names, which is asked."""
    if os.environ.get("RAY_ADDRESS"):
        with started():
            return cluster()
    return [machine()]


def resources_of(arguments: argparse.Namespace) -> Resources:
    """What a trial gets of what is there."""
    return _resources(arguments, nodes_there())


def _resources(arguments: argparse.Namespace, nodes: Sequence[Node]) -> Resources:
    asked = (arguments.workers_per_trial, arguments.concurrent, arguments.cpus_per_trial, arguments.gpus_per_trial, arguments.elastic)
    return divide(nodes, *asked)


def check_name(storage: str, name: str, resume: bool) -> AnyPath:
    """The run's directory, checked before anything takes time. Raises RunError when it cannot be used."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise RunError(f"--name {name!r}: a name has letters, digits, '-', '_' and '.' only")
    folder = (place(storage) if "://" in storage else absolute(storage)).resolve() / name
    check_folder(folder, resume)
    return folder


def _search(
    arguments: argparse.Namespace, folder: AnyPath, places: Places, resources: Resources, cells: list[Cell], banner: list[str],
    trials: int, seeds: int, seconds: float | None,
) -> None:  # fmt: skip
    for cell in cells:
        check_space(cell.space, cell.base)
    console = screen()
    asked = {
        "kind": "search", "cells": [_asked(cell) for cell in cells], "trials": trials, "seed": arguments.seed, "seeds": seeds,
        "threshold_rule": arguments.threshold_rule,
    }  # fmt: skip
    run = Run(folder, replace(places, run=str(folder), shelf=shelf_beside(folder)), resources, console, tuple(banner))
    with opened(folder, asked, arguments.resume):
        if (done := finished(folder)) is not None:
            say(console, f"{folder} is finished already")
            if report_due(folder):
                say(console, "only its report was not; it is written now")
                write_report(folder)
            if arguments.tensorboard:
                write_tensorboard(folder)
            print_table(console, done)
            print_next(run, done)
            return
        print_banner(console, banner)
        print_plan(run, cells, trials, seeds)
        try:
            with started() as session:
                print_dashboard(console, session)
                summary = search(
                    cells, run, trials=trials, seed=arguments.seed, seeds=seeds, seconds=seconds, rule=arguments.threshold_rule
                )
                print_banner(console, banner)
                print_table(console, summary)
                print_dashboard(console, session, joined_only=True)
        except Interrupted:
            with hurried(), contextlib.suppress(StorageError):
                if (folder / "summary.json").is_file():
                    print_table(console, read_summary(folder))
            raise
        except KeyboardInterrupt:
            raise interrupted(run) from None
        if arguments.tensorboard:
            write_tensorboard(folder)
    print_next(run, summary)


def _asked(cell: Cell) -> dict[str, Any]:
    space = {name: str(domain) for name, domain in cell.space.items()}
    base = {name: value for name, value in cell.base.to_dict().items() if name != "threads"}  # a run may go on elsewhere
    return {
        "cell": cell.name,
        "base": base,
        "space": space,
        "first": list(cell.first),
        "data": cell.task.fingerprint,
    }


def check_rule(rule: str) -> None:
    """Raise ConfigError when `rule` is no way to choose an operating threshold."""
    import numpy as np

    from tlray.training.calibration import choose_threshold

    choose_threshold(np.array([0, 1]), np.array([0.2, 0.8]), rule)


def say(console: Console, line: str) -> None:
    """Print a line as it is, also where it holds brackets or is wider than the terminal."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_banner(console: Console, lines: list[str]) -> None:
    """Print what no one may overlook."""
    if lines:
        console.print(Panel(Text("\n".join(lines)), title="ATTENTION", border_style="bold red", style="bold"))


def print_plan(run: Run, cells: list[Cell], trials: int, seeds: int) -> None:
    """Print what will be done, before it is."""
    base = cells[0].base
    say(run.console, f"Run {run.name} in {run.folder}")
    for cell in cells:
        images = f"{len(cell.task.train)} / {len(cell.task.val)} images to train / validate, {cell.task.kind}"
        source = cell.task.source
        origin = source.get("file") or source.get("description") or cell.task.spec
        say(run.console, f"  {cell.name}: {images}; weights {cell.base.weights}; data {origin}")
        known = f"{len(cell.first)} known configuration{'s' * (len(cell.first) != 1)} first"
        say(run.console, f"    {known}, then searched: {', '.join(cell.space) or 'nothing'}")
        say(run.console, f"    arithmetic in {cell.base.precision} ({cell.why})")
        plain, frozen = "augment" in cell.space or cell.base.augment == "none", "unfreeze" in cell.space or cell.base.unfreeze != "full"
        if cell.base.weights != "none" and plain and frozen:
            behind = ", ".join(kept_boundaries(cell.task, cell.base, cell.plans())) or "no stage"
            say(run.console, f"    frozen features are cached behind {behind}, in trials with augment=none")
    often = f"{trials} trial{'s' * (trials > 1)} of up to {base.epochs} epochs each"
    say(run.console, f"  {often}, {base.size} px; the best {base.monitor} on validation wins")
    say(run.console, f"  trials: {run.resources.describe()}")
    say(run.console, f"  {_estimate(run, cells, trials, seeds)}")


def _estimate(run: Run, cells: list[Cell], trials: int, seeds: int) -> str:
    threads = run.resources.cpus * run.resources.processes
    seconds = None if run.resources.gpus else estimate(cells, trials, cells[0].base.epochs, run.resources.concurrent, threads)
    unmade = len({str(made) for cell in cells if (made := missing_pretraining(cell.base, run.places))})
    besides = [f"{unmade} pretraining{'s' * (unmade > 1)} before them"] if unmade else []
    besides += [f"{seeds - 1} repeat{'s' * (seeds > 2)} per cell after them"] if seeds > 1 else []
    time_of_trials = f"about {max(1, round(seconds / 60))} min of trials" if seconds else "none for this backbone or hardware"
    return ", and ".join([f"estimate: {time_of_trials}", *besides])


def print_dashboard(console: Console, session: Session, joined_only: bool = False) -> None:
    """Print where to watch, and how to log in; at the end only where the dashboard goes on without us."""
    if session.dashboard and (session.joined or not joined_only):
        login = f"log in with the token that `cat {session.token}` prints" if session.token else "no login needed"
        where = " on the cluster's head, which `ray dashboard cluster.yaml` brings to your machine" if session.joined else ""
        say(console, f"Dashboard: http://{session.dashboard}{where} ({login})")


def print_table(console: Console, summary: dict[str, Any]) -> None:
    """Print a row per cell: test accuracy and AUROC with intervals, the winner, what the trials came to."""
    table = Table(title=f"{summary['run']}{' (PARTIAL)' if summary['partial'] else ''}: test split, 95 % intervals")
    for name in ("task", "backbone", "accuracy", "AUROC", "winner (by validation)", "trials"):
        table.add_column(name, overflow="fold", no_wrap=name in ("accuracy", "AUROC"))
    for cell in summary["cells"]:
        best, test, seeds = cell["winner"], cell["test"] or {}, cell["seeds"]
        counts = ", ".join(f"{count} {status}" for status, count in cell["trials"].items()) or "none"
        if lost := cell.get("lost"):
            counts += f"; {lost} process{'es' * (lost > 1)} lost"
        winner = "none yet" if summary["partial"] else "none"
        if best:
            knobs = f"{best['config']['unfreeze']}, lr {best['config']['lr']:.1e}; {cell['monitor']} {best['monitor']:.4f}"
            winner = f"trial {best['trial']}, epoch {best['epoch']}: {knobs}"
        table.add_row(cell["task"], cell["backbone"], _figure(test.get("accuracy")), _figure(test.get("auroc")), winner, counts)
        if seeds:
            many = f"mean of {len(seeds['auroc']['values'])} seeds"
            table.add_row("", many, _figure(seeds["accuracy"]), _figure(seeds["auroc"]), seeds["auroc"]["interval"], "")
    console.print(table)
    kinds = {metric["interval"] for cell in summary["cells"] for metric in (cell["test"] or {}).values() if metric.get("interval")}
    for kind in sorted(kinds):
        say(console, f"intervals: {kind}")
    for cell in summary["cells"]:
        if cell["winner"] and (trained := cell["winner"]["config"].get("precision", COMPUTES_IN)) != COMPUTES_IN:
            say(console, f"{cell['cell']}: trained and chosen in {trained}; model and test figures in {COMPUTES_IN}")


def _figure(metric: dict[str, Any] | None) -> str:
    if not metric:
        return "-"
    value = metric.get("value", metric.get("mean"))
    if value is None or value != value:
        return "undefined"
    return f"{value:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]" if metric["low"] is not None else f"{value:.3f}"


def print_next(run: Run, summary: dict[str, Any]) -> None:
    """Print what is there now, and what to type next."""
    won = [cell for cell in summary["cells"] if cell["winner"]]
    best = min(won, key=lambda cell: cell["winner"]["monitor"] * (1 if cell["minimise"] else -1))
    model = run.folder / best["cell"] / "model"
    say(run.console, f"report  {run.folder / 'report.html'}")
    say(run.console, f"model   {model}")
    if (run.folder / "tensorboard").is_dir():
        say(run.console, f"curves  tensorboard --logdir {shlex.quote(str(run.folder / 'tensorboard'))}")
    quoted, whole = shlex.quote(str(model)), shlex.quote(str(run.folder))
    for command in (f"predict {quoted} IMAGE.png", f"evaluate {quoted} --task npz:YOUR.npz", f"report {whole}"):
        say(run.console, f"next    tlray {command}")

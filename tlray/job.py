"""The main job behind the command line: settle what to do, say it, do it, and end with a table and the next commands."""

import argparse
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tlray.cache import Places
from tlray.cluster.resources import Resources, cluster, divide, machine
from tlray.cluster.sampler import check_space
from tlray.cluster.session import Session, started
from tlray.config import Config, parse_settings
from tlray.errors import RunError
from tlray.runs.folder import Run, check_folder, finished, opened
from tlray.runs.planning import DEFAULT_BACKBONES, Cell, Scale, choose_tasks, default_scale, estimate, plan_cells
from tlray.runs.search import search
from tlray.training.pretrain import missing_pretraining


def tune_backbones(arguments: argparse.Namespace, places: Places) -> None:
    """Search every (task, backbone) that was asked for. Raises the UserError of whatever is wrong, before Ray starts where it can."""
    fixed = parse_settings(arguments.settings)
    scale, resources, folder = default_scale(machine()), _resources(arguments), _folder(arguments)
    check_rule(arguments.threshold_rule)
    trials, base = arguments.trials or scale.trials, replace(_base(arguments, scale), threads=resources.cpus)
    tasks, banner = choose_tasks(arguments.tasks, base.size, places)
    cells, lines = plan_cells(tasks, arguments.backbones or DEFAULT_BACKBONES, arguments.weights, base, fixed, places)
    _search(arguments, folder, places, resources, cells, [*banner, *lines], trials, arguments.seeds, arguments.time_budget)


def train_one(arguments: argparse.Namespace, places: Places) -> None:
    """Train one configuration and deliver its model: a search of one trial."""
    fixed = parse_settings(arguments.settings)
    resources, folder = _resources(arguments), _folder(arguments)
    check_rule(arguments.threshold_rule)
    base = replace(_base(arguments, default_scale(machine())), threads=resources.cpus, backbone=arguments.backbone)
    cells, banner = plan_cells([arguments.task], [arguments.backbone], arguments.weights, base, fixed, places, space={}, first=[{}])
    _search(arguments, folder, places, resources, cells, banner, 1, 1, None)


def _base(arguments: argparse.Namespace, scale: Scale) -> Config:
    return Config(
        size=arguments.size if arguments.size is not None else scale.size,
        epochs=arguments.epochs or scale.epochs,
        monitor=arguments.monitor,
        seed=arguments.seed,
    )


def _resources(arguments: argparse.Namespace) -> Resources:
    """What a trial gets, by this machine's figures; on a joined cluster by the cluster's, which is asked first."""
    asked = (arguments.workers_per_trial, arguments.concurrent, arguments.cpus_per_trial, arguments.gpus_per_trial)
    if os.environ.get("RAY_ADDRESS"):
        with started():
            return divide(cluster(), *asked)
    return divide(machine(), *asked)


def _folder(arguments: argparse.Namespace) -> Path:
    """The run's directory, checked before anything takes time."""
    name = arguments.name or time.strftime("%Y%m%d-%H%M%S")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise RunError(f"--name {name!r}: a name has letters, digits, '-', '_' and '.' only")
    if "://" in arguments.storage:
        raise RunError(
            f"--storage {arguments.storage}: object stores are not supported yet, name a folder (on a cluster: one that all nodes see)"
        )
    folder = Path(arguments.storage).expanduser().resolve() / name
    check_folder(folder, arguments.resume)
    return folder


def _search(
    arguments: argparse.Namespace, folder: Path, places: Places, resources: Resources, cells: list[Cell], banner: list[str],
    trials: int, seeds: int, seconds: float | None,
) -> None:  # fmt: skip
    for cell in cells:
        check_space(cell.space, cell.base)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    asked = {
        "kind": "search", "cells": [_asked(cell) for cell in cells], "trials": trials, "seed": arguments.seed, "seeds": seeds,
        "threshold_rule": arguments.threshold_rule,
    }  # fmt: skip
    run = Run(folder, places, resources, console, tuple(banner))
    with opened(folder, asked, arguments.resume):
        if (done := finished(folder)) is not None:
            say(console, f"{folder} is finished already")
            print_table(console, done)
            print_next(run, done)
            return
        print_banner(console, banner)
        print_plan(run, cells, trials, seeds)
        with started() as session:
            print_dashboard(console, session)
            summary = search(cells, run, trials=trials, seed=arguments.seed, seeds=seeds, seconds=seconds, rule=arguments.threshold_rule)
            print_banner(console, banner)
            print_table(console, summary)
            print_dashboard(console, session)
    print_next(run, summary)


def _asked(cell: Cell) -> dict[str, Any]:
    space = {name: str(domain) for name, domain in cell.space.items()}
    return {
        "cell": cell.name,
        "base": cell.base.to_dict(),
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
    say(run.console, f"  {trials} trials of up to {base.epochs} epochs each, {base.size} px; the best {base.monitor} on validation wins")
    say(run.console, f"  trials: {run.resources.describe()}")
    say(run.console, f"  {_estimate(run, cells, trials, seeds)}")


def _estimate(run: Run, cells: list[Cell], trials: int, seeds: int) -> str:
    threads = run.resources.cpus * run.resources.processes
    seconds = None if run.resources.gpus else estimate(cells, trials, cells[0].base.epochs, run.resources.concurrent, threads)
    unmade = len({str(made) for cell in cells if (made := missing_pretraining(cell.base, run.places))})
    besides = [f"{unmade} pretraining{'s' * (unmade > 1)} before them"] if unmade else []
    besides += [f"{seeds - 1} repeats per cell after them"] if seeds > 1 else []
    time_of_trials = f"about {max(1, round(seconds / 60))} min of trials" if seconds else "none for this backbone or hardware"
    return ", and ".join([f"estimate: {time_of_trials}", *besides])


def print_dashboard(console: Console, session: Session) -> None:
    """Print where to watch, and how to log in."""
    if session.dashboard:
        login = f"log in with the token that `cat {session.token}` prints" if session.token else "no login needed"
        say(console, f"Dashboard: http://{session.dashboard} ({login})")


def print_table(console: Console, summary: dict[str, Any]) -> None:
    """Print a row per cell: test accuracy and AUROC with intervals, the winner, what the trials came to."""
    table = Table(title=f"{summary['run']}: test split, 95 % intervals (stratified bootstrap over test images)")
    for name in ("task", "backbone", "accuracy", "AUROC", "winner (by validation)", "trials"):
        table.add_column(name, overflow="fold", no_wrap=name in ("accuracy", "AUROC"))
    for cell in summary["cells"]:
        best, test, seeds = cell["winner"], cell["test"], cell["seeds"]
        knobs = f"{best['config']['unfreeze']}, lr {best['config']['lr']:.1e}; {cell['monitor']} {best['monitor']:.4f}"
        counts = ", ".join(f"{count} {status}" for status, count in cell["trials"].items())
        winner = f"trial {best['trial']}, epoch {best['epoch']}: {knobs}"
        table.add_row(cell["task"], cell["backbone"], _figure(test["accuracy"]), _figure(test["auroc"]), winner, counts)
        if seeds:
            how = seeds["auroc"]["interval"]
            table.add_row(
                "", f"{len(seeds['auroc']['values'])} seeds", _figure(seeds["accuracy"]), _figure(seeds["auroc"]), f"mean, {how}", ""
            )
    console.print(table)


def _figure(metric: dict[str, Any]) -> str:
    value = metric.get("value", metric.get("mean"))
    if value is None or value != value:
        return "undefined"
    return f"{value:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def print_next(run: Run, summary: dict[str, Any]) -> None:
    """Print what is there now, and what to type next."""
    best = min(summary["cells"], key=lambda cell: cell["winner"]["monitor"] * (1 if cell["minimise"] else -1))
    model = run.folder / best["cell"] / "model"
    say(run.console, f"report  {run.folder / 'report.html'}")
    say(run.console, f"model   {model}")
    for command in (f"predict {model} IMAGE.png", f"evaluate {model} --task npz:YOUR.npz", f"report {run.folder}"):
        say(run.console, f"next    tlray {command}")

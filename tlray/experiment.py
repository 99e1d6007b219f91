"""What every experiment shares: its flags, data that stand in for missing ones, one run directory, one Ray, one comparison."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from tlray.arguments import (
    Parser,
    absolute_task,
    absolute_weights,
    add_place_arguments,
    add_resource_arguments,
    add_storage_arguments,
    field_help,
    places_of,
    positive,
    run_command,
)
from tlray.cache import Places
from tlray.cluster.session import running, started
from tlray.config import PATH_SCHEMES, Config, parse_field, parse_settings
from tlray.data.task import available, open_task
from tlray.errors import ConfigError, DataError, Interrupted, UserError
from tlray.job import check_name, print_banner, print_dashboard, resources_of, say
from tlray.lending import shelf_beside
from tlray.models.weights import imagenet_available
from tlray.registry import TASKS, did_you_mean
from tlray.report.resampled import RESAMPLED
from tlray.runs.arms import Across, make_grid
from tlray.runs.claims import Claim
from tlray.runs.compare import METRICS, Comparison, Question, checked, compare
from tlray.runs.folder import Drawing, Run, add_to_report, interrupted, opened
from tlray.runs.progress import screen
from tlray.storage import remove_tree

STAND_INS = {
    "chestmnist": "phantom_chest", "chestmnist_binary": "phantom_chest_binary", "pneumoniamnist": "phantom_pneumonia",
    "emnist_letters": "digits", "imagenet": "phantom_chest",
}  # fmt: skip
"""Default data and weights that may be missing -> what takes their place, under a banner. Named ones are never replaced."""
PHANTOM_LINE = "PHANTOM DATA, drawn by a seeded generator: these figures say nothing about patients or about how good a method is."
OWN_FLAGS = frozenset({"task", "backbone", "weights", "seed", "fold", "folds", "threads", "objective"})
"""Fields that the command line settles in other ways than by --set."""
BACKBONE = "{backbone}"
"""Stands in --source for the backbone's name: `weights/{backbone}-cifar10.safetensors`."""


@dataclass(frozen=True)
class Lab:
    """An experiment while it runs: what was asked, where it goes.

    source: data set to pretrain on, or weights, as --source names it. target: the task. samples: training images of the target.
    """

    run: Run
    source: str
    target: str
    seeds: tuple[int, ...]
    samples: int | str | None
    settings: Mapping[str, Any]
    ray: ExitStack

    def config(self, **fields: Any) -> Config:
        """The base configuration: `fields`, then the target and its samples, then what --set fixes."""
        given = {"task": self.target, "samples": self.samples, "threads": self.run.resources.cpus, **fields, **self.settings}
        return Config(**given)

    def compare(self, base: Config, across: Across, question: Question) -> Comparison:
        """`tlray.runs.compare` under the seeds that were asked for."""
        self.check(base, across, question)
        self.start_ray()
        return compare(base, across, self.run, self.seeds, question)

    def check(self, base: Config, across: Across, question: Question) -> None:
        """Raise the UserError of whatever would be wrong with this comparison, before Ray starts; also a --set that an arm contradicts."""
        grid, _ = checked(base, across, self.run, self.seeds, question)
        for arm, config in grid.configs:
            if changed := [name for name, value in self.settings.items() if getattr(config, name) != value]:
                raise ConfigError(f"--set {changed[0]}={self.settings[changed[0]]}: arm {arm!r} sets its own {changed[0]}: leave it out")

    def start_ray(self) -> None:
        """Start Ray, or join it, until the experiment ends; say where its dashboard is."""
        if not running():
            print_dashboard(self.run.console, self.ray.enter_context(started()))

    def needs_data_set(self) -> None:
        """Raise ConfigError unless the source is a data set that an experiment can pretrain on, with settings of its own."""
        if self.source not in TASKS and not self.source.startswith(PATH_SCHEMES):
            guess = did_you_mean(self.source, TASKS.names())
            raise ConfigError(
                f"--source {self.source}: this experiment pretrains on its source, so name a data set or a path to one{guess}"
            )

    def needs_one_label(self) -> None:
        """Raise DataError when the target's images have several labels, by which no latent space can be coloured."""
        task = open_task(self.target, self.settings.get("size", Config.size), self.run.places)
        if task.kind == "multilabel":
            raise DataError(f"--target {self.target}: {task.name} is multilabel, but this experiment needs one label per image")

    def report(self, comparison: Comparison, drawings: Sequence[Drawing] = (), claims: Sequence[Claim] = ()) -> None:
        """Put pictures and verdicts into the report, and print the table of arms with what may be concluded."""
        summary = add_to_report(self.run, drawings, claims)
        _print(self.run, summary)


def experiment(
    main: Callable[[Lab], None], doc: str | None, *, source: str, target: str, seeds: int = 5, samples: int | str | None = None,
    argv: Sequence[str] | None = None, name: str | None = None,
) -> int:  # fmt: skip
    """Run an experiment from its file; an exit status.

    Args:
        main: does it, in its run directory and inside one Ray.
        doc: the file's docstring: its first line is the question.
        source, target, seeds, samples: defaults of the flags.
        argv, name: of the command line; by default this process's.
    """
    name = name or Path(sys.argv[0]).stem

    def command() -> int:
        parser = Parser(prog=f"{name}.py", description=doc, epilog=field_help(OWN_FLAGS - {"backbone", "weights"}))
        _add_arguments(parser, source, target, seeds, samples)
        arguments = parser.parse_args(argv)
        settings = parse_settings(arguments.settings)
        if clash := sorted(settings.keys() & ((OWN_FLAGS | {"samples"}) - {"backbone", "weights"})):
            raise ConfigError(f"--set {clash[0]}=...: use --target, --seeds or --samples, or leave it out")
        _work(main, name, arguments, settings, source, target)
        return 0

    return run_command(command)


def _add_arguments(parser: argparse.ArgumentParser, source: str, target: str, seeds: int, samples: int | str | None) -> None:
    parser.add_argument(
        "--source", type=absolute_weights, default=None, metavar="S",
        help=f"data set to pretrain on, a file of weights, or a path with {BACKBONE} in it ({source})",
    )  # fmt: skip
    parser.add_argument("--target", type=absolute_task, default=None, metavar="T", help=f"task: a name, npz:FILE or folder:DIR ({target})")
    parser.add_argument("--seeds", type=positive, default=seeds, metavar="N", help=f"trainings of every arm, with seeds 0 to N-1 ({seeds})")
    parser.add_argument("--samples", default=samples, metavar="N", help=f"training images: a number, N/class or all ({samples or 'all'})")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE", help="change a field of every Config")
    add_resource_arguments(parser)
    add_storage_arguments(parser)
    add_place_arguments(parser)


def _work(
    main: Callable[[Lab], None], name: str, arguments: argparse.Namespace, settings: dict[str, Any], source: str | None, target: str,
    also: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make or take up the run's directory, start Ray, and let `main` work. also: what else belongs to the question."""
    places = places_of(arguments)
    samples = None if arguments.samples in (None, "all") else parse_field("samples", str(arguments.samples))
    resources = resources_of(arguments)
    folder = check_name(arguments.storage, arguments.name or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}", arguments.resume)
    banner: list[str] = []
    size = settings.get("size", Config.size)
    chosen_source = arguments.source or (source and stand_in(source, size, settings.get("backbone"), places, banner))
    chosen_target = arguments.target or stand_in(target, size, None, places, banner)
    open_task(chosen_target, size, places)  # what is wrong with it is said before anything starts
    console = screen()
    asked = {
        "experiment": name, "source": chosen_source, "target": chosen_target, "samples": samples,
        "seeds": arguments.seeds, "settings": settings, **(also or {}),
    }  # fmt: skip
    run = Run(folder, replace(places, run=str(folder), shelf=shelf_beside(folder)), resources, console, tuple(banner))
    with opened(folder, asked, arguments.resume), ExitStack() as ray:
        print_banner(console, banner)
        many = f"{arguments.seeds} seed{'s' * (arguments.seeds > 1)}"
        say(console, f"Run {run.name} in {folder}; source {chosen_source}, target {chosen_target}, {many}")
        arithmetic = f"arithmetic in {settings.get('precision', Config.precision)}, unless an arm sets another"
        say(console, f"  trainings: {resources.describe()}; {arithmetic}")
        try:
            main(Lab(run, chosen_source or "none", chosen_target, tuple(range(arguments.seeds)), samples, settings, ray))
        except KeyboardInterrupt:
            raise interrupted(run) from None
        except UserError as error:
            if not isinstance(error, Interrupted) and not arguments.resume and not any(folder.rglob("trial.json")):
                remove_tree(folder)  # nothing was trained: the mended command may have the name
            raise
        print_banner(console, banner)
    say(console, f"report  {folder / 'report.html'}")


def compare_command(argv: Sequence[str] | None = None) -> int:
    """`tlray compare`: every combination of named values under every seed; an exit status."""

    def command() -> int:
        parser = Parser(prog="tlray compare", description=compare_command.__doc__, epilog=field_help(OWN_FLAGS))
        add = parser.add_argument
        add("--task", required=True, dest="target", type=absolute_task, metavar="T", help="data set: a name, npz:FILE or folder:DIR")
        add("--backbone", default="resnet18", metavar="B", help="network (resnet18)")
        add("--weights", default="none", type=absolute_weights, metavar="W", help="none, imagenet, a file or a data set (none)")
        add("--across", nargs="+", required=True, metavar="FIELD=V1,V2", help="fields that vary; folds=K: K-fold cross-validation")
        add("--metrics", default=",".join(METRICS), metavar="M1,M2", help="test metrics, the first decides what is concluded")
        add("--seeds", type=positive, default=5, metavar="N", help="trainings of every arm, with seeds 0 to N-1 (5)")
        add("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE", help="change a field of every Config")
        add_resource_arguments(parser)
        add_storage_arguments(parser)
        add_place_arguments(parser)
        arguments = parser.parse_args(argv)
        settings = parse_settings(arguments.settings)
        if clash := sorted(settings.keys() & OWN_FLAGS):
            raise ConfigError(f"--set {clash[0]}=...: use --task, --backbone, --weights or --seeds, or name it in --across")
        settings |= {"backbone": arguments.backbone, "weights": arguments.weights}
        across = parse_across(arguments.across)
        metrics = arguments.metrics.split(",")
        if unknown := [each for each in metrics if each not in RESAMPLED]:
            raise ConfigError(f"--metrics: unknown {unknown[0]!r}{did_you_mean(unknown[0], RESAMPLED)}: choose from {', '.join(RESAMPLED)}")
        make_grid(Config(**{**settings, "task": arguments.target}), across, range(arguments.seeds))  # judged before anything is opened
        asked = {"across": across, "metrics": metrics}

        def main(lab: Lab) -> None:
            varied = Lab(lab.run, lab.source, lab.target, lab.seeds, None, {k: v for k, v in settings.items() if k not in across}, lab.ray)
            lab.report(varied.compare(lab.config(), across, Question(lab.run.name, " ".join(arguments.across), metrics)))

        _work(main, "compare", argparse.Namespace(**vars(arguments), source="none", samples=None), settings, None, arguments.target, asked)
        return 0

    return run_command(command)


def parse_across(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["lr=1e-3,1e-4", "folds=5"]` -> {"lr": [0.001, 0.0001], "folds": [5]}. Raises ConfigError for what is no field or no value of it."""
    across: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ConfigError(f"--across {text!r} is not of the form field=value,value")
        if name in across:
            raise ConfigError(f"--across {name} is named twice: list its values after one {name}=")
        path = {"task": absolute_task, "weights": absolute_weights}.get(name, str)
        across[name] = [parse_field(name, path(value)) for value in values.split(",")]
    return across


def stand_in(name: str, size: int, backbone: str | None, places: Places, banner: list[str]) -> str:
    """The default data set or weights `name`, or what takes its place where it cannot be had, with a line for the banner."""
    if name == "imagenet":
        reason = imagenet_available(backbone or "resnet50", places)
    else:
        reason = available(name.partition("?")[0].removesuffix("/autoencoder"), size, places)
    if reason is None or name not in STAND_INS:
        return name
    banner.append(f"{STAND_INS[name]} stands in for {name}, which cannot be had: {reason}")
    if STAND_INS[name].startswith("phantom") and PHANTOM_LINE not in banner:
        banner.insert(0, PHANTOM_LINE)
    return STAND_INS[name]


def first_line(doc: str | None) -> str:
    """The question that an experiment's docstring begins with."""
    return (doc or "").strip().splitlines()[0]


def weights_of(source: str, backbone: str) -> str:
    """--source for a backbone."""
    return absolute_weights(source.replace(BACKBONE, backbone))


def _print(run: Run, summary: dict[str, Any]) -> None:
    """The table of arms, the conclusion and the verdicts."""
    about = summary["comparison"]
    names = about["metrics"][:2]
    seeds = f"{len(about['seeds'])} seed{'s' * (len(about['seeds']) > 1)}"
    table = Table(title=f"{run.name}: means over {seeds}, 95 % intervals over trainings")
    for column in ("arm", f"validation {about['monitor']}", *(f"test {name}" for name in names), "s per epoch"):
        table.add_column(column, overflow="fold")
    for entry in about["arms"]:
        mark = " (chosen)" if entry["arm"] in about["chosen"].values() else ""
        figures = [_interval(entry["validation"]), *(_interval(entry["test"][name]) for name in names)]
        table.add_row(entry["arm"] + mark, *figures, f"{entry['cost']['epoch_seconds']['mean']:.2f}")
    run.console.print(table)
    say(run.console, about["conclusion"])
    for each in about["claims"]:
        say(run.console, f"{each['id']}: {each['claim']} - {each['verdict'].upper()} ({each['measured']})")


def _interval(figure: dict[str, Any]) -> str:
    if figure["mean"] is None or figure["mean"] != figure["mean"]:
        return "undefined"
    return f"{figure['mean']:.3f}" + ("" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]")

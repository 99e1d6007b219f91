"""The command line: `tlray train | tune | compare | report | evaluate | ...`. A user's mistake is one sentence and exit status 2."""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

from tlray.arguments import (
    FLAGS,
    Parser,
    absolute_task,
    absolute_weights,
    add_place_arguments,
    add_resource_arguments,
    add_storage_arguments,
    field_help,
    named_place,
    places_of,
    positive,
    positive_seconds,
    run_command,
)  # fmt: skip
from tlray.cache import Places
from tlray.config import Config, parse_settings
from tlray.errors import ConfigError, UserError
from tlray.registry import TASKS


def check_values(arguments: argparse.Namespace, tasks: Sequence[str], backbones: Sequence[str], flags: dict[str, str]) -> None:
    """Judge every name and value before torch is imported and any data is opened. Raises ConfigError with all that is wrong."""
    fixed = parse_settings(arguments.settings)
    for name in fixed:
        if name in flags:
            raise ConfigError(f"--set {name}=...: use {flags[name]}")
    given = {"size": arguments.size, "epochs": arguments.epochs, "monitor": arguments.monitor, "seed": arguments.seed}
    given = {name: value for name, value in given.items() if value is not None}
    for task, backbone in itertools.product(tasks, backbones):
        Config(task=task, backbone=backbone, weights=arguments.weights or "imagenet", **given, **fixed)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What searches and single trainings share."""
    add_place_arguments(parser)
    parser.add_argument("--size", type=int, default=None, metavar="PX", help="pixels on a side that the network sees (28; 224 with a GPU)")
    parser.add_argument("--epochs", type=positive, default=None, metavar="E", help="epochs per training (4; 6 on 8 cores, 20 with a GPU)")
    parser.add_argument(
        "--monitor", default="auroc", metavar="M", help="validation metric that decides; several joined by + are averaged (auroc)"
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE", help="fix a field of the Config")
    add_resource_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the draw, the weights and the searcher (0)")
    parser.add_argument(
        "--threshold-rule", default="youden", metavar="RULE", help="operating threshold: youden, or sensitivity@SPECIFICITY"
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write every trial's curves as TensorBoard event files")
    add_storage_arguments(parser)


def add_tune_arguments(parser: argparse.ArgumentParser) -> None:
    """What the main job takes."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        type=absolute_task,
        default=None,
        metavar="T",
        help="data sets: names, npz:FILE or folder:DIR (pneumoniamnist breastmnist)",
    )
    parser.add_argument("--backbones", nargs="+", default=None, metavar="B", help="networks (resnet50 mobilenet_v2)")
    parser.add_argument(
        "--weights",
        type=absolute_weights,
        default=None,
        metavar="W",
        help="none, imagenet, a file, or a data set to pretrain on (imagenet, if it can be had)",
    )
    parser.add_argument(
        "--trials", type=positive, default=None, metavar="N", help="trials per task and backbone (8; 12 on 8 cores, 30 with a GPU)"
    )
    parser.add_argument("--time-budget", type=positive_seconds, default=None, metavar="S", help="seconds for all trials")
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="train the winning configuration with N seeds for mean and interval"
    )
    add_run_arguments(parser)


def tune(argv: Sequence[str] | None = None, prog: str = "tune_backbones.py", description: str | None = None) -> int:
    """The main job, as experiments/tune_backbones.py and `tlray tune` run it; an exit status."""

    def command() -> int:
        parser = Parser(prog=prog, description=description, epilog=field_help())
        add_tune_arguments(parser)
        arguments = parser.parse_args(argv)
        check_values(arguments, arguments.tasks or [Config.task], arguments.backbones or [Config.backbone], FLAGS)
        from tlray.job import tune_backbones

        tune_backbones(arguments, places_of(arguments))
        return 0

    return run_command(command)


def _train(arguments: argparse.Namespace) -> int:
    check_values(arguments, [arguments.task], [arguments.backbone], FLAGS | {"task": "--task", "backbone": "--backbone"})
    from tlray.job import train_one

    train_one(arguments, places_of(arguments))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from tlray.report.page import write_report

    run = named_place(arguments.run)
    print(write_report(run))
    if arguments.tensorboard:
        from tlray.report.tensorboard import write_tensorboard

        print(f"tensorboard --logdir {write_tensorboard(run)}")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from tlray.deploy.model import load_model
    from tlray.deploy.predict import evaluate_task

    result = evaluate_task(load_model(named_place(arguments.model)), arguments.task, places_of(arguments), arguments.split)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return 0
    for note in result["notes"]:
        print(f"NOTE: {note}")
    print(f"{result['task']}, {result['split']} split, {result['images']} images; calibrated probabilities, threshold .5")
    for name, value in result["metrics"].items():
        print(f"  {name:18} {_with_interval(value)}")
    if result["at_threshold"]:
        print(f"at the model's operating threshold {_number(result['threshold'])}")
        for name, value in result["at_threshold"].items():
            print(f"  {name:18} {_with_interval(value)}")
    return 0


def _with_interval(value: dict[str, Any]) -> str:
    if value["value"] is None or value["value"] != value["value"]:
        return "undefined here"
    return f"{value['value']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]"


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ", ".join(f"{each:.3f}" for each in value)


def _predict(arguments: argparse.Namespace) -> int:
    from tlray.deploy.model import load_model
    from tlray.deploy.predict import predict_files

    answers = predict_files(load_model(named_place(arguments.model)), arguments.images)
    if arguments.json:
        print(json.dumps(answers, indent=2))
        return 0
    for answer in answers:
        print(f"{answer['file']}  {answer['class']}  {answer['probability']:.4f}{_decision(answer)}")
    return 0


def _decision(answer: dict[str, Any]) -> str:
    if "decision" not in answer:
        return ""
    called = answer["decision"] if isinstance(answer["decision"], str) else ", ".join(answer["decision"]) or "none"
    return f"  (called at the operating threshold {_number(answer['threshold'])}: {called})"


def _latent(arguments: argparse.Namespace) -> int:
    from tlray.inspecting import latent

    for model in arguments.models:
        named_place(model)
    return latent(arguments, places_of(arguments))


def _cache(arguments: argparse.Namespace) -> int:
    from tlray.inspecting import clear_cache, show_cache

    if arguments.action == "clear":
        return clear_cache(Places(), arguments.names)
    if arguments.names:
        raise UserError(f"tlray cache show: {arguments.names[0]!r} is one word too many (tlray cache clear deletes)")
    return show_cache(Places())


def _data(arguments: argparse.Namespace) -> int:
    from tlray.data.task import available, open_task

    places = places_of(arguments)
    if arguments.action == "list":
        for name in TASKS.names():
            print(name)
        return 0
    if not arguments.tasks:
        raise UserError(f"tlray data {arguments.action}: name at least one task (tlray data list shows them)")
    for spec in arguments.tasks:
        Config(task=spec, size=arguments.size)  # judges name and size
        if arguments.action == "check":
            print(f"{spec}: {available(spec, arguments.size, places) or 'can be had'}")
            continue
        task = open_task(spec, arguments.size, places)
        print(
            f"{task.name}: {task.kind}, {len(task.train)} / {len(task.val)} images to train / validate, classes {', '.join(task.classes)}"
        )
        print(json.dumps({"source": task.source, "audit": task.audit}, indent=2))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of `tlray`."""
    parser = Parser(prog="tlray", description="Transfer-learned image classifiers for small data sets, on Ray.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    train = commands.add_parser("train", help="train one configuration and deliver its model", epilog=field_help())
    train.add_argument("--task", required=True, type=absolute_task, help="data set: a name, npz:FILE or folder:DIR")
    train.add_argument("--backbone", default="resnet18", help="network")
    train.add_argument("--weights", default="none", type=absolute_weights, help="none, imagenet, a file, or a data set to pretrain on")
    add_run_arguments(train)
    train.set_defaults(handler=_train)
    commands.add_parser("tune", help="search the best configuration per task and backbone (tlray tune --help)", add_help=False)
    commands.add_parser("compare", help="train named values under several seeds (tlray compare --help)", add_help=False)
    report = commands.add_parser("report", help="build report.html from a run's directory")
    report.add_argument("run", metavar="RUN", help="the run's directory, or its URI in an object store")
    report.add_argument("--tensorboard", action="store_true", help="also write every trial's curves as event files")
    report.set_defaults(handler=_report)
    evaluate = commands.add_parser("evaluate", help="score a delivered model on a data set")
    evaluate.add_argument("model", metavar="MODEL", help="the model's folder")
    evaluate.add_argument("--task", required=True, type=absolute_task, help="data set: a name, npz:FILE or folder:DIR")
    evaluate.add_argument("--split", default="test", choices=("test", "val"), help="which split; opening test is written down")
    evaluate.set_defaults(handler=_evaluate)
    predict = commands.add_parser("predict", help="class and probability of image files")
    predict.add_argument("model", metavar="MODEL", help="the model's folder")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="PNG or JPEG files")
    predict.set_defaults(handler=_predict)
    latent = commands.add_parser("latent", help="draw the latent space of delivered models, and say how separable it is")
    latent.add_argument("models", nargs="+", metavar="MODEL", help="the models' folders")
    latent.add_argument("--task", required=True, type=absolute_task, help="data set: a name, npz:FILE or folder:DIR")
    latent.add_argument("--split", default="val", choices=("test", "val", "train"), help="which split (val); opening test is written down")
    latent.add_argument("--stage", nargs="+", default=["features"], metavar="NAME", help="stages, or features: below the head (features)")
    latent.add_argument("--perplexity", type=float, default=30.0, metavar="P", help="neighbours that t-SNE keeps close (30)")
    latent.add_argument("--seed", type=int, default=0, metavar="S", help="seed of t-SNE and of the drawn images (0)")
    latent.add_argument("--out", default="latent.svg", metavar="FILE.svg", help="where the picture goes (latent.svg)")
    latent.set_defaults(handler=_latent)
    for each in (evaluate, predict, latent):
        each.add_argument("--json", action="store_true", help="print JSON")
    cache = commands.add_parser("cache", help="show what lies in the cache, or clear parts of it")
    cache.add_argument("action", nargs="?", default="show", choices=("show", "clear"))
    cache.add_argument("names", nargs="*", metavar="NAME", help="features, tasks, pretrained, downloads, borrowed")
    cache.set_defaults(handler=_cache)
    data = commands.add_parser("data", help="list data sets, get them ready, check whether they can be had")
    data.add_argument("action", choices=("list", "get", "check"))
    data.add_argument("tasks", nargs="*", type=absolute_task, metavar="TASK")
    data.add_argument("--size", type=int, default=28, metavar="PX", help="pixels on a side")
    data.set_defaults(handler=_data)
    for each in (evaluate, latent, data):
        add_place_arguments(each)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`tlray ...`; an exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["tune"]:
        return tune(argv[1:], prog="tlray tune")
    if argv[:1] == ["compare"]:
        from tlray.experiment import compare_command

        return compare_command(argv[1:])

    def command() -> int:
        arguments = build_parser().parse_args(argv)
        return arguments.handler(arguments)

    return run_command(command)

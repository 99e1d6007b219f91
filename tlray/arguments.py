"""What the command lines of tlray and of its experiments share: parsing, paths made absolute, errors in one sentence."""

import argparse
import contextlib
import io
import logging
import math
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tlray.cache import Places
from tlray.cluster.interrupts import STATUS as INTERRUPTED
from tlray.cluster.interrupts import handled
from tlray.config import FIELDS, PATH_SCHEMES
from tlray.errors import Interrupted, UserError, refusal, unwritable
from tlray.registry import TASKS
from tlray.storage import AnyPath, RemotePath, place
from tlray.training.feature_files import budget

FLAGS = {"task": "--tasks", "backbone": "--backbones", "weights": "--weights", "size": "--size", "epochs": "--epochs",
         "monitor": "--monitor", "seed": "--seed", "threads": "--cpus-per-trial"}  # fmt: skip
"""Fields of the Config that have a flag, which `--set` would contradict."""


class Parser(argparse.ArgumentParser):
    """argparse with the one-sentence errors of the rest, and without prefixes of flags (a typo must not become another flag)."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")


def field_help(hidden: Collection[str] = (*FLAGS, "objective")) -> str:
    """The fields of a Config that `--set` takes, each with its line; not those that a command settles in other ways."""
    lines = [f"  {name:16} {each.metadata['help']} ({each.default})" for name, each in FIELDS.items() if name not in hidden]
    return "\n".join(["fields for --set FIELD=VALUE:", *lines])


MOST = 1_000_000
"""Trials, seeds or epochs beyond which a number is a slip of the hand."""


def positive(text: str) -> int:
    """A whole number of at least 1 and at most MOST."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is out of range: at least 1, at most {MOST:,}")
    return value


def positive_seconds(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not math.isfinite(value) or value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is out of range: above 0")
    return value


def absolute(path: str) -> Path:
    """A path made absolute, since trials may run elsewhere. Raises UserError when it is none."""
    try:
        path.encode()
        return Path(path).expanduser().resolve()
    except (RuntimeError, ValueError) as error:  # a user that is not there, links in a circle, bytes that are no UTF-8
        raise UserError(f"{path!r} is no path ({error}): correct it") from None


def absolute_task(spec: str) -> str:
    """A task given by path with its path made absolute."""
    scheme, colon, path = spec.partition(":")
    return f"{scheme}:{absolute(path)}" if scheme + colon in PATH_SCHEMES and path else spec


def absolute_weights(weights: str) -> str:
    """Weights given by path with the path made absolute."""
    if weights in ("none", "imagenet") or weights in TASKS or not os.path.isfile(path := absolute(weights)):
        return absolute_task(weights)
    return str(path)


def named_place(text: str) -> AnyPath:
    """What a command is to read, a path or a URI. Raises StorageError at once where its store does not answer: the address may be wrong."""
    found = place(text)
    if isinstance(found, RemotePath):
        found.knock()
    return found


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --offline."""
    parser.add_argument(
        "--data", default=os.environ.get("TLRAY_DATA"), metavar="DIR", help="folder with data files, searched before the cache"
    )
    parser.add_argument("--offline", action="store_true", help="never open a socket to look for data or weights")


def add_resource_arguments(parser: argparse.ArgumentParser) -> None:
    """What each training gets, and how many run at once."""
    parser.add_argument(
        "--workers-per-trial", type=int, default=0, metavar="N", help="0: train inside the trial's process; N: a TorchTrainer"
    )
    parser.add_argument(
        "--elastic", action="store_true", help="let a TorchTrainer that lost machines go on with fewer workers, until there is room again"
    )
    parser.add_argument("--concurrent", type=positive, default=None, metavar="N", help="trials at once (what fits)")
    parser.add_argument("--cpus-per-trial", type=positive, default=None, metavar="C", help="CPUs of each process that trains (shared out)")
    parser.add_argument(
        "--gpus-per-trial", type=float, default=None, metavar="G", help="GPUs of each process that trains; .25: four share one"
    )


def add_storage_arguments(parser: argparse.ArgumentParser) -> None:
    """--storage, --name, --resume."""
    parser.add_argument(
        "--storage",
        default="runs",
        metavar="PATH",
        help="folder, or URI such as s3://BUCKET/FOLDER, in which the run's directory is made (runs)",
    )
    parser.add_argument("--name", default=None, metavar="RUN", help="name of the run (date and time)")
    parser.add_argument("--resume", action="store_true", help="take up an interrupted run of that name")


def places_of(arguments: argparse.Namespace) -> Places:
    """Places with absolute paths, since trials may run elsewhere. Raises UserError when --data is no folder or the cache has no budget."""
    budget()
    data = arguments.data
    if data is not None and not os.path.isdir(absolute(data)):
        raise UserError(f"--data {data} is no folder: check the path, or leave it out")
    return Places(data=str(absolute(data)) if data else None, offline=arguments.offline)


def run_command(command: Callable[[], int]) -> int:
    """Run a command; a user's mistake becomes one sentence on standard error and status 2, Ctrl-C or SIGTERM status 130."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be of the terminal's letters
    try:
        with handled(last=True):
            status = command()
        sys.stdout.flush()  # a closed pipe is noticed here, not at the interpreter's end
        return status
    except UserError as error:
        _complain(error)
        return INTERRUPTED if isinstance(error, Interrupted) else 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return 0
    except OSError as error:
        if not unwritable(error):
            raise
        _complain(refusal(error))
        return 2
    finally:
        _let_go()


def _complain(what: object) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more; the status says it too
        print(f"tlray: {' '.join(str(what).split())}", file=sys.stderr)


def _let_go() -> None:
    """Drop what nobody takes: Python would find it when it ends, and change the exit status."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())

"""Commands that look into delivered models and into the cache, as `tlray.cli` calls them: they print and write what they found."""

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlray.arguments import absolute
from tlray.cache import Places
from tlray.errors import ConfigError
from tlray.registry import did_you_mean


def latent(arguments: argparse.Namespace, places: Places) -> int:
    """`tlray latent`: write the picture, print its numbers; an exit status. Raises UserError for what the user can mend."""
    out = svg_file(arguments.out)
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed {arguments.seed} is out of range: at least 0, at most {2**32 - 1}")
    from tlray.deploy.latent import latent_of_models
    from tlray.report.style import standalone

    svg, numbers = latent_of_models(
        arguments.models, arguments.task, places, arguments.split, arguments.stage, arguments.perplexity, arguments.seed
    )
    write_svg(out, standalone(svg))
    if arguments.json:
        print(json.dumps({"picture": str(out), "numbers": numbers}, indent=2))
        return 0
    first = numbers[0]
    print(f"{first['images']} images of the {arguments.split} split; guessing the commonest label gets {first['majority']:.3f}")
    wide = [max(len(row[name]) for row in numbers) for name in ("view", "stage")]
    heading = ("model", "stage", "space", "silhouette", f"{first['neighbours']}-NN accuracy", "variance")
    print(f"{heading[0]:{wide[0]}}  {heading[1]:{wide[1]}}  {heading[2]:8}  {heading[3]}  {heading[4]}  {heading[5]}")
    for row in numbers:
        print(f"{row['view']:{wide[0]}}  {row['stage']:{wide[1]}}  {row['space']:8}  {_figures(row, len(heading[4]))}".rstrip())
    print(out)
    return 0


def _figures(row: dict[str, Any], width: int) -> str:
    shares = " + ".join(f"{share:.0%}" for share in row["explained"] or ())
    return f"{row['silhouette']:10.3f}  {row['knn_accuracy']:{width}.3f}  {shares}"


def svg_file(text: str) -> Path:
    """The SVG file that a command is to write. Raises ConfigError when it cannot be one."""
    absolute(text)  # refuses what is no path
    path = Path(text).expanduser()
    if path.suffix.lower() != ".svg":
        raise ConfigError(f"--out {text}: the picture is an SVG, name a file that ends in .svg")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {text}: there is no folder {path.parent}, make it first")
    if path.is_dir():
        raise ConfigError(f"--out {text} is a folder: name a file in it")
    return path


def write_svg(path: Path, svg: str) -> None:
    """Write a picture. Raises ConfigError when the file cannot be written."""
    try:
        path.write_text(svg, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written ({error.strerror}): name another file") from None


KEPT = {
    "features": "frozen features, made anew when they are needed",
    "tasks": "prepared images",
    "pretrained": "weights that tlray has made; making them anew takes training",
    "downloads": "files from data hubs; getting them anew takes a network",
    "borrowed": "files of weights that the driver of a run has lent to this node",
}
"""Folders of the cache and what clearing them costs."""


def show_cache(places: Places) -> int:
    """`tlray cache`: what lies in the cache, and how large it is; an exit status."""
    from tlray.training.feature_files import RECORD, budget, readers, sizes

    _check_cache(places)
    features, room = Path(places.cache, "features"), budget()
    held = {key: found for key in sizes(features) if (found := readers(features / key))}
    for name, what in KEPT.items():
        folder = Path(places.cache, name)
        kept = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != RECORD] if folder.is_dir() else []
        print(f"{name:10}  {_bytes(folder) / 1e6:10,.1f} MB in {len(kept)} entries  {what}")
    print(f"features may take {room / 1e6:,.0f} MB (TLRAY_FEATURES_GIB); {len(held)} of them are pinned by unfinished runs")
    for run in sorted(set().union(*held.values())):
        print(f"  {run} is unfinished: resume it, or delete it, and its features can go")
    print(places.cache)
    return 0


def _check_cache(places: Places) -> None:
    cache = Path(places.cache)
    if cache.exists() and not cache.is_dir():
        raise ConfigError(f"the cache {cache} is no folder: name another one in TLRAY_CACHE")


def _bytes(folder: Path) -> int:
    """Of all files below a folder, in which others may be at work."""
    found = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found += os.lstat(os.path.join(at, name)).st_size
    return found


def _unless_gone(_: object, __: str, raised: tuple[Any, BaseException, Any]) -> None:
    """For rmtree: what another process has deleted or renamed meanwhile is no error, and the rest goes."""
    if not isinstance(raised[1], FileNotFoundError):
        raise raised[1]


def _delete(folder: Path) -> None:
    """Delete a folder, and what killed processes have left of it; renamed before, so that nobody finds half of it."""
    if folder.is_symlink():
        raise OSError("it is a link")
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, folder.with_name(f".{folder.name}.going-{os.getpid()}"))
    for going in folder.parent.glob(f".{folder.name}.going-*"):
        shutil.rmtree(going, onerror=_unless_gone)


def clear_cache(places: Places, names: Sequence[str]) -> int:
    """`tlray cache clear NAME...`: delete folders of the cache, features but for the pinned ones; an exit status."""
    from tlray.training.feature_files import evict, sizes

    if unknown := [name for name in names if name not in KEPT]:
        raise ConfigError(f"tlray cache clear: unknown {unknown[0]!r}{did_you_mean(unknown[0], KEPT)}: choose from {', '.join(KEPT)}")
    if not names:
        raise ConfigError(f"tlray cache clear: name what is to be deleted: {', '.join(KEPT)}")
    _check_cache(places)
    for name in dict.fromkeys(names):
        folder = Path(places.cache, name)
        if name == "features":
            print(f"features: {len(evict(folder, 0.0))} deleted, {len(sizes(folder))} kept for unfinished runs")
            continue
        try:
            _delete(folder)
        except OSError as error:
            raise ConfigError(f"tlray cache clear {name}: {folder} cannot be deleted ({error.strerror or error})") from None
        print(f"{name}: deleted")
    return 0

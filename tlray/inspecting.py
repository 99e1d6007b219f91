"""Commands that look into delivered models, as `tlray.cli` calls them: they print and write what they found."""

import argparse
import json
from pathlib import Path
from typing import Any

from tlray.cache import Places
from tlray.errors import ConfigError


def latent(arguments: argparse.Namespace, places: Places) -> int:
    """`tlray latent`: write the picture, print its numbers; an exit status. Raises UserError for what the user can mend."""
    out = svg_file(arguments.out)
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

"""Pictures of what experiments vary: lines with bands, a square of sources and targets, augmented images; each returns inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from tlray.registry import AUGMENTS
from tlray.report.style import BLUE, COLOURS, INK, Picture, legend_below

MARKERS = ("o", "s", "^", "D", "v", "P")


def lines(title: str, series: Mapping[str, Sequence[tuple[float, dict[str, Any]]]], xlabel: str, ylabel: str, log: bool = True) -> str:
    """A line per series with its interval as a band.

    series: name -> (x, {"mean", "low", "high"}) in the order of x. log: x on a scale of powers of two, ticks at the values themselves.
    """
    with Picture(title, height=4.0) as picture:
        axes = picture.axes
        for (name, points), colour, marker in zip(series.items(), COLOURS, MARKERS, strict=False):
            x = [each[0] for each in points]
            mean, low, high = (
                np.array([np.nan if each[1][key] is None else each[1][key] for each in points]) for key in ("mean", "low", "high")
            )
            axes.plot(x, mean, color=colour, marker=marker, ms=4, label=name)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        ticks = sorted({each[0] for points in series.values() for each in points})
        if log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{each:g}" for each in ticks])
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        legend_below(picture, columns=min(3, len(series)))
    return picture.svg


def square(
    title: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], dict[str, Any]], axis: tuple[str, str]
) -> str:  # fmt: skip
    """A table of means with intervals, shaded by value.

    cells: (row, column) -> {"mean", "low", "high"}. axis: titles of columns and rows.
    """
    with Picture(title, width=1.6 + 1.7 * len(columns), height=1.2 + 1.0 * len(rows)) as picture:
        axes = picture.axes
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                each = cells[row, column]
                axes.add_patch(Rectangle((j - 0.48, i - 0.48), 0.96, 0.96, facecolor=BLUE, alpha=0.08 + 0.5 * each["mean"], lw=0))
                interval = "" if each["low"] is None else f"\n{each['low']:.3f} to {each['high']:.3f}"
                axes.text(j, i, f"{each['mean']:.3f}{interval}", ha="center", va="center", color=INK)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(title=title, xlabel=axis[0], ylabel=axis[1], xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return picture.svg


def augmented(title: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], names: Sequence[str], seed: int = 0) -> str:
    """What each augmentation makes of the same images: a row an augmentation, `none` first; soft labels under mixed images.

    Args:
        images: uint8 [N, C, H, W], C in {1, 3}: about eight, which are each other's partners.
        labels: int [N].
        names: of registered augmentations.
    """
    rows, count = ["none", *(name for name in names if name != "none")], len(images)
    pixels, targets = torch.from_numpy(np.array(images)).float(), torch.eye(len(classes))[torch.from_numpy(np.array(labels).reshape(-1))]
    height = 0.3 + 1.02 * len(rows)
    with Picture(title, width=0.9 + 0.8 * count, height=height, rows=len(rows), columns=count, squeeze=False) as picture:
        for row, name in enumerate(rows):
            changed, soft = AUGMENTS[name](pixels, targets, torch.Generator().manual_seed(seed))
            for column in range(count):
                axes = picture.axes[row][column]
                image = changed[column].clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
                axes.imshow(image.repeat(3, axis=2) if image.shape[2] == 1 else image, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(visible=False)
                axes.set_xlabel(_soft(soft[column].tolist(), classes), fontsize=5.5, labelpad=2)
                if column == 0:
                    axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return picture.svg


def _soft(target: Sequence[float], classes: Sequence[str]) -> str:
    """`pneumonia`, or `.62 normal` over `.38 pneumonia`."""
    there = [(share, name) for share, name in zip(target, classes, strict=True) if share > 0.005]
    return there[0][1][:14] if len(there) == 1 else "\n".join(f"{share:.2f}".lstrip("0") + f" {name[:12]}" for share, name in there)

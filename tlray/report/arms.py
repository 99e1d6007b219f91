"""What the page shows of a comparison: its pictures (inline SVG), and the summary's entries made ready for the template."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tlray.errors import RunError
from tlray.report import diagnosis
from tlray.report.cells import audit_lines
from tlray.report.plots import searched, trial_table
from tlray.report.style import BLUE, COLOURS, GREEN, ORANGE, PAPER, VERMILION, Picture, Table, legend_below, nice
from tlray.storage import AnyPath

FEW = 8
"""Arms up to which every one has its own line in one picture; above, its own panel."""
PANELS = 24
"""Arms that have a panel at most: the best on validation."""
COLUMNS = 5
"""Test metrics in the table of arms; the others stand below, in the table of every figure."""
DASHES = ("-", (0, (5, 2)))
CURVES = {"loss": ("train_loss", "val_loss"), "accuracy": ("train_accuracy", "val_accuracy")}
ARM = ("validation", "train", "val", "test", "test_noise", "at_threshold", "gap", "deviation", "cost")
"""Figures of an arm that an unfinished run may lack."""


def labels(names: Sequence[str], letters: int = 30, lines: int = 2) -> list[str]:
    """Names of arms beside an axis: without the words that all share, broken between words, cut in the middle, and still distinct."""
    words = [name.split(" ") for name in names]
    shared = set(words[0]).intersection(*words[1:]) if len(names) > 1 else set()
    own = [" ".join(word for word in each if word not in shared) for each in words]
    if not all(own) or len(set(own)) < len(own):
        own = list(names)
    found = [_broken(name, letters, lines) for name in own]
    return found if len(set(found)) == len(found) else [_broken(f"{number}: {name}", letters, lines) for number, name in enumerate(own, 1)]


def _broken(name: str, letters: int, lines: int) -> str:
    room = letters * lines
    if len(name) > room:
        name = f"{name[: room // 2 - 1]}…{name[len(name) - room // 2 + 1 :]}"
    broken, current = [], ""
    for word in name.split(" "):
        joined = f"{current} {word}".strip()
        if current and len(joined) > letters and len(broken) < lines - 1:
            broken.append(current)
            joined = word
        current = joined
    return "\n".join([*broken, current])


def forest(title: str, arms: Sequence[Mapping[str, Any]], metric: str, chosen: str | None) -> str:
    """Mean test metric of every arm with both intervals: over trainings (square) and over test images (circle), the best on top.

    Args:
        arms: entries of the summary with `test` and `test_noise`.
        chosen: name of the arm that validation chose; a star stands at its mean.
    """
    arms = sorted(arms, key=lambda arm: arm["test"][metric]["mean"])
    names = labels([arm["arm"] for arm in arms], 38)
    with Picture(title, width=8.6, height=max(1.9, 0.42 * len(arms) + 1.2)) as picture:
        axes = picture.axes
        for kind, colour, marker, shift, name in (
            ("test", BLUE, "s", 0.13, "training noise"), ("test_noise", ORANGE, "o", -0.13, "test-image noise"),
        ):  # fmt: skip
            places = np.arange(len(arms)) + shift
            figures = [arm[kind].get(metric) or {} for arm in arms]
            middle = np.array([each.get("mean", each.get("value", np.nan)) for each in figures], float)
            low, high = (np.array([each.get(edge, np.nan) for each in figures], float) for edge in ("low", "high"))
            what = next((each["interval"] for each in figures if each.get("low") is not None), "no interval from one training")
            axes.hlines(places, low, high, color=colour, lw=2.4)
            axes.plot(middle, places, color=colour, marker=marker, ms=6, mec=PAPER, mew=0.8, ls="none", label=f"{name}: {what}")
        for place, arm in enumerate(arms):
            if arm["arm"] == chosen:
                axes.plot(
                    arm["test"][metric]["mean"], place + 0.13, marker="*", ms=13, color=VERMILION, mec=PAPER, mew=0.8, ls="none",
                    label="chosen on validation, before the test split was opened",
                )  # fmt: skip
        axes.set_yticks(range(len(arms)), names)
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.set(title=f"Test {nice(metric)} of every arm", xlabel=f"test {nice(metric)}")
        legend_below(picture, columns=1)
    return picture.svg


def _bands(rows: Table, column: str) -> Table:
    """Mean, lowest and highest of a column over the trainings that reached each epoch; index epoch."""
    known = rows[rows["epoch"] > 0].dropna(subset=[column])
    return known.groupby("epoch")[column].agg(["mean", "min", "max"]).sort_index()


def _line(axes: Axes, rows: Table, column: str, colour: str, dash: Any = "-", name: str | None = None) -> None:
    band = _bands(rows, column)
    axes.plot(band.index, band["mean"], color=colour, ls=dash, lw=1.7, label=name, marker="o" if len(band) == 1 else None, ms=4)
    axes.fill_between(band.index, band["min"], band["max"], color=colour, alpha=0.15, lw=0)


def curves_together(title: str, rows: Table, names: Sequence[str]) -> str:
    """Loss and accuracy on training and validation images over epochs, a line an arm: mean over its trainings, band of all of them."""
    shown = labels(names, 90, 1)
    with Picture(title, width=10.4, height=6.2 + 0.16 * len(names), rows=2, columns=2, sharex=True, sharey="row") as picture:
        for row, (what, columns) in enumerate(CURVES.items()):
            for axes, column, split in zip(picture.axes[row], columns, ("training", "validation"), strict=True):
                for index, name in enumerate(names):
                    legend = shown[index] if row == 0 and split == "training" else None
                    _line(axes, rows[rows["arm"] == name], column, COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS)], legend)
                axes.set(title=f"{split} {what}", xlabel="epoch" if row else "")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(picture, columns=1 if max(map(len, shown)) > 42 else 2)
    return picture.svg


def curves_apart(title: str, rows: Table, names: Sequence[str], what: str) -> str:
    """Loss or accuracy (`what`) over epochs, a panel an arm: mean over its trainings, band of all of them."""
    columns, shown = min(4, len(names)), labels(names, 30)
    high = -(-len(names) // columns)
    with Picture(title, 2.7 * columns, 1.95 * high + 0.6, high, columns, sharex=True, sharey=True, squeeze=False) as picture:
        for index, axes in enumerate(picture.axes.flat):
            if index >= len(names):
                axes.set_visible(False)
                continue
            own = rows[rows["arm"] == names[index]]
            for column, colour, split in zip(CURVES[what], (GREEN, BLUE), ("training", "validation"), strict=True):
                _line(axes, own, column, colour, name=split if index == 0 else None)
            axes.set_title(shown[index], fontsize=8, fontweight="normal")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if index % columns == 0:
                axes.set_ylabel(what)
            if index + columns >= len(names):
                axes.set_xlabel("epoch")
                axes.tick_params(labelbottom=True)
        legend_below(picture)
    return picture.svg


def comparison_view(run: AnyPath, summary: Mapping[str, Any], rows: Table) -> dict[str, Any]:
    """Everything that the template needs of a comparison.

    Args:
        run: the run directory.
        summary: summary.json, checked.
        rows: results.parquet, complete.
    """
    about = summary.get("comparison") or {
        "title": summary["run"], "question": "", "monitor": "", "minimise": False, "metrics": [], "seeds": [], "folds": None,
        "tasks": {}, "chosen": {}, "arms": [],
    }  # fmt: skip
    arms = [arm | {name: arm.get(name) or {} for name in ARM} | {"chosen": _is_chosen(arm, about)} for arm in about["arms"]]
    differing = [name for name in (arms[0]["config"] if arms else {}) if len({repr(arm["config"].get(name)) for arm in arms}) > 1]
    arms.sort(key=lambda arm: list(about["tasks"]).index(arm["task"]) if arm["task"] in about["tasks"] else math.inf)
    compared, metrics = about.get("comparisons") or [], about["metrics"]
    trainings, columns = _trainings(rows, about["minimise"])
    return dict(about) | {
        "arms": arms,
        "differing": differing,
        "winners": [arm for arm in arms if arm["chosen"]],
        "shown": metrics[:COLUMNS],
        "figures": list(dict.fromkeys([*metrics, *(name for arm in arms for name in arm["test"] or arm["val"])])),
        "tested": any(arm["test"] for arm in arms),
        "decided": any(arm["at_threshold"] for arm in arms),
        "intervals": sorted({each["interval"] for arm in arms for part in ("test", "test_noise") for each in arm[part].values()}),
        "conclusion": about.get("conclusion") or "",
        "families": [(name, found) for name in metrics if (found := [each for each in compared if each["metric"] == name])],
        "claims": about.get("claims") or [],
        "views": [_task_view(name, about, arms, rows) for name in about["tasks"]],
        "extras": [_extra(run, entry) for entry in summary.get("pictures") or []],
        "trainings": trainings,
        "columns": columns,
        "phantom": any((task.get("data") or {}).get("phantom") for task in about["tasks"].values()),
    }


def _is_chosen(arm: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    return about["chosen"].get(arm["task"]) == arm["arm"]


def _task_view(name: str, about: Mapping[str, Any], arms: Sequence[dict[str, Any]], rows: Table) -> dict[str, Any]:
    """Pictures and audit of one task."""
    task, metrics, monitor = about["tasks"][name], about["metrics"], about["monitor"]
    sign = 1 if about["minimise"] else -1
    own = [arm for arm in arms if arm["task"] == name]
    pictures = dict.fromkeys(("forest", "curves", *CURVES, "balance"), "")
    measured = [arm for arm in own if metrics and metrics[0] in arm["test"]]
    if measured:
        pictures["forest"] = forest(f"{name}: test {nice(metrics[0])} of every arm", measured, metrics[0], about["chosen"].get(name))
    trained = [arm["arm"] for arm in own if (rows["arm"].eq(arm["arm"]) & rows["epoch"].gt(0)).any()]
    if not rows["epoch"].gt(1).any():
        trained = []  # a curve of one epoch is a dot
    if len(trained) > FEW:
        means = {arm["arm"]: sign * arm["validation"].get("mean", math.inf) for arm in own}
        best = set(sorted(trained, key=lambda arm: (math.isnan(means[arm]), means[arm]))[:PANELS])
        drawn = [arm for arm in trained if arm in best]
        pictures |= {what: curves_apart(f"{name}: {what} of every arm", rows, drawn, what) for what in CURVES}
    elif trained:
        pictures["curves"] = curves_together(f"{name}: curves of every arm", rows, trained)
    audit = task.get("audit") or {}
    if audit.get("classes"):
        pictures["balance"] = diagnosis.class_balance(f"{name}: class balance", audit["classes"], audit.get("images"))
    images = task.get("images_test") or (audit.get("images") or {}).get("test")
    return {
        "name": name, "monitor": monitor, "task": task, "pictures": pictures, "images_test": images,
        "undrawn": max(0, len(trained) - PANELS),        "audit_lines": audit_lines(audit), "phantom": bool(task["data"].get("phantom")),
    }  # fmt: skip


def _extra(run: AnyPath, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A picture that the experiment drew. Raises RunError when its file is missing, outside the run or no inline SVG."""
    path = run / entry["file"]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): remove it from summary.json's pictures or draw it anew") from error
    inside = run.resolve().parts
    if path.resolve().parts[: len(inside)] != inside or "<svg" not in text or "<script" in text.lower():
        raise RunError(f"{path} is no picture of this run as tlray draws them: remove it from summary.json's pictures or draw it anew")
    return {"svg": text[text.index("<svg") :], "title": entry["title"], "caption": entry["caption"]}


def _trainings(rows: Table, minimise: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """One entry per training, in order, and the Config fields that differ between them."""
    found = [
        trial_table(part, minimise).join(part.groupby("trial")["arm"].first(), on="trial") for _, part in rows.groupby("cell", sort=False)
    ]
    if not found:
        return [], []
    table = pd.concat(found, ignore_index=True)
    return table.to_dict("records"), [*(["seed"] if "config/seed" in table else []), *searched(table)]

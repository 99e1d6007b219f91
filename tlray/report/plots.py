"""Pictures of a search: learning curves, losses, what each knob did, which knob mattered; each function returns inline SVG.

`rows` is the part of `results.parquet` that belongs to one cell; `trials` is `trial_table(rows, minimise)`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from tlray.report.style import BLUE, GREEN, MUTED, PAPER, VERMILION, Picture, Table, legend_below, nice, short

LOG_KNOBS = ("lr", "weight_decay")
"""Knobs that are drawn, and whose importance is reckoned, on a log axis."""


def trial_table(rows: Table, minimise: bool) -> Table:
    """One row per trial, in order of number: status, reason, epochs, seconds, best, best_epoch and its `config/*`."""
    columns = [name for name in rows.columns if name.startswith("config/")]
    trials = []
    for number, group in rows.sort_values("epoch").groupby("trial"):
        values, epochs = np.asarray(group["monitor"], np.float64), np.asarray(group["epoch"])
        known = np.isfinite(values) & (epochs > 0)
        at = int(np.argmin(np.where(known, values if minimise else -values, np.inf)))
        last = group.iloc[-1]
        times = int(last.get("lost", 0))
        again = [f"taken up again after a lost process{f', {times} times' * (times > 1)}"] if times else []
        row = {
            "trial": number, "status": last["status"], "reason": "; ".join(filter(None, [last["reason"], *again])),
            "epochs": int((epochs > 0).sum()), "seconds": float(group["seconds"].sum()), "best": float(values[at]) if known[at] else np.nan,
            "best_epoch": int(epochs[at]) if known[at] else 0,
        }  # fmt: skip
        trials.append(row | {name: last[name] for name in columns})
    table = pd.DataFrame(trials, columns=["trial", "status", "reason", "epochs", "seconds", "best", "best_epoch", *columns])
    return table.astype({"trial": int, "epochs": int, "seconds": float, "best": float, "best_epoch": int})  # also without a row


def searched(trials: Table) -> list[str]:
    """Names of the Config fields that differ between trials (seeds apart), in the order of the columns."""
    names = [name for name in trials.columns if name.startswith("config/") and name != "config/seed"]
    return [name.removeprefix("config/") for name in names if trials[name].map(str).nunique() > 1]


def is_log(knob: str, values: np.ndarray) -> bool:
    """Whether a knob's numbers belong on a log axis; a zero among them forbids it."""
    return knob in LOG_KNOBS and bool((values > 0).all())


def learning_curves(title: str, rows: Table, monitor: str, winner: dict[str, Any]) -> str:
    """The monitor on validation over epochs, every trial; the winner's curve and its chosen epoch stand out."""
    with Picture(title) as picture:
        axes = picture.axes
        seen = set()
        for number, group in rows.sort_values("epoch").groupby("trial"):
            if number == winner["trial"]:
                continue
            whole = group["status"].iloc[-1] == "finished"
            label = "finished" if whole else "stopped early or failed"
            axes.plot(
                group["epoch"], group["monitor"], color=MUTED, alpha=0.75 if whole else 0.35, lw=1.1,
                ls="-" if whole else (0, (3, 2)), label=None if label in seen else label,
                marker="o" if len(group) == 1 else None, ms=2.5,
            )  # fmt: skip
            seen.add(label)
        best = rows[rows["trial"] == winner["trial"]].sort_values("epoch")
        axes.plot(best["epoch"], best["monitor"], color=BLUE, lw=2.2, label=f"winner: trial {winner['trial']}")
        axes.plot(
            winner["epoch"], winner["monitor"], marker="*", ms=13, color=VERMILION, mec=PAPER, mew=0.8, ls="none",
            label=f"delivered: epoch {winner['epoch']}",
        )  # fmt: skip
        axes.set(title="Learning curves of all trials", xlabel="epoch", ylabel=f"validation {nice(monitor)}")
        _epochs(axes, rows["epoch"])
        legend_below(picture)
    return picture.svg


def loss_curves(title: str, rows: Table, winner: dict[str, Any]) -> str:
    """Training and validation loss of the winner over epochs, with the boundaries of its phases."""
    best = rows[rows["trial"] == winner["trial"]].sort_values("epoch")
    with Picture(title) as picture:
        axes = picture.axes
        axes.plot(best["epoch"], best["train_loss"], color=GREEN, marker="o", ms=3, label="training")
        axes.plot(best["epoch"], best["val_loss"], color=BLUE, marker="s", ms=3, label="validation")
        axes.axvline(winner["epoch"], color=VERMILION, lw=1.2, label=f"delivered: epoch {winner['epoch']}")
        starts = best["epoch"][best["phase"].diff() > 0]
        for index, start in enumerate(starts):
            axes.axvline(start - 0.5, color=MUTED, lw=1, ls=":", label="more stages train" if index == 0 else None)
        axes.set(title="Loss of the winning training", xlabel="epoch", ylabel="loss")
        _epochs(axes, best["epoch"])
        legend_below(picture)
    return picture.svg


def importance_bars(title: str, importances: dict[str, float], trials: int) -> str:
    """Share of the monitor's variation that each searched knob explains, largest on top."""
    names = sorted(importances, key=lambda name: importances[name])
    with Picture(title, height=max(1.8, 0.32 * len(names) + 0.9)) as picture:
        axes = picture.axes
        bars = axes.barh(names, [importances[name] for name in names], color=BLUE, height=0.62)
        axes.bar_label(bars, [f"{importances[name]:.2f}" for name in names], padding=4, fontsize=8)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set(title=f"Which knob mattered ({trials} finished trials)", xlabel="share of the variation explained")
        axes.set_xlim(0, 1.18 * max(importances.values()))
    return picture.svg


def slices(title: str, trials: Table, knobs: Sequence[str], monitor: str, winner: int) -> str:
    """Best validation monitor of every trial against each searched knob, one panel a knob."""
    columns = min(4, len(knobs))
    rows = -(-len(knobs) // columns)
    with Picture(title, width=2.6 * columns, height=2.35 * rows, rows=rows, columns=columns, sharey=True, squeeze=False) as picture:
        for index, axes in enumerate(picture.axes.flat):
            if index >= len(knobs):
                axes.set_visible(False)
                continue
            _slice(axes, trials, knobs[index], winner)
            if index % columns == 0:
                axes.set_ylabel(f"best {nice(monitor)}")
    return picture.svg


def _slice(axes: Axes, trials: Table, knob: str, winner: int) -> None:
    values = trials[f"config/{knob}"]
    numbers: Table = pd.to_numeric(values, errors="coerce")
    whole = (trials["status"] == "finished").to_numpy()
    if numbers.notna().all() and numbers.nunique() > 3:
        x = numbers.to_numpy(np.float64)
        if is_log(knob, x):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
    else:
        names = sorted(values.map(str).unique(), key=lambda name: (len(name), name) if _is_number(name) else (99, name))
        x = values.map(str).map(names.index).to_numpy(np.float64)
        x = x + np.linspace(-0.12, 0.12, len(x)) * (len(x) > 1)
        slanted = len(names) > 3 or max(map(len, names)) > 6
        axes.set_xticks(range(len(names)), [short(name) for name in names], rotation=30 * slanted, ha="right" if slanted else "center")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.grid(axis="x", visible=False)
    y = trials["best"].to_numpy(np.float64)
    axes.scatter(x[whole], y[whole], s=22, color=BLUE, alpha=0.85, lw=0)
    axes.scatter(x[~whole], y[~whole], s=18, facecolor="none", edgecolor=MUTED, lw=1)
    best = (trials["trial"] == winner).to_numpy()
    axes.scatter(x[best], y[best], marker="*", s=120, color=VERMILION, edgecolor=PAPER, lw=0.7, zorder=3)
    axes.set_title(knob, fontsize=9)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _epochs(axes: Axes, epochs: Table) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.6, float(epochs.max()) + 0.4)

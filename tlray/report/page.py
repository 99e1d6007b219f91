"""The report of a run: one HTML file, built from the run directory alone, that works offline and without scripts."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from tlray.cache import write_bytes
from tlray.errors import RunError
from tlray.report.cells import cell_view
from tlray.report.stats import t_interval
from tlray.report.style import Table, nice
from tlray.results import read_results, read_summary

HERE = Path(__file__).parent
_MAYBE = type(None)
_NUMBER = (int, float)
SUMMARY = {
    "run": str,
    "kind": str,
    "partial": bool,
    "created": object,
    "banner": list,
    "versions": dict,
    "seconds": _NUMBER,
    "cells": list,
}
CELL = {
    "cell": str, "task": str, "backbone": str, "kind": str, "classes": list, "minimise": bool, "monitor": str, "data": dict,
    "audit": (dict, _MAYBE), "weights": (dict, _MAYBE), "winner": (dict, _MAYBE), "validation": (dict, _MAYBE),
    "temperature": (*_NUMBER, _MAYBE), "threshold": (*_NUMBER, list, _MAYBE), "threshold_rule": (str, _MAYBE),
    "test": (dict, _MAYBE),
    "seeds": (dict, _MAYBE), "trials": dict, "epochs": int, "seconds": _NUMBER, "model": (dict, _MAYBE),
}  # fmt: skip
WINNER = {"trial": int, "epoch": int, "config": dict, "monitor": _NUMBER}
"""What the page reads of summary.json, and of which type."""
MISSING = "–"
"""Stands where there is no number."""


def write_report(run: Path) -> Path:
    """Build `report.html` in a run directory from what lies in it, atomically, and return its path.

    Reads summary.json, results.parquet, <cell>/predictions.npz and test_ledger.jsonl. The same directory gives the same bytes.
    Raises RunError when one of them is missing (predictions of a partial run may be) or damaged.
    """
    run = Path(run)
    summary, rows = read_summary(run), read_results(run)
    check_summary(run / "summary.json", summary)
    ledger = read_ledger(run / "test_ledger.jsonl")
    page = _render(run, summary, _complete(rows), ledger)
    try:
        write_bytes(run / "report.html", page.encode())
    except OSError as error:
        raise RunError(f"{run / 'report.html'} cannot be written ({error.strerror}): make room or get permission") from error
    return run / "report.html"


def check_summary(path: Path, summary: Any) -> None:
    """Raise RunError unless everything that the page reads stands in a summary, of the right type."""
    parts = [("", summary, SUMMARY)]
    if isinstance(summary, dict) and isinstance(summary.get("cells"), list):
        for index, cell in enumerate(summary["cells"]):
            parts.append((f"cells[{index}].", cell, CELL))
            if isinstance(cell, dict) and cell.get("winner"):
                parts.append((f"cells[{index}].winner.", cell["winner"], WINNER))
    for where, part, wanted in parts:
        for name, kind in wanted.items():
            if not isinstance(part, dict) or name not in part or not isinstance(part[name], kind):
                raise RunError(f"{path} is damaged, it has no usable {where}{name}: resume the run or run it anew")


def _complete(rows: Table) -> Table:
    """The table with every column the page reads, also when no trial had an epoch."""
    for name in ("monitor", "seconds", "train_loss", "val_loss", "phase"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce") if name in rows else math.nan
    return rows


def _render(run: Path, summary: dict[str, Any], rows: Table, ledger: list[dict[str, Any]]) -> str:
    cells = [cell_view(run, entry, rows[rows["cell"] == entry["cell"]], summary["partial"]) for entry in summary["cells"]]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure, "interval": interval, "duration": duration, "plain": plain, "percent": percent, "moment": moment,
        "nice": nice, "thousands": lambda value: f"{value:,}",
    }  # fmt: skip
    for cell in cells:  # SVG of tlray.report.style, which escapes the text in it
        cell["pictures"] = {name: Markup(svg) for name, svg in cell["pictures"].items()}
    return environment.get_template("page.html").render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        run={"name": summary["run"]},
        place=str(run),
        summary={"command": None, "hardware": {}, **summary},
        cells=cells,
        intervals=sorted({metric["interval"] for cell in cells for metric in cell["test"].values() if metric.get("interval")}),
        arms=_arms(rows) if summary["kind"] == "compare" else [],
        ledger=ledger,
    )


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Every opening of the test split, {"task", "purpose", "time", "images"}; none when there is no file. RunError when damaged."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}): the run directory is damaged") from error


def _arms(rows: Table) -> list[dict[str, Any]]:
    """One entry per cell and arm: trainings, mean and interval over them of the best value on validation."""
    if "arm" not in rows:
        return []
    best = rows.groupby(["cell", "arm", "trial"], sort=False)["best"].last().dropna()
    return [
        {"cell": cell, "arm": arm, "trainings": len(group), **t_interval(group.to_list())}
        for (cell, arm), group in best.groupby(level=["cell", "arm"], sort=False)
    ]  # fmt: skip


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any, digits: int = 3) -> str:
    """A measured number with a fixed number of digits; a dash when there is none."""
    return f"{value:.{digits}f}" if _number(value) else MISSING


def interval(metric: dict[str, Any]) -> str:
    """`0.912 to 0.960`, or nothing."""
    return f"{figure(metric['low'])} to {figure(metric['high'])}" if _number(metric.get("low")) else ""


def percent(value: Any) -> str:
    """A share as a CSS length, kept within the bar."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def plain(value: Any) -> str:
    """Any JSON value as short text: numbers to four digits, `none` for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: Any) -> str:
    """`42 s`, `5 min 12 s`, `2 h 05 min`."""
    if not _number(seconds):
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(seconds: Any) -> str:
    """Seconds since 1970 as date and time, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if _number(seconds) else str(seconds)

"""The report of a run: one HTML file, built from the run directory alone, that works offline and without scripts."""

import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from tlray.cache import DAMAGED, ordinary, write_bytes
from tlray.errors import RunError
from tlray.report.arms import comparison_view
from tlray.report.cells import cell_view
from tlray.report.style import Table, nice, standalone
from tlray.results import read_results, read_summary
from tlray.storage import AnyPath, place

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
KNOBS = {"unfreeze": str, "lr": _NUMBER}
COMPARISON = {
    "title": str, "question": str, "monitor": str, "minimise": bool, "metrics": list, "seeds": list, "folds": (int, _MAYBE),
    "tasks": dict, "chosen": dict, "arms": list,
}  # fmt: skip
COMPARISON_LATER = {"comparisons": (list, _MAYBE), "conclusion": (str, _MAYBE), "claims": (list, _MAYBE)}
TASK = {"task": str, "kind": str, "classes": list, "data": dict}
ARM = {"arm": str, "task": str, "config": dict, "statuses": dict}
ARM_FIGURES = ("validation", "gap", "deviation")
ARM_METRICS = ("train", "val", "test", "at_threshold", "test_noise")
ARM_COSTS = ("epoch_seconds", "to_best_seconds", "seconds")
_EDGES = {"low": (*_NUMBER, _MAYBE), "high": (*_NUMBER, _MAYBE), "interval": str}
MEAN, NOISE = {"mean": (*_NUMBER, _MAYBE), **_EDGES}, {"value": (*_NUMBER, _MAYBE), **_EDGES}
COMPARED = {
    "metric": str, "arm": str, "against": str, "pairs": int, "interval": str, "test_interval": str, "verdict": str,
    **dict.fromkeys(("difference", "low", "high", "p", "p_holm", "test_low", "test_high"), (*_NUMBER, _MAYBE)),
}  # fmt: skip
CLAIM = {"id": str, "claim": str, "measured": str, "verdict": str}
PICTURE = {"file": str, "title": str, "caption": str}
"""What the pages read of summary.json, and of which type."""
MISSING = "–"
"""Stands where there is no number."""


def write_report(run: str | AnyPath) -> AnyPath:
    """Build `report.html` in a run directory from what lies in it, atomically, and return its path.

    Reads summary.json, results.parquet, test_ledger.jsonl, of a search <cell>/predictions.npz, of a comparison the pictures that it
    names. The same directory gives the same bytes. Every picture drawn here is also put into `pictures/report-*.svg`, for slides.
    Raises RunError when one of them is missing (predictions of a partial run may be) or damaged.
    """
    run = place(run)
    summary, rows = read_summary(run), read_results(run)
    check_summary(run / "summary.json", summary)
    ledger = read_ledger(run / "test_ledger.jsonl")
    try:
        page, pictures = _render(run, summary, _complete(rows), ledger)
    except (*DAMAGED, jinja2.TemplateError) as error:
        raise RunError(
            f"no page can be made of {run}, what stands in its summary.json and in its tables does not fit together "
            f"({type(error).__name__}: {error}): resume the run or run it anew"
        ) from error
    try:
        for name, svg in pictures.items():
            (run / "pictures").mkdir(exist_ok=True)
            write_bytes(run / "pictures" / f"report-{name}.svg", standalone(svg).encode(errors="backslashreplace"))
        write_bytes(run / "report.html", page.encode(errors="backslashreplace"))
    except OSError as error:
        file = error.filename or run / "report.html"
        raise RunError(f"{file} cannot be written ({error.strerror}): make room or get permission") from error
    return run / "report.html"


def check_summary(path: AnyPath, summary: Any) -> None:
    """Raise RunError unless everything that the page reads stands in a summary, of the right type."""
    for where, part, wanted in _parts(summary):
        for name, kind in wanted.items():
            if not isinstance(part, dict) or name not in part or not isinstance(part[name], kind):
                raise RunError(f"{path} is damaged, it has no usable {where}{name}: resume the run or run it anew")
    names = [arm["arm"] for arm in (summary.get("comparison") or {}).get("arms", [])] if summary["kind"] == "compare" else []
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RunError(f"{path} is damaged, two arms are called {twice[0]!r}: run it anew under names that differ")


Part = tuple[str, Any, dict[str, Any]]
"""Where it stands, a part of a summary, and what must stand in it."""


def _parts(summary: Any) -> Iterator[Part]:
    """Everything to check, outside in: what was yielded is sound when the next is asked for."""
    yield "", summary, SUMMARY
    for index, cell in enumerate(summary["cells"]):
        yield f"cells[{index}].", cell, CELL
        if cell["winner"]:
            yield f"cells[{index}].winner.", cell["winner"], WINNER
            yield f"cells[{index}].winner.config.", cell["winner"]["config"], KNOBS
        for part, wanted in (("test", NOISE), ("seeds", MEAN)):
            yield from ((f"cells[{index}].{part}.{name}.", each, wanted) for name, each in (cell[part] or {}).items())
    if summary["kind"] != "compare":
        return
    yield "", {"pictures": [], **summary}, {"pictures": (list, _MAYBE)}
    yield from ((f"pictures[{index}].", each, PICTURE) for index, each in enumerate(summary.get("pictures") or []))
    if summary.get("comparison") is not None or not summary["partial"]:
        yield "", summary, {"comparison": dict}
        yield from _comparison_parts(summary["comparison"])


def _comparison_parts(about: dict[str, Any]) -> Iterator[Part]:
    yield "comparison.", about, COMPARISON
    yield "comparison.", dict.fromkeys(COMPARISON_LATER) | about, COMPARISON_LATER
    yield from ((f"comparison.tasks[{name}].", task, TASK) for name, task in about["tasks"].items())
    for name, wanted in (("comparisons", COMPARED), ("claims", CLAIM)):
        yield from ((f"comparison.{name}[{index}].", each, wanted) for index, each in enumerate(about.get(name) or []))
    for index, arm in enumerate(about["arms"]):
        where, later = f"comparison.arms[{index}].", (*ARM_FIGURES, *ARM_METRICS, "cost")
        yield where, arm, ARM
        yield where, dict.fromkeys(later) | arm, dict.fromkeys(later, (dict, _MAYBE))
        yield from ((f"{where}{name}.", arm[name], MEAN) for name in ARM_FIGURES if arm.get(name))
        cost = arm.get("cost") or {}
        yield from ((f"{where}cost.{name}.", cost[name], MEAN) for name in ARM_COSTS if cost.get(name))
        for name in ARM_METRICS:
            wanted = NOISE if name == "test_noise" else MEAN
            yield from ((f"{where}{name}.{metric}.", each, wanted) for metric, each in (arm.get(name) or {}).items())


def _complete(rows: Table) -> Table:
    """The table with every column the page reads, also when no trial had an epoch."""
    for name in ("monitor", "seconds", "train_loss", "val_loss", "train_accuracy", "val_accuracy", "phase"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce") if name in rows else math.nan
    return rows if "arm" in rows else rows.assign(arm="")


def _render(run: AnyPath, summary: dict[str, Any], rows: Table, ledger: list[dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """The page, and the pictures drawn for it by name."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure, "interval": interval, "duration": duration, "plain": plain, "percent": percent, "moment": moment,
        "nice": nice, "signed": signed, "chance": chance, "breakable": breakable, "cached": cached, "thousands": thousands,
    }  # fmt: skip
    if summary["kind"] == "compare":
        template, views = "comparison.html", {"comparison": comparison_view(run, summary, rows)}
        parts, extras = views["comparison"]["views"], views["comparison"]["extras"]
    else:
        cells = [cell_view(run, entry, rows[rows["cell"] == entry["cell"]], summary["partial"]) for entry in summary["cells"]]
        figures = [metric["interval"] for cell in cells for metric in cell["test"].values() if metric.get("interval")]
        template, views, parts, extras = "page.html", {"cells": cells, "intervals": sorted(set(figures))}, cells, []
    drawn = {
        re.sub(r"[^\w.-]+", "_", f"{part.get('cell') or part['name']}-{name}"): svg
        for part in parts
        for name, svg in part["pictures"].items()
        if svg
    }
    for part in parts:  # SVG of tlray.report.style, which escapes the text in it
        part["pictures"] = {name: Markup(svg) for name, svg in part["pictures"].items()}
    for extra in extras:
        extra["svg"] = Markup(legible(extra["svg"]))
    page = environment.get_template(template).render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        run={"name": summary["run"]},
        place=str(run),
        summary={"command": None, "hardware": {}, **summary},
        ledger=ledger,
        **views,
    )
    return page, drawn


def legible(svg: str) -> str:
    """A picture that keeps its letters readable where the page is narrower: it scrolls sideways rather than shrink."""
    found = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    return svg.replace('style="max-width', f'style="min-width:{float(found[1]):.0f}px;max-width', 1) if found else svg


def read_ledger(path: AnyPath) -> list[dict[str, Any]]:
    """Every opening of the test split, {"task", "purpose", "time", "images"}; none when there is no file. A damaged line says that it is.

    Raises RunError when the file cannot be read.
    """
    if not path.exists():
        return []
    try:
        ordinary(path)
        return [_opening(line) for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}): put the ledger there, or get permission") from error


def _opening(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.keys() >= {"task", "purpose", "time", "images"}:
        return found
    return {"task": MISSING, "purpose": "this line of the ledger is damaged", "time": MISSING, "images": MISSING}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def figure(value: Any, digits: int = 3) -> str:
    """A measured number with a fixed number of digits; a dash when there is none."""
    return f"{value:.{digits}f}" if _number(value) else MISSING


def signed(value: Any, digits: int = 3) -> str:
    """A difference with its sign; a dash when there is none."""
    return f"{value:+.{digits}f}" if _number(value) else MISSING


def chance(p: Any) -> str:
    """A p-value to four digits; `< .0001` rather than nought."""
    return "< .0001" if _number(p) and p < 0.0001 else figure(p, 4)


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


def breakable(name: str) -> Markup:
    """An arm's name, escaped, with places where a narrow column may break it."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[=/_&?+])", name))


def thousands(value: Any) -> str:
    """`2,226,434`; a dash when there is none."""
    return f"{value:,.0f}" if _number(value) else MISSING


def cached(share: Any) -> str:
    """Whether epochs ran on cached features, yes, no or the share of epochs that did."""
    if share in (0, 1):
        return "yes" if share else "no"
    return f"{share:.0%} of epochs" if _number(share) else MISSING


def moment(seconds: Any) -> str:
    """Seconds since 1970 as date and time, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if _number(seconds) else str(seconds)

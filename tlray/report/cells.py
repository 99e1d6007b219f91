"""What the page shows of one cell (a task with a backbone): read from the run directory, turned into pictures and sentences."""

import io
import shlex
from typing import Any

import numpy as np

from tlray.cache import DAMAGED, ordinary
from tlray.errors import RunError
from tlray.report import diagnosis, plots
from tlray.report.importance import importance
from tlray.report.stats import rescale
from tlray.report.style import Table
from tlray.storage import AnyPath

PREDICTIONS = ("val_probabilities", "val_labels", "test_probabilities", "test_labels")


def read_predictions(path: AnyPath) -> dict[str, np.ndarray]:
    """The winner's calibrated probabilities float [N, K] and labels, by the names in PREDICTIONS.

    Raises RunError when the file is damaged or lacks an array.
    """
    try:
        ordinary(path)
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in PREDICTIONS}
    except DAMAGED as error:
        raise RunError(f"{path} cannot be read ({error}): the run directory is damaged, run the search anew") from error


def cell_view(run: AnyPath, entry: dict[str, Any], rows: Table, partial: bool) -> dict[str, Any]:
    """Everything that the template needs of one cell.

    Args:
        run: the run directory.
        entry: its element of `summary.json`'s cells.
        rows: its rows of `results.parquet`.
        partial: whether the run ended early, so that predictions may be missing.
    """
    winner, path = entry["winner"], run / entry["cell"] / "predictions.npz"
    predicted = read_predictions(path) if winner and (path.exists() or not partial) else None
    trials = plots.trial_table(rows, entry["minimise"])
    shares, why_not = importance(trials, entry["minimise"])
    test, decided, seeds, validation = (entry.get(name) or {} for name in ("test", "test_at_threshold", "seeds", "validation"))
    return entry | {
        "test": test,
        "seeds": seeds,
        "phantom": bool(entry["data"].get("phantom")),
        "statuses": ", ".join(f"{count} {status}" for status, count in entry["trials"].items() if count),
        "trials": trials.to_dict("records"),
        "searched": plots.searched(trials),
        "decided": bool(decided),
        "figures": [
            {"metric": name, "validation": validation.get(name)}
            | {column: part.get(name) or {} for column, part in (("test", test), ("decided", decided), ("seeds", seeds))}
            for name in dict.fromkeys([*test, *validation])
        ],
        "seed_interval": next((each["interval"] for each in seeds.values()), ""),
        "no_importance": why_not,
        "predicted": predicted is not None,
        "pictures": _search_pictures(entry, rows, trials, shares) | _test_pictures(entry, predicted),
        "audit_lines": audit_lines(entry["audit"] or {}),
        "commands": _commands(run, entry) if winner and (run / entry["cell"] / "model").is_dir() else [],
    }


def _search_pictures(entry: dict[str, Any], rows: Table, trials: Table, shares: dict[str, float]) -> dict[str, str]:
    name, winner, monitor = entry["cell"], entry["winner"], entry["monitor"]
    balance = entry["audit"] or {}
    pictures: dict[str, str] = dict.fromkeys(("curves", "losses", "slices", "importance", "balance"), "")
    if balance.get("classes"):
        pictures["balance"] = diagnosis.class_balance(f"{name}: class balance", balance["classes"], balance.get("images"))
    if not winner:
        return pictures
    trained = rows[rows["epoch"] > 0]
    pictures["curves"] = plots.learning_curves(f"{name}: learning curves", trained, monitor, winner)
    pictures["losses"] = plots.loss_curves(f"{name}: losses of the winner", trained, winner)
    knobs = sorted(plots.searched(trials), key=lambda knob: -shares.get(knob, 0.0))
    if knobs:
        pictures["slices"] = plots.slices(f"{name}: settings", trials, knobs, monitor, winner["trial"])
    if shares:
        finished = int((trials["status"] == "finished").sum())
        pictures["importance"] = plots.importance_bars(f"{name}: importance of settings", shares, finished)
    return pictures


def _test_pictures(entry: dict[str, Any], predicted: dict[str, np.ndarray] | None) -> dict[str, str]:
    if predicted is None:
        return {}
    name, kind, classes, threshold = entry["cell"], entry["kind"], entry["classes"], entry["threshold"]
    after, labels = predicted["test_probabilities"], predicted["test_labels"]
    if after.ndim != 2 or after.shape[1] != len(classes) or len(after) != len(labels) or len(labels) == 0:
        raise RunError(
            f"predictions of {name} have shape {list(after.shape)}, which does not fit {len(classes)} classes: run the search anew"
        )
    temperature = 1.0 if entry["temperature"] is None else entry["temperature"]
    before = rescale(kind, after, 1 / temperature)
    return {
        "confusion": diagnosis.confusion(f"{name}: confusion matrix", kind, after, labels, classes, threshold),
        "roc": diagnosis.roc(f"{name}: ROC", kind, after, labels, classes, threshold),
        "reliability": diagnosis.reliability(f"{name}: reliability", kind, before, after, labels, temperature),
    }


def _commands(run: AnyPath, entry: dict[str, Any]) -> list[str]:
    model = shlex.quote(str(run / entry["cell"] / "model"))
    return [f"tlray predict {model} IMAGE.png", f"tlray evaluate {model} --task npz:OTHER.npz"]


def audit_lines(audit: dict[str, Any]) -> list[tuple[str, str]]:
    """The audit of `tlray.data.audit` as (level, sentence); level is ok, plain or warn."""
    lines: list[tuple[str, str]] = []
    if images := audit.get("images"):
        lines.append(("plain", "Images: " + ", ".join(f"{count:,} {split}" for split, count in images.items()) + "."))
    duplicates = audit.get("duplicates", {})
    for pair, found in duplicates.get("across", {}).items():
        one, two = pair.split("-")
        if found["images"]:
            leak = " Figures on that split flatter the model." if two == "test" else ""
            lines.append(("warn", f"{_images(found['images'])} of {one} stand again, pixel by pixel, in {two}.{leak}"))
        else:
            lines.append(("ok", f"No image of {one} stands again in {two}."))
    for split, found in duplicates.get("within", {}).items():
        if found["images"]:
            lines.append(("warn", f"{_images(found['images'])} of {split} repeat another one of it, pixel by pixel."))
    if conflicts := duplicates.get("label_conflicts"):
        lines.append(("warn", f"{conflicts} set{'s' * (conflicts != 1)} of identical images carry different labels."))
    lines += _group_lines(audit.get("groups"))
    for split, names in (audit.get("without_positive") or {}).items():
        lines.append(("warn", f"No positive in {split} for: {', '.join(names)}."))
    return lines


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _group_lines(groups: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not groups:
        return [("plain", "The data name no groups (patients), so nobody can say whether one is in two splits.")]
    counts = ", ".join(f"{count:,} {split}" for split, count in groups.items() if split != "across")
    cut = {pair: count for pair, count in groups.get("across", {}).items() if count}
    lines = [("plain", f"Groups: {counts}.")]
    lines += [("warn", f"{count:,} groups are in both splits of {pair}.") for pair, count in cut.items()]
    return lines if cut else [*lines, ("ok", "No group is in two splits.")]

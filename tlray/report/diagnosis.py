"""Pictures of what the delivered model gets right and wrong on the test split; each function returns inline SVG."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from sklearn.metrics import roc_auc_score, roc_curve

from tlray.report.style import BLUE, COLOURS, GREEN, INK, MUTED, ORANGE, PAPER, VERMILION, Picture, legend_below, short

Threshold = float | Sequence[float] | None
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
FEW = 8
"""Classes up to which every one has its own curve in colour."""
MANY = 12
"""Classes above which their numbers would only be clutter."""
POINTS = 400
"""Points of one ROC curve that are drawn."""


def confusion(title: str, kind: str, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], threshold: float) -> str:
    """Counts by true and given class, shaded by share of the true class; multi-label: one row a finding.

    Args:
        probabilities: calibrated, float [N, K].
        labels: int [N], or [N, L] of 0/1.
        threshold: decides for class 1 (binary) or for each finding (multilabel, one number or one each); None is .5.
    """
    limit = np.asarray(0.5 if threshold is None else threshold)
    if kind == "multilabel":
        given, truth = probabilities > limit, labels.astype(bool)
        table = np.stack([(truth & given).sum(0), (truth & ~given).sum(0), (~truth & given).sum(0), (~truth & ~given).sum(0)], axis=1)
        whole = np.repeat(np.stack([truth.sum(0), (~truth).sum(0)], axis=1), 2, axis=1)
        columns = ["present,\nfound", "present,\nmissed", "absent,\nfalse alarm", "absent,\nleft out"]
        return _heat(title, "Findings: right and wrong", table, table / np.maximum(whole, 1), classes, columns, ("", ""))
    top = (probabilities[:, 1] > limit).astype(int) if kind == "binary" else probabilities.argmax(axis=1)
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (labels.reshape(-1).astype(int), top), 1)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    name = f"Confusion matrix at threshold {float(limit):.3f}" if kind == "binary" else "Confusion matrix"
    return _heat(title, name, table, share, classes, classes, ("given class", "true class"))


def _heat(
    title: str, name: str, table: np.ndarray, share: np.ndarray, rows: Sequence[str], columns: Sequence[str], axis: tuple[str, str]
) -> str:
    many = len(rows) > MANY
    with Picture(title, height=min(6.5, max(3.4, 0.34 * len(rows) + 1.2))) as picture:
        axes = picture.axes
        for (row, column), part in np.ndenumerate(share):
            place, depth = (column - 0.48, row - 0.48), 0.04 + 0.56 * float(part)
            axes.add_patch(Rectangle(place, 0.96, 0.96, facecolor=BLUE, alpha=depth, lw=0))
            if not many or table.shape[1] == 4:
                count = f"{table[row, column]:,}"
                text = f"{count}\n{part:.0%}" if len(rows) <= 5 else count
                axes.text(column, row, text, ha="center", va="center", color=INK, fontsize=11 if len(rows) <= 3 else 8)
        axes.set(title=name, xlabel=axis[0], ylabel=axis[1], xlim=(-0.5, table.shape[1] - 0.5), ylim=(len(rows) - 0.5, -0.5))
        size = 6 if many else 8
        slanted = max(len(text.split("\n")[0]) for text in columns) > 40 / len(columns)
        axes.set_xticks(
            range(len(columns)),
            [short(text) for text in columns],
            fontsize=size,
            rotation=35 * slanted,
            ha="right" if slanted else "center",
        )
        axes.set_yticks(range(len(rows)), [short(text) for text in rows], fontsize=size)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return picture.svg


def roc(title: str, kind: str, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str], threshold: float | None) -> str:
    """Sensitivity against false alarms: the label 1 (binary, with the operating threshold) or each class against the rest."""
    views = _views(kind, probabilities, labels, classes)
    with Picture(title, height=4.2) as picture:
        axes = picture.axes
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=":")
        areas = [float(roc_auc_score(truth, scores)) for _, scores, truth in views]
        extremes = {int(np.argmax(areas)), int(np.argmin(areas))} if areas else set()
        for index, (name, scores, truth) in enumerate(views):
            false, true = _thin(*roc_curve(truth, scores)[:2])
            label = f"{areas[index]:.3f}  {short(name)}"
            if len(views) <= FEW or index in extremes:
                shown = sorted(extremes).index(index) if len(views) > FEW else index
                dash = DASHES[shown // len(COLOURS)]
                axes.plot(false, true, color=COLOURS[shown % len(COLOURS)], ls=dash, label=label, lw=1.9, drawstyle="default")
            else:
                axes.plot(false, true, color=MUTED, alpha=0.4, lw=0.9)
        if kind == "binary" and isinstance(threshold, float | int) and views:
            _mark(axes, views[0][1], views[0][2], threshold)
        axes.set(title="ROC on the test split", xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set_aspect("equal")
        heading = "AUROC" if len(views) <= FEW else f"AUROC, best and worst of {len(views)}"
        axes.legend(loc="lower right", title=heading, title_fontsize=8, alignment="left", handlelength=1.8)
    return picture.svg


def _views(kind: str, probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, scores, truth) of every question that has both answers."""
    if kind == "binary":
        views = [(classes[1], probabilities[:, 1], labels.reshape(-1) == 1)]
    elif kind == "multilabel":
        views = [(name, probabilities[:, k], labels[:, k] == 1) for k, name in enumerate(classes)]
    else:
        views = [(name, probabilities[:, k], labels.reshape(-1) == k) for k, name in enumerate(classes)]
    return [view for view in views if 0 < view[2].sum() < len(view[2])]


def _thin(false: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(false) - 1, POINTS).astype(int)) if len(false) > POINTS else slice(None)
    return false[keep], true[keep]


def _mark(axes: Axes, scores: np.ndarray, truth: np.ndarray, threshold: float) -> None:
    given = scores > threshold
    x, y = float((given & ~truth).sum() / (~truth).sum()), float((given & truth).sum() / truth.sum())
    label = f"threshold {threshold:.3f}:\nsensitivity {y:.3f}, specificity {1 - x:.3f}"
    axes.plot(x, y, marker="o", ms=8, color=VERMILION, mec=PAPER, mew=1.2, ls="none", label=label, zorder=4)


def reliability(title: str, kind: str, before: np.ndarray, after: np.ndarray, labels: np.ndarray, temperature: float) -> str:
    """Share that was right against the confidence given, before and after temperature scaling, in ten equal-width bins.

    Binary and multi-label: the probability of being present; else the probability of the given class.
    """
    with Picture(title, height=4.2, rows=2, sharex=True, height_ratios=(4, 1)) as picture:
        axes, below = picture.axes
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=":")
        for name, values, colour, marker in (
            ("as trained", before, ORANGE, "s"),
            (f"calibrated (temperature {temperature:.2f})", after, BLUE, "o"),
        ):
            confidence, correct = _answers(kind, values, labels)
            which = np.clip((confidence * 10).astype(int), 0, 9)
            counts = np.bincount(which, minlength=10)
            some = counts > 0
            shares = [np.bincount(which, weights=each, minlength=10)[some] / counts[some] for each in (confidence, correct)]
            axes.plot(*shares, color=colour, marker=marker, ms=5, mec=PAPER, mew=0.8, label=name)
        below.bar(np.arange(10) / 10 + 0.05, counts, width=0.088, color=BLUE, alpha=0.8)
        truth = "share present" if kind in ("binary", "multilabel") else "share correct"
        axes.set(title="Reliability on the test split", ylabel=truth, xlim=(-0.02, 1.02), ylim=(-0.04, 1.04))
        legend_below(picture)
        below.set(xlabel="probability given", ylabel="answers")
    return picture.svg


def _answers(kind: str, probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if kind == "binary":
        return probabilities[:, 1], (labels.reshape(-1) == 1).astype(float)
    if kind == "multilabel":
        return probabilities.reshape(-1), labels.reshape(-1).astype(float)
    return probabilities.max(axis=1), (probabilities.argmax(axis=1) == labels.reshape(-1)).astype(float)


def class_balance(title: str, counts: dict[str, dict[str, int]], images: dict[str, int] | None = None) -> str:
    """Images per class and split, {split: {class: count}}, as shares of the split's images; the count stands at the bar."""
    splits = list(counts)
    classes = list(counts[splits[0]])
    height = 0.8 / len(splits)
    with Picture(title, height=max(2.2, min(7.0, 0.2 * len(splits) * len(classes) + 1.1))) as picture:
        axes = picture.axes
        for index, split in enumerate(splits):
            total = max(1, (images or {}).get(split, sum(counts[split].values())))
            shares = [counts[split].get(name, 0) / total for name in classes]
            places = np.arange(len(classes)) + (index - (len(splits) - 1) / 2) * height
            bars = axes.barh(places, shares, height=height * 0.9, color=(BLUE, ORANGE, GREEN)[index % 3], label=split)
            if len(classes) <= MANY:
                axes.bar_label(bars, [f"{counts[split].get(name, 0):,}" for name in classes], padding=3, fontsize=7, color=MUTED)
        axes.set_yticks(range(len(classes)), [short(name) for name in classes])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set(title="Class balance", xlabel="share of the split")
        legend_below(picture, columns=len(splits))
    return picture.svg

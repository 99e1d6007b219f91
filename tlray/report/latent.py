"""The latent space in two dimensions: how well a network's features tell the classes apart, as a picture and as numbers.

Pictures of embeddings invite to see what is not there, so each panel carries its separability, and so does the whole space.
"""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import pairwise_distances, silhouette_score

from tlray.errors import ConfigError, DataError
from tlray.report.style import COLOURS, MUTED, PAPER, Picture, short

MOST = 1000
"""Images that are drawn: more only hide one another."""
NEIGHBOURS = 5
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Each with every colour in turn: 54 classes look different."""
SPACES = ("features", "PCA", "t-SNE")
PANEL, PITCH, LEFT = 2.9, 3.6, 0.62
"""Inches: across a panel, from one to the next (so that the line of numbers fits above and under it), and left of the first."""
LETTERS = 37
"""Letters of a model's name that fit above a panel."""


@dataclass(frozen=True)
class View:
    """One column of the picture.

    name: of the model.
    stage: where the features were taken, as in `stage_features`.
    features: float [N, D].
    labels: int [N], numbers of the classes.
    """

    name: str
    stage: str
    features: np.ndarray
    labels: np.ndarray


def separability(points: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """How well labels can be told apart by Euclidean distance between points.

    Args:
        points: float [N, D].
        labels: int [N].
        neighbours: that vote for the label of a point; fewer when there are not as many other points.

    Returns {"silhouette": mean over points, -1..1 (Rousseeuw 1987, doi:10.1016/0377-0427(87)90125-7), "knn_accuracy": share of points
    whose nearest others (those as far as the last of them included; a tie goes to the first label) have their label, "neighbours",
    "majority": share of the commonest label, which guessing gets}. Where all points are the same: silhouette 0 and the majority.
    Takes N^2 memory. Raises DataError for less than two labels or numbers that are not finite.
    """
    labels = np.asarray(labels)
    _check(points, labels, "points")
    codes = np.unique(labels, return_inverse=True)[1]
    majority, count = float(np.bincount(codes).max() / len(codes)), min(neighbours, len(codes) - 1)
    distances = pairwise_distances(standardised(points))
    widest = float(distances.max())
    if widest == 0:
        return {"silhouette": 0.0, "knn_accuracy": majority, "neighbours": count, "majority": majority}
    alone = codes.max() + 1 == len(codes)  # every point has a label of its own: each silhouette is 0 by definition
    silhouette = 0.0 if alone else float(silhouette_score(distances, codes, metric="precomputed"))
    np.fill_diagonal(distances, np.inf)
    farthest = np.partition(distances, count - 1, axis=1)[:, count - 1 : count]
    votes = (distances <= farthest + 1e-7 * widest) @ np.eye(codes.max() + 1)[codes]
    accuracy = float((votes.argmax(axis=1) == codes).mean())
    return {"silhouette": silhouette, "knn_accuracy": accuracy, "neighbours": count, "majority": majority}


def standardised(features: np.ndarray) -> np.ndarray:
    """Features float64 [N, D], each centred, all divided by their overall standard deviation: the root mean square distance to the mean.

    So networks of any width and gain stand at one scale and distances keep their proportions. Features that differ from image to
    image by rounding alone become zeros.
    """
    values = np.asarray(features, np.float64)
    values = values - values.mean(axis=0)
    size, spread = (float(np.sqrt(np.square(each).sum(axis=1).mean())) for each in (np.asarray(features, np.float64), values))
    return values / spread if spread > 1e-6 * size else np.zeros_like(values)


def embed_pca(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components: (points float64 [N, 2], the share 0..1 of the variance along each [2]); zeros for constant features."""
    values, points, explained = _two_columns(features), np.zeros((len(features), 2)), np.zeros(2)
    if standardised(values).any():
        exact = min(values.shape) < 10
        pca = PCA(2, svd_solver="full" if exact else "arpack", random_state=0)
        points, explained = pca.fit_transform(values), pca.explained_variance_ratio_
    return points, np.clip(explained, 0, 1)


def embed_tsne(features: np.ndarray, perplexity: float, seed: int) -> np.ndarray:
    """t-SNE started from the principal components (van der Maaten & Hinton 2008): points float64 [N, 2]; zeros for constant features.

    Args:
        features: float [N, D].
        perplexity: effective number of neighbours that keep close, at least 1 and below N.
        seed: equal seeds give equal points.

    Raises ConfigError for a perplexity out of range.
    """
    check_perplexity(perplexity, len(features))
    values = _two_columns(features)
    if not standardised(values).any():
        return np.zeros((len(features), 2))
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return tsne.fit_transform(values.astype(np.float32)).astype(np.float64)


def check_perplexity(perplexity: float, images: int | None = None) -> None:
    """Raise ConfigError when t-SNE cannot have this perplexity (with so many images, where that is known already)."""
    if not math.isfinite(perplexity) or perplexity < 1:
        raise ConfigError(f"perplexity={perplexity:g} is out of range: at least 1, usually 5 to 50")
    if images is not None and images <= perplexity:
        raise ConfigError(
            f"perplexity={perplexity:g} needs more than {perplexity:g} images, but there are {images}: lower it or take more images"
        )


def _two_columns(features: np.ndarray) -> np.ndarray:
    """float64 [N, D], D at least 2."""
    values = np.asarray(features, np.float64)
    return np.pad(values, ((0, 0), (0, max(0, 2 - values.shape[1]))))


def subsample(labels: np.ndarray, most: int = MOST, seed: int = 0) -> np.ndarray:
    """Sorted indices of at most `most` images: every label by its share, and at least once where there is room; drawn by seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    depth = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        depth[own] = np.arange(len(own)) / len(own)
    return np.sort(order[np.argsort(depth[order], kind="stable")][:most])


def latent_picture(
    title: str, views: Sequence[View], classes: Sequence[str], perplexity: float = 30, seed: int = 0, most: int = MOST
) -> tuple[str, list[dict[str, Any]]]:
    """PCA above, t-SNE below, one column for each view, coloured by label.

    Each view's features are centred and divided by their overall standard deviation, and all panels of a row have the same axes, so
    that networks can be compared. The axes of t-SNE have no unit, and its distances between clusters no meaning.

    Args:
        title: stands above the picture, and is its name for readers.
        views: of the same images in the same order.
        classes: their names, in the order of the labels.
        perplexity, seed: of t-SNE; the seed also draws the images.
        most: images that are shown, see `subsample`; the numbers are of these.

    Returns (inline SVG, [{"view", "stage", "space": "features", "PCA" or "t-SNE", "images", "silhouette", "knn_accuracy",
    "neighbours", "majority", "explained": shares of the variance [2] for PCA, else None}]), three of them for each view.
    Raises DataError for multi-label or single-label data and features that are not finite, ConfigError for a bad perplexity.
    """
    views = _same_images(title, views, most, seed)
    check_perplexity(perplexity, len(views[0].labels))
    numbers: list[dict[str, Any]] = []
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for view in views:
        features = standardised(view.features)
        flat, explained = embed_pca(features)
        curved = embed_tsne(features, perplexity, seed)
        rows[0].append(flat)
        rows[1].append(curved)
        for space, points in zip(SPACES, (features, flat, curved), strict=True):
            about = {"view": view.name, "stage": view.stage, "space": space, "images": len(view.labels)}
            shares = explained.tolist() if space == "PCA" else None
            numbers.append(about | separability(points, view.labels) | {"explained": shares})
    return _draw(title, views, classes, rows, numbers, perplexity), numbers


def _same_images(title: str, views: Sequence[View], most: int, seed: int) -> list[View]:
    """The views of the images that are shown; DataError when they cannot be."""
    if not views:
        raise ConfigError("a picture of the latent space needs at least one model and stage: name one")
    for view in views:
        _check(view.features, np.asarray(view.labels), f"{title}: the features of {view.name} at {view.stage}")
        if not np.array_equal(view.labels, views[0].labels):
            raise DataError(f"{title}: {view.name} and {views[0].name} saw images with other labels: give both the same ones")
    chosen = subsample(np.asarray(views[0].labels), most, seed)
    return [replace(view, features=np.asarray(view.features)[chosen], labels=np.asarray(view.labels)[chosen]) for view in views]


def _check(points: np.ndarray, labels: np.ndarray, what: str) -> None:
    if labels.ndim != 1:
        raise DataError(f"{what}: a latent space needs one label per image, but these are multilabel: choose another task")
    if np.ndim(points) != 2 or len(points) != len(labels) or np.shape(points)[1] == 0:
        raise DataError(f"{what} have shape {list(np.shape(points))} for {len(labels)} labels: [N, D] is needed")
    if len(np.unique(labels)) < 2:
        raise DataError(f"{what} are of {len(labels)} images with less than two labels, nothing can be told apart: take others")
    if not np.isfinite(points).all():
        raise DataError(f"{what} are not all finite numbers: the network's weights or its images are damaged")


def _draw(
    title: str,
    views: Sequence[View],
    classes: Sequence[str],
    rows: Sequence[Sequence[np.ndarray]],
    numbers: Sequence[dict[str, Any]],
    perplexity: float,
) -> str:
    limits = [_limits(row) for row in rows]
    heights = [PANEL * (top - bottom) / (right - left) for left, right, bottom, top in limits]
    width = PITCH * len(views) + 0.4
    found = [int(label) for label in np.unique(views[0].labels)]
    names = [f"{short(classes[label])} ({np.sum(views[0].labels == label):,})" for label in found]
    across = max(1, int(72 * width / (30 + 5.2 * max(map(len, names)))))
    heading = textwrap.fill(title, int(10 * width))
    above, between, below = 0.85 + 0.19 * heading.count("\n"), 0.75, 0.78 + 0.17 * math.ceil(len(names) / across)
    height = above + heights[0] + between + heights[1] + below
    bottoms = (height - above - heights[0], below)
    with Picture(title, width, height, rows=2, columns=len(views), squeeze=False) as picture:
        picture.figure.set_layout_engine("none")  # panels of equal scale have a shape of their own, which the engine does not keep
        for column, view in enumerate(views):
            whole, flat, curved = numbers[3 * column : 3 * column + 3]
            upper, lower = picture.axes[:, column]
            upper.set_title(_cut(view.name), pad=18, fontsize=9.5)
            note = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points", "fontsize": 8}
            upper.annotate(f"{view.stage}: {_sentence(whole)}", **note)
            first, second = flat["explained"]
            upper.set(xlabel=f"PC 1, {first:.0%} of the variance\n{_sentence(flat)}", ylabel=f"PC 2, {second:.0%}")
            lower.set(xlabel=f"t-SNE 1, perplexity {perplexity:g}\n{_sentence(curved)}", ylabel="t-SNE 2")
            for row, axes in enumerate((upper, lower)):
                place = ((LEFT + PITCH * column) / width, bottoms[row] / height, PANEL / width, heights[row] / height)
                axes.set_position(place)
                _panel(axes, rows[row][column], view.labels, limits[row])
        handles = [Line2D([], [], ls="none", ms=6, mec=PAPER, mew=0.4, **_look(label)) for label in found]
        picture.figure.legend(
            handles, names, loc="lower left", bbox_to_anchor=(0.05 / width, 0), ncols=across, handletextpad=0.2, columnspacing=1.2
        )
        picture.figure.text(0.1 / width, 1 - 0.1 / height, heading, va="top", fontsize=11, fontweight="bold")
    return _lighter(picture.svg)


def _lighter(svg: str) -> str:
    """The same picture in a third of the text: points that look alike inherit it from their group, places have two decimals."""

    def group(found: re.Match) -> str:
        styles = set(re.findall(r' style="[^"]*"', found[2]))
        if len(styles) != 1:
            return found[0]
        points = re.sub(r'\s*(<use [^>]*?) style="[^"]*"', r"\1", found[2])
        points = re.sub(r'( [xy]="-?\d+\.\d\d)\d+', r"\1", points)
        return f"{found[1]}{styles.pop()}>{points}"

    return re.sub(r'(<g clip-path="[^"]*")>((?:\s*<use [^>]*/>)+)', group, svg)


def _panel(axes: Axes, points: np.ndarray, labels: np.ndarray, limits: tuple[float, float, float, float]) -> None:
    """The commonest class first, so that it covers no rare one."""
    found, counts = np.unique(labels, return_counts=True)
    size = 5.5 if len(labels) <= 200 else 4.5 if len(labels) <= 500 else 3.8
    for label in found[np.argsort(-counts, kind="stable")]:
        own = points[labels == label]
        axes.plot(own[:, 0], own[:, 1], ls="none", ms=size, mec=PAPER, mew=0.3, alpha=0.75, **_look(label))
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    axes.tick_params(labelsize=7, labelcolor=MUTED)
    axes.set(xlim=limits[:2], ylim=limits[2:])
    axes.set_aspect("equal")


def _look(label: int) -> dict[str, Any]:
    return {"color": COLOURS[label % len(COLOURS)], "marker": MARKERS[label // len(COLOURS) % len(MARKERS)]}


def _limits(row: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) around all points of a row, neither flatter than 11 : 20 nor taller than a square."""
    points = np.concatenate(list(row))
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    half = 0.54 * np.ptp(points, axis=0)
    half = np.maximum(half, [half[1], 0.55 * half[0]]) if half.any() else np.ones(2)
    return middle[0] - half[0], middle[0] + half[0], middle[1] - half[1], middle[1] + half[1]


def _cut(name: str) -> str:
    """A model's name cut to fit above a panel, in the middle: run and network stand at its ends."""
    return name if len(name) <= LETTERS else f"{name[: LETTERS // 3]}…{name[LETTERS // 3 + 1 - LETTERS :]}"


def _sentence(numbers: dict[str, Any]) -> str:
    """`silhouette .12, 5-NN accuracy .84 (guessing .63)` of what `separability` returns."""
    parts = [f"{round(numbers[name], 2) + 0.0:.2f}".replace("0.", ".", 1) for name in ("silhouette", "knn_accuracy", "majority")]
    return f"silhouette {parts[0]}, {numbers['neighbours']}-NN accuracy {parts[1]} (guessing {parts[2]})"

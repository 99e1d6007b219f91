"""Separability as a number, embeddings that repeat, and the picture of both."""

import re
import string
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from tlray.errors import ConfigError, DataError
from tlray.report.latent import View, embed_pca, embed_tsne, latent_picture, separability, standardised, subsample
from tlray.report.style import VARIABLES, Picture, standalone


def blobs(distance: float, count: int = 60, width: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit Gaussians around corners `distance` from the origin: float [count, width], int [count]."""
    labels = np.arange(count) % classes
    return distance * np.eye(width)[labels] + np.random.default_rng(seed).normal(size=(count, width)), labels


def test_points_on_two_heaps_have_a_known_silhouette():
    points, labels = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([7, 7, 9, 9])
    found = separability(points, labels, neighbours=1)
    outer, inner = 1 - 1 / 10.5, 1 - 1 / 9.5
    assert found == {"silhouette": pytest.approx((outer + inner) / 2), "knn_accuracy": 1.0, "neighbours": 1, "majority": 0.5}
    assert separability(points, np.array([7, 9, 9, 7]), neighbours=1)["knn_accuracy"] == 0.0


def test_far_heaps_are_separable_and_noise_is_not():
    apart, mixed = separability(*blobs(30)), separability(*blobs(0))
    assert apart["silhouette"] > 0.85
    assert apart["knn_accuracy"] == 1.0
    assert abs(mixed["silhouette"]) < 0.1
    assert mixed["knn_accuracy"] < 0.6
    assert apart["majority"] == mixed["majority"] == pytest.approx(1 / 3)


def test_separability_depends_neither_on_scale_nor_on_place_nor_on_order():
    points, labels = blobs(3)
    order = np.random.default_rng(1).permutation(len(labels))
    for other in (1e-9 * points, 1e9 * points, points + 100, points.astype(np.float32)):
        assert separability(other, labels) == pytest.approx(separability(points, labels), abs=1e-5)
    assert separability(points[order], labels[order]) == pytest.approx(separability(points, labels))


def test_equal_points_are_no_better_than_guessing_in_whatever_order_they_lie():
    for points in (np.ones((9, 4)), 1 + 1e-9 * blobs(3, count=9)[0]):
        found = separability(points, np.array([0] * 6 + [1] * 3))
        assert (found["silhouette"], found["knn_accuracy"], found["majority"]) == (0.0, 6 / 9, 6 / 9)


def test_few_points_have_fewer_neighbours_and_single_ones_no_silhouette():
    found = separability(np.array([[0.0], [1.0], [3.0]]), np.array([0, 1, 2]))
    assert (found["silhouette"], found["neighbours"], found["knn_accuracy"]) == (0.0, 2, 0.0)


@pytest.mark.parametrize(
    ("points", "labels", "sentence"),
    [
        (np.ones((4, 2)), np.zeros(4, int), "less than two labels"),
        (np.full((4, 2), np.nan), np.array([0, 1, 0, 1]), "not all finite"),
        (np.ones((4, 2)), np.eye(4, dtype=int), "one label per image, but these are multilabel"),
        (np.ones((3, 2)), np.array([0, 1, 0, 1]), r"shape \[3, 2\] for 4 labels"),
        (np.ones((4, 0)), np.array([0, 1, 0, 1]), r"shape \[4, 0\]"),
    ],
)
def test_what_cannot_be_measured_is_said(points, labels, sentence):
    with pytest.raises(DataError, match=sentence):
        separability(points, labels)
    with pytest.raises(DataError, match=sentence):
        latent_picture("X", [View("net", "features", points, labels)], "abcd", perplexity=2)


def test_standardised_features_have_one_scale_and_keep_proportions():
    points, _ = blobs(3, width=50)
    values = standardised(7 * points + 3)
    assert np.square(values).sum(axis=1).mean() == pytest.approx(1)
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(values, standardised(points), atol=1e-9)


@pytest.mark.parametrize("width", [1, 3, 40])
def test_principal_components_carry_the_variance_that_they_state(width):
    points = np.random.default_rng(0).normal(size=(30, width)) * np.linspace(3, 1, width)
    flat, explained = embed_pca(points)
    centred = points - points.mean(axis=0)
    singular = np.zeros(max(2, width))
    singular[: min(points.shape)] = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(explained, (singular**2 / (singular**2).sum())[:2], atol=1e-9)
    np.testing.assert_allclose(flat.std(axis=0) ** 2, explained * centred.var(axis=0).sum(), atol=1e-9)


def test_embeddings_repeat_with_their_seed_and_constant_features_are_one_point():
    points, _ = blobs(4)
    first, second = (embed_tsne(points, 10, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (60, 2)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(embed_pca(points)[0], embed_pca(points)[0])
    for constant in (np.ones((20, 3)), np.ones((20, 1))):
        assert not embed_tsne(constant, 5, 0).any()
        assert not np.concatenate([each.ravel() for each in embed_pca(constant)]).any()


def test_a_perplexity_out_of_range_is_one_sentence():
    points, labels = blobs(4, count=20)
    message = "perplexity=30 needs more than 30 images, but there are 20: lower it or take more images"
    with pytest.raises(ConfigError, match=message):
        embed_tsne(points, 30, 0)
    with pytest.raises(ConfigError, match=message):
        latent_picture("X", [View("net", "features", points, labels)], "abc")
    for bad in (0.5, -3, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="out of range: at least 1"):
            embed_tsne(points, bad, 0)


def test_a_subsample_keeps_the_shares_of_labels_and_every_label():
    labels = np.repeat([0, 1, 2, 3], [600, 300, 99, 1])
    chosen = subsample(labels, 100, seed=0)
    np.testing.assert_array_equal(chosen, np.unique(chosen))
    counts = np.bincount(labels[chosen])
    assert counts.sum() == 100
    assert (np.abs(counts - [60, 30, 10, 1]) <= 1).all()
    np.testing.assert_array_equal(chosen, subsample(labels, 100, seed=0))
    assert not np.array_equal(chosen, subsample(labels, 100, seed=1))
    np.testing.assert_array_equal(subsample(labels, 5000), np.arange(1000))


def texts(svg: str) -> list[str]:
    """Every text of a picture, in its order."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(scope="module")
def pictured():
    """(SVG, numbers, views) of two networks and two stages, one of them dead."""
    labels = blobs(0)[1]
    views = [View("good", "features", blobs(9, width=4)[0], labels), View("good", "stem", np.zeros((60, 5)), labels)]
    views.append(View("x" * 30 + "-somewhere-resnet50", "features", 100 * blobs(1, width=200)[0], labels))
    return *latent_picture('Latent space of "x" & <y>', views, ["normal", "_sick", "<b>"], perplexity=12), views


def test_the_numbers_stand_for_each_view_in_each_space(pictured):
    _, numbers, views = pictured
    assert [(row["view"], row["stage"], row["space"]) for row in numbers] == [
        (view.name, view.stage, space) for view in views for space in ("features", "PCA", "t-SNE")
    ]
    for row, view in zip(numbers[::3], views, strict=True):
        expected = separability(view.features, view.labels)
        assert {name: row[name] for name in expected} == pytest.approx(expected)
        assert row["images"] == 60
    assert numbers[1]["explained"] == pytest.approx(embed_pca(views[0].features)[1].tolist())
    assert [row["explained"] is None for row in numbers[:3]] == [True, False, True]
    assert [row["knn_accuracy"] for row in numbers[3:6]] == [pytest.approx(1 / 3)] * 3
    assert numbers[0]["silhouette"] > 0.5 > numbers[6]["silhouette"]


def test_the_picture_says_what_it_shows(pictured):
    svg, numbers, _ = pictured
    shown = texts(svg)
    assert shown.count("t-SNE 1, perplexity 12") == 3
    for name in ("normal (20)", "_sick (20)", "<b> (20)", 'Latent space of "x" & <y>', "good", "xxxxxxxxxxxx…xxxxx-somewhere-resnet50"):
        assert name in shown
    assert f"PC 1, {numbers[1]['explained'][0]:.0%} of the variance" in shown
    assert f"features: silhouette .{100 * numbers[0]['silhouette']:.0f}, 5-NN accuracy 1.00 (guessing .33)" in shown
    assert shown.count("silhouette .00, 5-NN accuracy .33 (guessing .33)") == 2
    points = re.findall(r"<use ", svg)
    assert len(points) >= 6 * 60


def test_panels_of_a_row_share_their_axes(pictured):
    shown = [text.replace("\N{MINUS SIGN}", "-") for text in texts(pictured[0])]
    ticks = "|".join(text for text in shown if re.fullmatch(r"-?[\d.]+|t-SNE 2|PC 2,.*", text))
    panels = [panel.strip("|") for panel in re.split(r"PC 2,[^|]*|t-SNE 2", ticks)][:6]
    assert len(panels[0].split("|")) > 4
    assert len(set(panels[:3])) == len(set(panels[3:])) == 1


def test_pictures_repeat_and_many_images_are_drawn_by_seed(pictured):
    svg, numbers, views = pictured
    again, others = latent_picture('Latent space of "x" & <y>', views, ["normal", "_sick", "<b>"], perplexity=12)
    assert (again, others) == (svg, numbers)
    few = latent_picture("few", views, ["a", "b", "c"], perplexity=5, most=30)[1]
    assert {row["images"] for row in few} == {30}


def test_26_classes_look_different():
    features, labels = blobs(9, count=104, width=26, classes=26)
    svg, _ = latent_picture("letters", [View("net", "features", features, labels)], string.ascii_uppercase, perplexity=5)
    shapes = {key: re.sub(r"\s+", " ", path) for key, path in re.findall(r'<path id="(m[0-9a-f]+)" d="([^"]*)"', svg)}
    uses = re.findall(r'<g clip-path="[^"]*" style="fill: ([^;]*);[^"]*"><use xlink:href="#(m[0-9a-f]+)"', svg)
    assert len(uses) == 52
    assert len({(colour, shapes[marker]) for colour, marker in uses}) == 26
    assert {f"{letter} (4)" for letter in string.ascii_uppercase} <= set(texts(svg))


def test_views_of_other_images_and_no_views_are_refused():
    features, labels = blobs(3)
    with pytest.raises(DataError, match="X: two and one saw images with other labels"):
        latent_picture("X", [View("one", "features", features, labels), View("two", "features", features, 2 - labels)], "abc")
    with pytest.raises(ConfigError, match="at least one model"):
        latent_picture("X", [], "abc")


def test_a_standalone_picture_is_a_whole_file(pictured):
    with Picture('"a" > b') as picture:
        for colour in VARIABLES:
            picture.axes.plot([0, 1], [0, 1], color=colour)
    for svg in (picture.svg, pictured[0]):
        whole = standalone(svg)
        assert "var(" in svg
        assert "var(" not in whole
        root = ElementTree.fromstring(whole.encode())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        left, top, width, height = map(float, root.attrib["viewBox"].split())
        assert (left, top, root.attrib["width"], root.attrib["height"]) == (0, 0, f"{width:g}pt", root.attrib["height"])
        assert float(root.attrib["height"].removesuffix("pt")) == height
        assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "#ffffff"}
        assert "style" not in root.attrib
        assert len(list(root.iter())) == len(list(ElementTree.fromstring(svg).iter())) + 1
    assert all(colour in standalone(picture.svg) for colour in VARIABLES)
    with pytest.raises(ValueError, match="no viewBox"):
        standalone("<svg></svg>")


def test_a_standalone_picture_gets_the_names_it_lacks():
    bare = '<svg viewBox="0 0 20 10"><text>var(--unknown)</text></svg>'
    assert ElementTree.fromstring(standalone(bare).encode()).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(--unknown)" in standalone(bare)

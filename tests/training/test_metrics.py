"""Metrics against scikit-learn, against medmnist's own evaluator, and where nothing can be measured."""

import time

import numpy as np
import pytest
from medmnist.evaluator import getACC, getAUC
from sklearn import metrics as reference

from tlray.config import LOWER_IS_BETTER, RECONSTRUCTION, Config
from tlray.errors import ConfigError
from tlray.registry import METRICS
from tlray.training.metrics import ORDINAL_ONLY, evaluate, monitor_value

MEDMNIST = {
    "binary": "binary-class",
    "multiclass": "multi-class",
    "ordinal": "ordinal-regression",
    "multilabel": "multi-label, binary-class",
}


def draw(kind, count=300, classes=5, seed=0):
    """(probabilities, labels) that agree somewhat, with ties among the probabilities."""
    random = np.random.default_rng(seed)
    if kind == "multilabel":
        labels = (random.random((count, classes)) < np.linspace(0.1, 0.6, classes)).astype(np.uint8)
        return np.round(np.clip(0.3 * labels + 0.7 * random.random(labels.shape), 0, 1), 2), labels
    classes = 2 if kind == "binary" else classes
    labels = random.choice(classes, count, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    logits = np.round(np.eye(classes)[labels] + random.normal(0, 1, (count, classes)), 1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels.astype(np.int64)


def test_every_metric_of_a_kind_is_measured():
    for kind in MEDMNIST:
        measured = set(evaluate(kind, *draw(kind)))
        assert measured == set(METRICS.names()) - set(RECONSTRUCTION) - (set() if kind == "ordinal" else set(ORDINAL_ONLY))
        assert all(np.isfinite(value) for value in evaluate(kind, *draw(kind)).values())


def test_metrics_that_are_better_when_lower_are_all_registered():
    assert set(METRICS.names()) >= LOWER_IS_BETTER
    assert [Config(monitor=name).minimise for name in ("loss", "ece", "auroc", "auroc+accuracy")] == [True, True, False, False]


@pytest.mark.parametrize("kind", MEDMNIST)
@pytest.mark.parametrize("seed", range(3))
def test_medmnist_figures_are_those_of_its_evaluator(kind, seed):
    probabilities, labels = draw(kind, seed=seed)
    measured = evaluate(kind, probabilities, labels, threshold=0.3)
    column = labels if kind == "multilabel" else labels[:, None]
    assert measured["medmnist_auc"] == pytest.approx(getAUC(column, probabilities, MEDMNIST[kind]), abs=1e-9)
    assert measured["medmnist_acc"] == pytest.approx(getACC(column, probabilities, MEDMNIST[kind]), abs=1e-9)


def expected_one_by_one(truth, scores, threshold=0.5):
    """scikit-learn's figures of one yes-or-no question."""
    said = scores > threshold
    negatives = said[truth == 0]
    return {
        "balanced_accuracy": reference.balanced_accuracy_score(truth, said),
        "f1": reference.f1_score(truth, said, zero_division=0),
        "precision": reference.precision_score(truth, said, zero_division=0),
        "recall": reference.recall_score(truth, said),
        "specificity": 1 - negatives.mean(),
        "auroc": reference.roc_auc_score(truth, scores),
        "average_precision": reference.average_precision_score(truth, scores),
    }


@pytest.mark.parametrize("threshold", [0.5, 0.27])
def test_binary_is_scikit_learns_of_class_1(threshold):
    probabilities, labels = draw("binary")
    scores = probabilities[:, 1]
    expected = expected_one_by_one(labels, scores, threshold)
    expected["accuracy"] = reference.accuracy_score(labels, scores > threshold)
    expected["loss"] = reference.log_loss(labels, scores)
    measured = evaluate("binary", probabilities, labels, threshold)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
def test_classes_are_scikit_learns_macro(kind):
    probabilities, labels = draw(kind)
    predicted = probabilities.argmax(axis=1)
    confusion = reference.multilabel_confusion_matrix(labels, predicted)
    expected = {
        "loss": reference.log_loss(labels, probabilities),
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "f1": reference.f1_score(labels, predicted, average="macro"),
        "precision": reference.precision_score(labels, predicted, average="macro"),
        "recall": reference.recall_score(labels, predicted, average="macro"),
        "specificity": (confusion[:, 0, 0] / confusion[:, 0].sum(axis=1)).mean(),
        "auroc": reference.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "average_precision": reference.average_precision_score(np.eye(5)[labels], probabilities),
    }
    if kind == "ordinal":
        expected["mae"] = reference.mean_absolute_error(labels, predicted)
        expected["quadratic_kappa"] = reference.cohen_kappa_score(labels, predicted, weights="quadratic")
    measured = evaluate(kind, probabilities, labels)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.5, [0.2, 0.4, 0.5, 0.6, 0.3]])
def test_findings_are_averaged_one_by_one(threshold):
    probabilities, labels = draw("multilabel")
    thresholds = np.broadcast_to(threshold, 5)
    each = [expected_one_by_one(labels[:, k], probabilities[:, k], thresholds[k]) for k in range(5)]
    expected = {name: np.mean([one[name] for one in each]) for name in each[0]}
    expected["accuracy"] = ((probabilities > thresholds) == labels).mean()
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    expected["loss"] = np.mean([reference.log_loss(labels[:, k], clipped[:, k]) for k in range(5)])
    measured = evaluate("multilabel", probabilities, labels, threshold)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_findings_without_both_values_are_left_out_of_macro_averages():
    probabilities, labels = draw("multilabel")
    labels = np.column_stack([labels, np.zeros(300, np.uint8), np.ones(300, np.uint8)])
    wider = np.column_stack([probabilities, np.full((300, 2), 0.9)])
    few, many = evaluate("multilabel", probabilities, labels[:, :5]), evaluate("multilabel", wider, labels)
    for name in ("auroc", "average_precision", "f1", "precision", "recall", "specificity", "balanced_accuracy"):
        assert many[name] == few[name]
    assert np.isnan(many["medmnist_auc"])
    none_left = evaluate("multilabel", wider[:, 5:], labels[:, 5:])
    assert np.isnan([none_left["auroc"], none_left["f1"]]).all()
    assert np.isfinite([none_left["loss"], none_left["accuracy"], none_left["ece"]]).all()


def test_a_class_that_does_not_occur_is_left_out():
    probabilities, labels = draw("multiclass")
    padded = np.column_stack([probabilities, np.zeros(300)])
    few, many = evaluate("multiclass", probabilities, labels), evaluate("multiclass", padded, labels)
    assert np.isnan(many.pop("medmnist_auc"))
    assert many == pytest.approx({name: few[name] for name in many}, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_a_split_of_one_class_has_what_can_be_measured(label):
    probabilities = draw("binary")[0]
    measured = evaluate("binary", probabilities, np.full(300, label))
    said = (probabilities[:, 1] > 0.5).mean()
    known, unknown = ("recall", "specificity") if label else ("specificity", "recall")
    assert measured[known] == pytest.approx(said if label else 1 - said)
    assert np.isnan([measured[unknown], measured["auroc"], measured["average_precision"]]).all()


def test_ece_of_bins_counted_by_hand():
    # confidences .9 (two of three right) and .6 (one of one right): (3 |.9 - 2/3| + |.6 - 1|) / 4
    probabilities = np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
    measured = evaluate("binary", probabilities, np.array([1, 0, 0, 1]))
    assert measured["ece"] == pytest.approx((3 * abs(0.9 - 2 / 3) + 0.4) / 4)
    findings = np.array([[0.9], [0.9], [0.2], [0.2]])
    measured = evaluate("multilabel", findings, np.array([[1], [0], [0], [0]]))
    assert measured["ece"] == pytest.approx((2 * 0.4 + 2 * 0.2) / 4)


def test_certain_and_wrong_is_finite():
    measured = evaluate("binary", np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 0]))
    assert measured["loss"] == pytest.approx(-np.log(1e-12))
    assert measured["auroc"] == 0


@pytest.mark.parametrize("kind", MEDMNIST)
def test_probabilities_that_are_not_finite_measure_nothing(kind):
    probabilities, labels = draw(kind)
    names = set(evaluate(kind, probabilities, labels))
    probabilities[3, 1] = np.nan
    measured = evaluate(kind, probabilities, labels)
    assert set(measured) == names
    assert np.isnan(list(measured.values())).all()


def test_monitor_averages_what_it_names():
    assert monitor_value({"auroc": 0.9, "accuracy": 0.7}, "auroc") == 0.9
    assert monitor_value({"auroc": 0.9, "accuracy": 0.7}, "auroc+accuracy") == pytest.approx(0.8)
    with pytest.raises(ConfigError, match="mae is not measured"):
        monitor_value(evaluate("binary", *draw("binary")), "mae")


def test_a_validation_split_of_600_takes_milliseconds():
    probabilities, labels = draw("binary", count=600)
    evaluate("binary", probabilities, labels)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        evaluate("binary", probabilities, labels)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.015

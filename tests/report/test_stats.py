"""Intervals and tests against the definitions they claim, against scipy, and against a bootstrap written the slow way."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tlray.config import RECONSTRUCTION
from tlray.models.kinds import KINDS
from tlray.registry import METRICS
from tlray.report.resampled import RESAMPLED
from tlray.report.stats import bootstrap, holm, paired_t, rescale, t_interval
from tlray.training.metrics import evaluate

CASES = [("binary", 2, 0.3), ("multiclass", 5, 0.5), ("ordinal", 4, 0.5), ("multilabel", 3, [0.2, 0.5, 0.7])]


@pytest.mark.parametrize(("kind", "classes", "threshold"), CASES)
def test_point_values_are_those_of_evaluate(make_sample, kind, classes, threshold):
    probabilities, labels = make_sample(kind, classes, 300, 1)
    probabilities = probabilities.round(2)  # ties
    expected = evaluate(kind, probabilities, labels, threshold)
    found = bootstrap(kind, probabilities, labels, list(expected), resamples=20, threshold=threshold)
    assert {name: each["value"] for name, each in found.items()} == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(("kind", "classes", "threshold"), CASES)
def test_every_resample_is_evaluated_as_evaluate_would(make_sample, kind, classes, threshold):
    """One resample drawn by hand: weights of draws give what the drawn images themselves give."""
    probabilities, labels = make_sample(kind, classes, 120, 2)
    drawn = np.random.default_rng(3).integers(0, 120, 120)
    from tlray.report.resampled import Resampled

    counts = np.bincount(drawn, minlength=120)[None].astype(float)
    expected = evaluate(kind, probabilities[drawn], labels[drawn], threshold)
    resampled = Resampled(kind, probabilities, labels, counts, threshold)
    found = {name: float(RESAMPLED[name](resampled)[0]) for name in expected}
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_every_registered_metric_of_classes_can_be_resampled():
    assert set(METRICS.names()) - set(RECONSTRUCTION) <= set(RESAMPLED)


def test_intervals_agree_with_a_slow_stratified_bootstrap(make_sample):
    probabilities, labels = make_sample("binary", 2, 200, 4)
    found = bootstrap("binary", probabilities, labels, ["auroc", "accuracy"], resamples=2000)
    random, values = np.random.default_rng(9), []
    for _ in range(1000):
        index = np.concatenate([random.choice(np.flatnonzero(labels == each), (labels == each).sum()) for each in (0, 1)])
        values.append(roc_auc_score(labels[index], probabilities[index, 1]))
    assert [found["auroc"]["low"], found["auroc"]["high"]] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.006)
    assert found["auroc"]["interval"] == "95 % stratified bootstrap over test images"


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Accuracy of a coin that is right 8 times in 10, 300 data sets of 200 images: 95 % within what chance allows."""
    random, covered = np.random.default_rng(0), 0
    for seed in range(300):
        labels = random.permutation(np.arange(200) % 2)
        right = random.random(200) < 0.8
        score = np.where(right == (labels == 1), 0.9, 0.1)
        found = bootstrap("binary", np.stack([1 - score, score], axis=1), labels, ["accuracy"], resamples=300, seed=seed)["accuracy"]
        covered += found["low"] <= 0.8 <= found["high"]
    assert 0.90 <= covered / 300 <= 0.985


def test_groups_are_drawn_whole_and_widen_the_interval(make_sample):
    probabilities, labels = make_sample("binary", 2, 60, 5)
    repeated, truth = np.repeat(probabilities, 10, axis=0), np.repeat(labels, 10)
    alone = bootstrap("binary", repeated, truth, ["auroc"])["auroc"]
    grouped = bootstrap("binary", repeated, truth, ["auroc"], groups=np.repeat(np.arange(60), 10) * 7)["auroc"]
    patients = bootstrap("binary", probabilities, labels, ["auroc"])["auroc"]
    assert grouped["interval"] == "95 % stratified bootstrap over test groups"
    assert grouped["value"] == pytest.approx(alone["value"])
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])
    assert [grouped["low"], grouped["high"]] == pytest.approx([patients["low"], patients["high"]], abs=0.01)


def test_a_seed_gives_the_same_interval_and_chunks_change_nothing(make_sample, monkeypatch):
    probabilities, labels = make_sample("multilabel", 3, 100, 6)
    once = bootstrap("multilabel", probabilities, labels, ["auroc"], resamples=50)
    assert once == bootstrap("multilabel", probabilities, labels, ["auroc"], resamples=50)
    monkeypatch.setattr("tlray.report.stats.CHUNK", 700)
    assert once == bootstrap("multilabel", probabilities, labels, ["auroc"], resamples=50)


def test_an_unknown_metric_is_named(make_sample):
    with pytest.raises(KeyError, match=r"'aurok' \(did you mean 'auroc'"):
        bootstrap("binary", *make_sample("binary", 2, 20, 0), ["aurok"])


def test_t_interval_equals_scipys():
    values = [0.91, 0.88, 0.93, 0.90]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    found = t_interval(values)
    assert [found["mean"], found["low"], found["high"]] == pytest.approx([0.905, low, high])
    assert found["interval"] == "95 % t-interval over 4 seeds"


def test_one_seed_has_no_interval():
    assert t_interval([0.9]) == {"values": [0.9], "mean": 0.9, "low": None, "high": None, "interval": "no interval from one seed"}


def test_paired_t_equals_scipys():
    a, b = [0.91, 0.88, 0.93, 0.90], [0.89, 0.87, 0.90, 0.91]
    found, test = paired_t(a, b), stats.ttest_rel(a, b)
    interval = test.confidence_interval()
    assert [found["p"], found["low"], found["high"]] == pytest.approx([test.pvalue, interval.low, interval.high])


def test_paired_t_at_its_edges():
    assert paired_t([1, 2], [1, 2])["p"] == 1
    stepped = paired_t([2, 3], [1, 2])
    assert stepped["difference"] == 1
    assert [stepped[name] for name in ("p", "low", "high")] == [None] * 3, "equal steps are no evidence of no spread"
    with pytest.raises(ValueError, match="at least two pairs"):
        paired_t([1], [2])


def test_holm_on_a_worked_example():
    """Steps down from 4 x .005; a later p is never adjusted below an earlier one; nothing above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize(("kind", "outputs"), [("binary", 2), ("multiclass", 4), ("ordinal", 3), ("multilabel", 5)])
def test_rescaled_probabilities_are_those_of_scaled_logits(kind, outputs):
    import torch

    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(50, outputs)) * 2)
    at_one = KINDS[kind].probabilities(logits).numpy()
    expected = KINDS[kind].probabilities(logits / 1.7).numpy()
    assert rescale(kind, at_one, 1.7) == pytest.approx(expected, abs=1e-9)
    assert rescale(kind, expected, 1 / 1.7) == pytest.approx(at_one, abs=1e-9)

"""Temperatures recovered from drawn labels, thresholds against every possible one."""

import numpy as np
import pytest
import torch

from tlray.errors import ConfigError
from tlray.models.kinds import KINDS
from tlray.training.calibration import TEMPERATURES, choose_threshold, fit_temperature, operating_threshold


def draw(kind, count=20_000, classes=4, seed=0):
    """(logits, labels drawn from their probabilities): perfectly calibrated at temperature 1."""
    random, each = torch.Generator().manual_seed(seed), KINDS[kind]
    classes = 2 if kind == "binary" else classes
    logits = 2 * torch.randn(count, each.outputs(classes), generator=random)
    probabilities = each.probabilities(logits)
    if kind == "multilabel":
        return logits, torch.bernoulli(probabilities, generator=random).to(torch.uint8)
    return logits, torch.multinomial(probabilities, 1, generator=random)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_of_scaled_logits_is_recovered(kind, factor):
    logits, labels = draw(kind)
    assert fit_temperature(kind, factor * logits, labels) == pytest.approx(factor, rel=0.05)


def test_arrays_do_as_well_as_tensors():
    logits, labels = draw("binary", count=500)
    assert fit_temperature("binary", logits.numpy(), labels.numpy()) == fit_temperature("binary", logits, labels)


def test_no_temperature_near_by_is_better():
    logits, labels = draw("multiclass", count=200)
    best = fit_temperature("multiclass", 3 * logits, labels)
    losses = [float(torch.nn.functional.cross_entropy(3 * logits.double() / t, labels)) for t in (best, 0.98 * best, 1.02 * best, 1.0)]
    assert min(losses) == losses[0]


def test_the_temperature_stays_in_its_range():
    sure = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    low, high = TEMPERATURES
    assert low <= fit_temperature("binary", sure, torch.tensor([1, 0])) < 1.2 * low
    assert 0.99 * high < fit_temperature("binary", sure, torch.tensor([0, 1])) <= high


def test_logits_that_say_nothing_leave_the_temperature_at_one():
    assert fit_temperature("multiclass", torch.zeros(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])) == 1.0


def rates(labels, scores, threshold):
    said = scores > threshold
    return said[labels == 1].mean(), (~said[labels == 0]).mean()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", ["youden", "sensitivity@0.95", "sensitivity@0.5", "sensitivity@1"])
def test_no_other_threshold_does_better(seed, rule):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, 80)
    scores = np.round(np.clip(0.25 * labels + random.random(80) * 0.75, 0, 1), 2)

    def merit(threshold):
        sensitivity, specificity = rates(labels, scores, threshold)
        if rule == "youden":
            return round(sensitivity + specificity, 9)
        return (sensitivity, specificity) if specificity >= float(rule.split("@")[1]) else (-1, 0)

    chosen = choose_threshold(labels, scores, rule)
    best = max(merit(threshold) for threshold in np.linspace(0, 1, 2001))
    assert merit(chosen) == best
    assert not np.isclose(scores, chosen).any()
    if rule.startswith("sensitivity"):
        assert rates(labels, scores, chosen)[1] >= float(rule.split("@")[1])


def test_the_threshold_lies_midway_between_neighbours():
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    assert choose_threshold(labels, scores) == pytest.approx(0.4)
    assert choose_threshold(labels, scores, "sensitivity@0.95") == pytest.approx(0.4)


def test_among_equally_good_thresholds_the_one_nearest_to_a_half_is_taken():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.2, 0.45, 0.6, 0.9])
    # .325 and .75 both have sensitivity + specificity of 1.5
    assert choose_threshold(labels, scores) == pytest.approx(0.325)


def test_scores_with_nothing_between_them_are_still_told_apart():
    low = 0.5
    high = np.nextafter(low, 1)
    assert choose_threshold(np.array([0, 1]), np.array([low, high])) == low
    low, high = high, np.nextafter(high, 1)
    assert choose_threshold(np.array([0, 1]), np.array([low, high])) == low


def test_scores_without_order_keep_the_threshold_in_range():
    for value in (0.0, 0.3, 1.0):
        assert 0 <= choose_threshold(np.array([0, 1]), np.full(2, value)) <= 1
    assert 0 <= choose_threshold(np.array([0, 1]), np.array([1.0, 0.0])) <= 1


@pytest.mark.parametrize("label", [0, 1])
def test_labels_of_one_value_leave_a_half(label):
    assert choose_threshold(np.full(5, label), np.linspace(0, 1, 5)) == 0.5


@pytest.mark.parametrize("rule", ["yuden", "sensitivity@", "sensitivity@95", "sensitivity@1.5"])
def test_an_unknown_rule_is_refused(rule):
    with pytest.raises(ConfigError, match="threshold rule"):
        choose_threshold(np.array([0, 1]), np.array([0.1, 0.9]), rule)


def test_operating_thresholds_by_kind():
    labels = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.2, 0.6, 0.9])
    assert operating_threshold("binary", np.stack([1 - scores, scores], axis=1), labels) == pytest.approx(0.4)
    two = operating_threshold("multilabel", np.stack([scores, 1 - scores], axis=1), np.stack([labels, 1 - labels], axis=1))
    assert two == pytest.approx([0.4, 0.6])
    assert operating_threshold("multiclass", np.eye(4), np.arange(4)) is None
    assert operating_threshold("ordinal", np.eye(4), np.arange(4)) is None

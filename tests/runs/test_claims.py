"""Verdicts follow from intervals: holds, does not hold, cannot be told apart."""

import numpy as np
import pytest

from tlray.report.stats import paired_t
from tlray.runs.claims import FAILS, HOLDS, OPEN, apart, differs, said, same, together, within_family

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.normal(0, 0.001, 6)
BASE = np.linspace(0.8, 0.85, 6)


def row(shift: float, noise: float = 1.0) -> dict:
    return apart("accuracy", ("new", "old"), (BASE + shift + noise * NOISE).tolist(), BASE.tolist())


def test_a_clear_difference_holds_in_its_direction_and_fails_in_the_other():
    assert differs(row(0.1), "higher") == HOLDS
    assert differs(row(0.1), "lower") == FAILS
    assert differs(row(-0.1), "lower") == HOLDS
    assert same(row(0.1)) == FAILS


def test_noise_leaves_it_open():
    loud = row(0.01, noise=100)
    assert differs(loud, "higher") == differs(loud, "lower") == same(loud) == OPEN


def test_within_the_margin_is_the_same_even_when_significant():
    close = row(0.005)
    assert close["verdict"] == "higher"
    assert same(close) == HOLDS
    assert same(close, margin=0.001) == FAILS
    assert same(close, margin=0.005) == OPEN, "a real difference that may lie on either side of the margin"


def test_one_pair_is_never_told_apart():
    single = apart("accuracy", ("new", "old"), [0.9], [0.1])
    assert single["difference"] == pytest.approx(0.8)
    assert differs(single, "higher") == same(single) == OPEN
    assert said(single) == "accuracy, new minus old +0.800"


def test_equal_steps_in_few_trainings_are_no_evidence():
    """Accuracy moves in steps of one image: the same step twice says nothing about the spread."""
    stepped = apart("accuracy", ("new", "old"), [0.75, 0.5], [0.5, 0.25])
    assert stepped["p"] is None
    assert differs(stepped, "higher") == same(stepped) == OPEN
    equal = apart("accuracy", ("new", "old"), [0.75, 0.5], [0.75, 0.5])
    assert (equal["p"], same(equal)) == (1.0, HOLDS)


def test_a_family_adjusts_its_p_values():
    rows = [row(0.002, noise=2), row(0.003, noise=3)]
    alone = [paired_t((BASE + s + n * NOISE).tolist(), BASE.tolist())["p"] for s, n in ((0.002, 2), (0.003, 3))]
    adjusted = sorted(each["p_holm"] for each in within_family(rows))
    assert adjusted[0] == pytest.approx(2 * min(alone))
    weak = apart("x", ("a", "b"), [0.01, 0.02, 0.03, 0.05], [0.0] * 4)
    assert 0.04 < weak["p"] < 0.05
    assert weak["verdict"] == within_family([weak])[0]["verdict"] == "higher"
    assert [each["verdict"] for each in within_family([weak, row(0.0, noise=50)])] == [OPEN, OPEN]


def test_a_claim_of_several_parts_falls_with_one_of_them():
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, OPEN]) == OPEN
    assert together([OPEN, FAILS, HOLDS]) == FAILS

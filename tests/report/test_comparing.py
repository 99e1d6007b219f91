"""Statistics of comparisons against the definitions they claim, against scipy, and against a bootstrap written the slow way."""

import numpy as np
import pytest
from scipy import stats

from tlray.report.comparing import bootstrap_difference, compare_arms, conclusion, corrected_t_interval, equivalent
from tlray.report.stats import Draws, Spread, bootstrap, mean_spreads, paired_t, t_interval
from tlray.training.metrics import evaluate

CASES = [("binary", 2, 0.3), ("multiclass", 5, 0.5), ("ordinal", 4, 0.5), ("multilabel", 3, [0.2, 0.5, 0.7])]
VALUES = [0.91, 0.88, 0.93, 0.90, 0.92, 0.89]


def trainings(make_sample, kind, classes, count, images=150):
    """Probabilities of `count` trainings on the same images, and their labels."""
    first, labels = make_sample(kind, classes, images, 1)
    random, given = np.random.default_rng(5), [first]
    for _ in range(count - 1):
        mixed = 0.7 * first + 0.3 * first[random.permutation(images)]
        given.append(mixed)
    return given, labels


def means(kind, probabilities, labels, metrics, resamples=1000, seed=0, thresholds=None):
    """The intervals of the means over trainings, as `bootstrap` gives them for one."""
    spreads = mean_spreads(Draws(kind, labels, resamples, seed), probabilities, metrics, thresholds)
    return {name: spread.summary() for name, spread in spreads.items()}


def test_corrected_interval_by_hand():
    """Nadeau & Bengio: 3 folds x 2 seeds, validation : training = 1 : 2, so s^2 (1/6 + 1/2) and 5 degrees of freedom."""
    mean, variance = sum(VALUES) / 6, sum((value - sum(VALUES) / 6) ** 2 for value in VALUES) / 5
    half = stats.t.ppf(0.975, 5) * (variance * (1 / 6 + 1 / 2)) ** 0.5
    found = corrected_t_interval(VALUES, 0.5, folds=3, seeds=2)
    assert [found["mean"], found["low"], found["high"]] == pytest.approx([mean, mean - half, mean + half])
    assert found["values"] == VALUES
    assert found["interval"] == "95 % t-interval over 6 trainings (3 folds x 2 seeds), Nadeau-Bengio corrected"


def test_without_overlap_the_corrected_interval_is_the_plain_one():
    plain, corrected = t_interval(VALUES), corrected_t_interval(VALUES, 0.0, folds=6, seeds=1)
    assert [corrected["low"], corrected["high"]] == pytest.approx([plain["low"], plain["high"]])
    assert "(6 folds x 1 seed)" in corrected["interval"]
    assert corrected_t_interval([0.9], 0.5, 1, 1)["low"] is None


def test_corrected_paired_t_by_hand():
    a, b = np.array(VALUES), np.array(VALUES[::-1]) - 0.02
    t = (a - b).mean() / ((a - b).std(ddof=1) * (1 / 6 + 0.25) ** 0.5)
    found = paired_t(a.tolist(), b.tolist(), test_share=0.25)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 5))
    assert found["p"] > paired_t(a.tolist(), b.tolist())["p"]
    assert "Nadeau-Bengio" in found["interval"]


@pytest.mark.parametrize(("kind", "classes", "threshold"), CASES)
def test_of_one_training_it_is_the_bootstrap(make_sample, kind, classes, threshold):
    probabilities, labels = make_sample(kind, classes, 120, 2)
    names = list(evaluate(kind, probabilities, labels))
    alone = bootstrap(kind, probabilities, labels, names, resamples=50, threshold=threshold)
    assert means(kind, [probabilities], labels, names, resamples=50, thresholds=[threshold]) == alone


@pytest.mark.parametrize(("kind", "classes", "threshold"), CASES)
def test_the_mean_of_trainings_is_the_mean_in_every_resample(make_sample, kind, classes, threshold):
    given, labels = trainings(make_sample, kind, classes, 3)
    names = list(evaluate(kind, given[0], labels))
    draws = Draws(kind, labels, 20)
    found = mean_spreads(draws, given, names, [threshold] * 3)
    each = [mean_spreads(draws, [one], names, [threshold]) for one in given]
    for name in names:
        assert found[name].value == pytest.approx(np.mean([evaluate(kind, one, labels, threshold)[name] for one in given]), nan_ok=True)
        expected = np.mean([one[name].resamples for one in each], axis=0)
        assert found[name].resamples == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert found[name].interval.endswith("bootstrap over test images, of the mean over 3 trainings")


def test_what_is_asked_wrongly_is_refused(make_sample):
    probabilities, labels = make_sample("binary", 2, 20, 0)
    with pytest.raises(KeyError, match=r"'aurok' \(did you mean 'auroc'"):
        means("binary", [probabilities], labels, ["aurok"])
    with pytest.raises(ValueError, match="at least one training"):
        means("binary", [], labels, ["auroc"])
    with pytest.raises(ValueError, match="use one Draws"):
        bootstrap_difference(Spread(0.9, np.zeros(10), ""), Spread(0.9, np.zeros(20), ""))


def test_a_difference_on_the_same_images_is_narrower_than_its_parts(make_sample):
    """Two arms that err on nearly the same images differ by little, however hard the images are."""
    probabilities, labels = make_sample("binary", 2, 200, 3)
    nudged = np.clip(probabilities + [0.01, -0.01], 0, 1)
    draws = Draws("binary", labels, 500)
    a, b = (mean_spreads(draws, [each], ["accuracy"])["accuracy"] for each in (probabilities, nudged))
    found, part = bootstrap_difference(a, b), a.summary()
    assert found["value"] == pytest.approx(a.value - b.value)
    assert found["high"] - found["low"] < 0.5 * (part["high"] - part["low"])


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    """Three trainings, right 8 times in 10 each, on 200 images; 200 data sets: 95 % within what chance allows."""
    random, covered = np.random.default_rng(1), 0
    for seed in range(200):
        labels = random.permutation(np.arange(200) % 2)
        scores = [np.where((random.random(200) < 0.8) == (labels == 1), 0.9, 0.1) for _ in range(3)]
        given = [np.stack([1 - score, score], axis=1) for score in scores]
        found = means("binary", given, labels, ["accuracy"], resamples=200, seed=seed)["accuracy"]
        covered += found["low"] <= 0.8 <= found["high"]
    assert 0.89 <= covered / 200 <= 0.99


def spread(value: float, half: float = 0.01) -> Spread:
    return Spread(value, value + np.linspace(-half, half, 101) * np.where(np.arange(101) % 2, 1, -1), "95 % bootstrap over test images")


def test_arms_are_told_apart_by_both_kinds_of_noise():
    values = {
        "base": [0.80, 0.81, 0.79, 0.80, 0.80],
        "better": [0.90, 0.915, 0.89, 0.90, 0.91],
        "worse": [0.70, 0.712, 0.69, 0.70, 0.69],
        "noisy seeds": [0.95, 0.70, 0.99, 0.80, 0.81],
        "few images": [0.90, 0.915, 0.89, 0.90, 0.91],
    }
    means = {arm: float(np.mean(each)) for arm, each in values.items()}
    spreads = {arm: spread(mean) for arm, mean in means.items()}
    spreads["few images"] = Spread(0.9, np.linspace(0.7, 1.0, 101), "95 % bootstrap over test images")
    pairs = [(arm, "base") for arm in list(values)[1:]]
    found = {row["arm"]: row for row in compare_arms("auroc", pairs, values, spreads)}
    verdicts = {arm: row["verdict"] for arm, row in found.items()}
    assert verdicts == {
        "better": "higher", "worse": "lower", "noisy seeds": "cannot be told apart", "few images": "cannot be told apart",
    }  # fmt: skip
    assert found["few images"]["p_holm"] < 0.05
    assert found["noisy seeds"]["test_low"] > 0
    assert found["better"]["p"] == pytest.approx(stats.ttest_rel(values["better"], values["base"]).pvalue)
    assert all(row["p_holm"] >= row["p"] for row in found.values())
    assert {"metric", "against", "difference", "low", "high", "pairs", "interval", "test_high", "test_interval"} <= set(found["better"])


def test_trainings_that_failed_drop_out_of_their_pairs():
    values = {"a": [0.9, None, 0.92, 0.93], "b": [0.8, 0.81, float("nan"), 0.82], "c": [0.7, None, None, None]}
    spreads = {arm: spread(0.8) for arm in values}
    first, second = compare_arms("auroc", [("a", "b"), ("a", "c")], values, spreads)
    assert first["pairs"] == 2
    assert first["difference"] == pytest.approx((0.1 + 0.11) / 2)
    assert [second[name] for name in ("pairs", "p", "p_holm", "low", "verdict")] == [1, None, None, None, "cannot be told apart"]
    with pytest.raises(ValueError, match="inhomogeneous"):
        compare_arms("auroc", [("a", "b")], {"a": [0.9, 0.8], "b": [0.9]}, spreads)


def row(arm: str, verdict: str, difference: float = 0.05, metric: str = "auroc", against: str = "base") -> dict:
    edges = {"low": difference - 0.02, "high": difference + 0.02, "test_low": difference - 0.03, "test_high": difference + 0.03}
    return {"metric": metric, "arm": arm, "against": against, "difference": difference, "verdict": verdict, **edges}


def test_equivalence_needs_both_intervals_within_the_margin():
    close = row("a", "cannot be told apart", 0.0)
    assert equivalent(close, 0.03) == "equal"
    assert equivalent(close, 0.025) == "cannot be told apart"
    assert equivalent(close | {"low": None, "high": None}, 0.5) == "cannot be told apart"
    assert equivalent(row("a", "higher", 0.05), 0.06) == "higher"


def test_conclusions_say_what_may_not_be_concluded():
    apart, alike = row("a", "higher"), row("b", "cannot be told apart", 0.01)
    assert conclusion([apart, row("a", "lower", metric="f1")], "auroc", 5, 1624) == (
        "Over 5 seeds and 1,624 test images, test AUROC is higher for a than for base by 0.050 (95 % 0.030 to 0.070 over trainings,"
        " 0.020 to 0.080 over test images); nothing may be concluded beyond this test split."
    )
    some = conclusion([apart, alike, row("c", "lower", -0.1)], "auroc", 5, 624)
    assert "compared with base, test AUROC is lower for c by 0.100 (95 % 0.080 to 0.120 over trainings" in some
    assert "b and base cannot be told apart, which is no evidence that they are equal; nothing may be concluded beyond" in some
    none = conclusion([alike, row("c", "cannot be told apart")], "auroc", 5, {"x": 624, "y": 156}, folds=4)
    assert none.startswith("Over 20 trainings (4 folds x 5 seeds) and 624 test images of x and 156 test images of y, ")
    assert "all 2 pairs of arms cannot be told apart in test AUROC, which is no evidence that they are equal" in none
    assert "b and base differ in test AUROC by no more than the margin" in conclusion([row("b", "equal")], "auroc", 5, 624)
    many = conclusion([row(f"arm {k}", "higher", 0.05 + k / 100) for k in range(9)], "auroc", 5, 624)
    assert many.index("arm 8") < many.index("arm 7") < many.index("6 more pairs are told apart by less")
    for text in (some, none, many):
        assert text.count(". ") == 0
        assert text.endswith(".")


def test_conclusions_without_pairs_and_from_one_seed():
    assert "no arms were compared, so nothing may be concluded" in conclusion([], "auroc", 5, 624)
    one = conclusion([row("a", "cannot be told apart"), row("b", "cannot be told apart")], "auroc", 1, 624)
    assert one.startswith("With one seed nothing is known of the noise of training, so nothing may be concluded from any of the 2")

"""Statistics of comparisons: arms told apart by two kinds of noise - of training (seeds, folds) and of the test images - or not.

Figures are means over an arm's trainings. Seeds and test images are shared by all arms, so both intervals of a difference are paired.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from tlray.report.stats import Spread, holm, paired_t, standard_error, t_interval
from tlray.report.style import nice

LEVEL = 0.05
"""Holm-adjusted p below which training noise is ruled out."""
NAMED = 3
"""Differences that the conclusion names one by one."""
APART, ALIKE, EQUAL = ("higher", "lower"), "cannot be told apart", "equal"


def corrected_t_interval(values: Sequence[float], test_share: float, folds: int, seeds: int) -> dict[str, Any]:
    """Mean of folds x seeds trainings with the 95 % t-interval that allows for their overlapping training images.

    The variance of the mean is s^2 (1 / n + test_share), not s^2 / n. Of the same shape as `t_interval`; one value has no interval.

    Args:
        values: one number per training, n of them.
        test_share: validation images of a fold divided by its training images: 1 / (folds - 1) when they are all used.

    Source: Nadeau & Bengio 2003, Machine Learning 52:239-281.
    """
    result, count = t_interval(values), len(values)
    if count < 2:
        return result | {"interval": "no interval from one training"}
    half = float(stats.t.ppf(0.975, count - 1)) * standard_error(np.asarray(values, np.float64), test_share)
    what = f"95 % t-interval over {count} trainings ({folds} folds x {seeds} seed{'s' * (seeds != 1)}), Nadeau-Bengio corrected"
    return result | {"low": result["mean"] - half, "high": result["mean"] + half, "interval": what}


def bootstrap_difference(a: Spread, b: Spread) -> dict[str, Any]:
    """The difference a - b on the same resampled test images: {"value", "low", "high", "interval"}.

    Both must come from the same `Draws`. Raises ValueError when they have unequal numbers of resamples.
    """
    if a.resamples.shape != b.resamples.shape:
        raise ValueError(f"spreads of {a.resamples.size} and {b.resamples.size} resamples are not of the same images: use one Draws")
    return Spread(a.value - b.value, a.resamples - b.resamples, a.interval).summary()


def compare_arms(
    metric: str,
    pairs: Sequence[tuple[str, str]],
    values: Mapping[str, Sequence[float | None]],
    spreads: Mapping[str, Spread],
    test_share: float | None = None,
) -> list[dict[str, Any]]:
    """Each pair (arm, what it is compared with) on one metric: paired t over trainings, bootstrap over test images, Holm over the pairs.

    A pair is "higher" or "lower" only when the Holm-adjusted p is below .05 and the interval of the test images excludes 0 on the
    same side. Trainings that are None or NaN in one arm drop out of its pairs; fewer than two pairs give no p.

    Args:
        values: arm -> the metric of its trainings, in the same order of seeds (and folds) for all arms.
        spreads: arm -> the metric's spread, all of the same `Draws`.
        test_share: for cross-validated trainings, see `corrected_t_interval`.

    Returns:
        One dict per pair: "metric", "arm", "against", "difference", "low", "high", "p", "p_holm", "pairs", "interval", "test_low",
        "test_high", "test_interval", "verdict".

    Raises:
        ValueError when two arms of a pair have unequal numbers of trainings.
    """
    found = []
    for arm, against in pairs:
        noise = bootstrap_difference(spreads[arm], spreads[against])
        entry = {"metric": metric, "arm": arm, "against": against, **_paired(values[arm], values[against], test_share)}
        found.append(entry | {"test_low": noise["low"], "test_high": noise["high"], "test_interval": noise["interval"]})
    tested = [entry for entry in found if entry["p"] is not None]
    for entry, p in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = p
    return [entry | {"verdict": _verdict(entry)} for entry in found]


def _paired(a: Sequence[float | None], b: Sequence[float | None], test_share: float | None) -> dict[str, Any]:
    both = np.asarray([a, b], np.float64)  # raises ValueError for unequal lengths; None becomes NaN
    both = both[:, np.isfinite(both).all(axis=0)]
    if both.shape[1] > 1:
        return paired_t(both[0].tolist(), both[1].tolist(), test_share) | {"p_holm": None}
    difference = float(both[0, 0] - both[1, 0]) if both.shape[1] else None
    nothing = dict.fromkeys(("low", "high", "p", "p_holm"))
    return {"difference": difference, **nothing, "pairs": both.shape[1], "interval": "no interval from fewer than two pairs"}


def _verdict(entry: Mapping[str, Any]) -> str:
    if entry["p_holm"] is None or entry["p_holm"] >= LEVEL:
        return ALIKE
    if entry["difference"] > 0 and entry["test_low"] > 0:
        return "higher"
    return "lower" if entry["difference"] < 0 and entry["test_high"] < 0 else ALIKE


def equivalent(comparison: Mapping[str, Any], margin: float) -> str:
    """ "equal" when both 95 % intervals of a comparison lie within -margin..margin, else its own verdict.

    Stricter than two one-sided tests at 5 %, which take a 90 % interval (Schuirmann 1987, J Pharmacokinet Biopharm 15:657-680).
    The margin has to be named before the figures are seen.
    """
    edges = [comparison[name] for name in ("low", "high", "test_low", "test_high")]
    return EQUAL if all(edge is not None and abs(edge) <= margin for edge in edges) else comparison["verdict"]


def conclusion(
    comparisons: Sequence[Mapping[str, Any]], metric: str, seeds: int, images: int | Mapping[str, int], folds: int | None = None
) -> str:
    """One sentence that says what may, and what may not, be concluded of the primary metric on the test split.

    Args:
        comparisons: of `compare_arms`; those of other metrics are passed over.
        metric: the primary one.
        seeds: how many every arm was trained with (each over all folds, if there are folds).
        images: of the test split, or {task: images}.
    """
    rows, name = [row for row in comparisons if row["metric"] == metric], f"test {nice(metric)}"
    trainings = seeds * (folds or 1)
    over = (
        f"{seeds} seed{'s' * (seeds != 1)}"
        if folds is None
        else f"{trainings} trainings ({folds} folds x {seeds} seed{'s' * (seeds != 1)})"
    )
    over += f" and {_images(images)}"
    if not rows:
        return f"Over {over}, no arms were compared, so nothing may be concluded about differences in {name} between arms."
    if trainings < 2:
        one = "the comparison" if len(rows) == 1 else f"any of the {len(rows)} comparisons"
        return (
            f"With one seed nothing is known of the noise of training, so nothing may be concluded from {one} of {name} on"
            f" {_images(images)}: repeat it with several seeds."
        )
    apart = sorted((row for row in rows if row["verdict"] in APART), key=lambda row: -abs(row["difference"]))
    equal, rest = ([row for row in rows if row["verdict"] == verdict] for verdict in (EQUAL, ALIKE))
    shared = rows[0]["against"] if len(rows) > 1 and len({row["against"] for row in rows}) == 1 else None
    clauses = [f"{name} is " + "; ".join(_told(row, shared) for row in apart[:NAMED])] if apart else []
    if len(apart) > NAMED:
        clauses.append(f"{len(apart) - NAMED} more pairs are told apart by less (see the table)")
    if equal:
        clauses.append(f"{_pairs('', equal)} differ in {name} by no more than the margin")
    if rest:
        where = "" if apart else f" in {name}"
        whole = "all" if len(rest) == len(rows) else "the other"
        clauses.append(f"{_pairs(whole, rest)} cannot be told apart{where}, which is no evidence that they are equal")
    compared = "" if shared is None else f"compared with {shared}, "
    return f"Over {over}, {compared}{'; '.join(clauses)}; nothing may be concluded beyond this test split."


def _pairs(which: str, some: Sequence[Mapping[str, Any]]) -> str:
    """`A and B`, or `the other 3 pairs of arms`."""
    return f"{some[0]['arm']} and {some[0]['against']}" if len(some) == 1 else f"{which} {len(some)} pairs of arms".strip()


def _images(images: int | Mapping[str, int]) -> str:
    if not isinstance(images, Mapping):
        return f"{images:,} test images"
    if len(images) == 1:
        return _images(next(iter(images.values())))
    return " and ".join(f"{count:,} test images of {task}" for task, count in images.items())


def _told(row: Mapping[str, Any], shared: str | None) -> str:
    """`higher for A than for B by 0.031 (95 % 0.012 to 0.050 over trainings, 0.008 to 0.055 over test images)`."""
    sign = 1 if row["verdict"] == "higher" else -1
    edges = [sorted((sign * row[low], sign * row[high])) for low, high in (("low", "high"), ("test_low", "test_high"))]
    (low, high), (test_low, test_high) = edges
    than = "" if shared is not None else f" than for {row['against']}"
    return (
        f"{row['verdict']} for {row['arm']}{than} by {sign * row['difference']:.3f}"
        f" (95 % {low:.3f} to {high:.3f} over trainings, {test_low:.3f} to {test_high:.3f} over test images)"
    )

"""Verdicts on published claims: holds, does not hold, cannot be told apart - from paired comparisons, with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlray.report.comparing import ALIKE, EQUAL, LEVEL, equivalent
from tlray.report.stats import holm, paired_t
from tlray.report.style import nice

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told apart"
MARGIN = 0.02
"""Difference in a test metric up to which two arms count as equal: half of the range over ten seeds that a public log of 3,200 trainings
shows for one configuration."""


@dataclass(frozen=True)
class Claim:
    """One line of the table of verdicts: the claim's id and words, what was measured, and the verdict."""

    id: str
    claim: str
    measured: str
    verdict: str


def said(row: Mapping[str, Any]) -> str:
    """`AUROC, A minus B +0.012 [-0.003, +0.027], Holm p 0.110`."""
    p = "" if row["p_holm"] is None else f", Holm p {row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else ", Holm p < .001"
    interval = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
    return f"{nice(row['metric'])}, {row['arm']} minus {row['against']} {row['difference']:+.3f}{interval}{p}"


def apart(what: str, arms: tuple[str, str], a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """A comparison of numbers that no test image stands behind (gaps, deviations, separabilities), paired over trainings.

    Of the shape that `said`, `differs` and `same` read; a single pair has no interval and is never told apart.
    """
    about = {"metric": what, "arm": arms[0], "against": arms[1], "pairs": len(a)}
    if len(a) < 2:
        empty = dict.fromkeys(("low", "high", "p", "p_holm", "test_low", "test_high"))
        return {**about, **empty, "difference": float(a[0] - b[0]), "verdict": ALIKE}
    found = paired_t(a, b)
    higher = "higher" if found["difference"] > 0 else "lower"
    edges = {"test_low": found["low"], "test_high": found["high"], "p_holm": found["p"]}
    return {**about, **found, **edges, "verdict": higher if found["p"] is not None and found["p"] < LEVEL else ALIKE}


def within_family(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `apart` with their p adjusted for being several (Holm)."""
    tested = [row for row in rows if row["p"] is not None]
    adjusted = dict(zip(map(id, tested), holm([row["p"] for row in tested]), strict=True))
    return [
        row if id(row) not in adjusted else {**row, "p_holm": (p := adjusted[id(row)]), "verdict": row["verdict"] if p < LEVEL else ALIKE}
        for row in rows
    ]


def differs(row: Mapping[str, Any], direction: str) -> str:
    """The verdict on "this arm is higher (or lower) than that one"."""
    return OPEN if row["verdict"] == ALIKE else HOLDS if row["verdict"] == direction else FAILS


def same(row: Mapping[str, Any], margin: float = MARGIN) -> str:
    """The verdict on "these two arms do equally well".

    It holds when both intervals lie within the margin, and falls when both lie beyond it on one side: a difference that is real but
    may be small leaves it open.
    """
    if equivalent(row, margin) == EQUAL:
        return HOLDS
    edges = [(row["low"], row["high"]), (row["test_low"], row["test_high"])]
    if any(low is None for low, _ in edges):
        return OPEN
    return FAILS if all(low > margin for low, _ in edges) or all(high < -margin for _, high in edges) else OPEN


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim with several parts: it holds when all do, and falls with the first that does not."""
    if FAILS in verdicts:
        return FAILS
    return OPEN if OPEN in verdicts else HOLDS

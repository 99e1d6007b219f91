"""What is chosen on validation after training: a temperature that calibrates probabilities, and operating thresholds."""

import math
import re
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_curve

from tlray.errors import ConfigError
from tlray.models.kinds import KINDS

TEMPERATURES = (0.05, 20.0)
"""Range in which the temperature is sought."""


def fit_temperature(kind: str, logits: torch.Tensor | np.ndarray, labels: torch.Tensor | np.ndarray) -> float:
    """The temperature T that minimises the loss of logits / T: Guo et al. 2017, arXiv:1706.04599.

    Args:
        kind: binary, multiclass, multilabel or ordinal.
        logits: float [N, outputs], finite.
        labels: int64 [N], or 0/1 [N, L] for multilabel.

    Within `TEMPERATURES`; 1 where nothing is gained.
    """
    each = KINDS[kind]
    scaled, truth = torch.as_tensor(logits).detach().cpu().double(), torch.as_tensor(labels).cpu()
    targets = each.targets(truth, each.probabilities(scaled).shape[1]).double()

    def loss(log_temperature: float) -> float:
        return float(each.loss_sum(scaled / math.exp(log_temperature), targets)) / max(1, len(scaled))

    low, high = (math.log(bound) for bound in TEMPERATURES)
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if found.fun < loss(0.0) - 1e-12 else 1.0


def choose_threshold(labels: np.ndarray, scores: np.ndarray, rule: str = "youden") -> float:
    """The threshold in 0..1 above which class 1 is called, chosen from the ROC curve.

    Args:
        labels: 0/1 [N].
        scores: probability of class 1, [N].
        rule: `youden` (highest sensitivity + specificity) or `sensitivity@S` (highest sensitivity where specificity is at
            least S, then highest specificity), S in 0..1.

    The threshold lies midway between the lowest score that is called and the highest that is not (0 and 1 stand in at the ends),
    and among equally good ones it is the nearest to .5. Where the labels hold one value only there is nothing to choose: .5.
    Raises ConfigError for an unknown rule.
    """
    found = re.fullmatch(r"youden|sensitivity@(0?\.\d+|0|1|1\.0)", rule)
    if not found:
        raise ConfigError(f"unknown threshold rule {rule!r}: choose from youden, sensitivity@S with S in 0..1 (sensitivity@0.95)")
    if len(np.unique(labels)) < 2:
        return 0.5
    fall_out, sensitivity, lowest_called = roc_curve(labels, np.asarray(scores, np.float64), drop_intermediate=False)
    called = np.minimum(lowest_called, 1.0)  # scikit-learn calls nothing at infinity
    missed = np.append(called[1:], 0.0)
    midway = (called + missed) / 2
    thresholds = np.where(midway < called, midway, missed)  # neighbouring floats have nothing between them
    specificity = 1 - fall_out
    if rule == "youden":
        merit = (np.round(sensitivity + specificity, 12),)
    else:
        allowed = specificity >= float(found[1]) - 1e-12
        merit = (np.where(allowed, np.round(sensitivity, 12), -1), np.round(specificity, 12))
    order = np.lexsort((np.abs(thresholds - 0.5), *(-each for each in reversed(merit))))
    return float(thresholds[order[0]])


def operating_threshold(kind: str, probabilities: np.ndarray, labels: np.ndarray, rule: str = "youden") -> float | list[float] | None:
    """The threshold(s) of a task of this kind: a number (binary), one per finding (multilabel), None where the top class decides.

    Args:
        probabilities: float [N, K].
        labels: int64 [N], or 0/1 [N, K] for multilabel.
    """
    if kind == "binary":
        return choose_threshold(labels, probabilities[:, 1], rule)
    if kind == "multilabel":
        return [choose_threshold(*column, rule) for column in zip(labels.T, probabilities.T, strict=True)]
    return None

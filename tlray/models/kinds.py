"""What a kind of task means for the network: how many outputs, which targets, probabilities and loss.

A loss is summed over images here and divided by `weight_sum` of the global batch where it is used, so uneven shards weigh right.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def softmax_log_probabilities(logits: Tensor) -> Tensor:
    """log P(y = k) from K logits: [N, K] -> [N, K]."""
    return F.log_softmax(_at_least_float32(logits), dim=1)


def continuation_log_probabilities(logits: Tensor) -> Tensor:
    """log P(y = k) from K - 1 logits f_k with P(y > k | y >= k) = sigmoid(f_k): [N, K - 1] -> [N, K].

    A proper likelihood over ordered classes (the conditional probabilities of CORN: Shi et al. 2021, arXiv:2111.08851).
    """
    logits = _at_least_float32(logits)
    reached = F.logsigmoid(logits).cumsum(dim=1)
    return F.pad(reached, (1, 0)) + F.pad(F.logsigmoid(-logits), (0, 1))


@dataclass(frozen=True)
class SingleLabel:
    """One class per image: binary, multiclass and ordinal. N may be 0 everywhere; arithmetic is in float32 at least."""

    name: str
    log_likelihood: Callable[[Tensor], Tensor]
    missing_outputs: int = 0

    def outputs(self, num_classes: int) -> int:
        """Number of logits of the head."""
        return num_classes - self.missing_outputs

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """One-hot float32 [N, K] of labels int64 [N]."""
        return F.one_hot(labels, num_classes).float()

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """log P(y = k): logits [N, outputs] -> float [N, K]."""
        return self.log_likelihood(logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """P(y = k): logits [N, outputs] -> float [N, K] in 0..1; rows sum to 1."""
        return self.log_likelihood(logits).exp()

    def loss_sum(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Sum over images of the (smoothed, class-weighted) cross-entropy, a scalar.

        Args:
            logits: [N, outputs].
            targets: float [N, K], rows sum to 1: one-hot, or soft after mixing images.
            weights: float [K], one per class, or None for ones.
            smoothing: share of the label's weight spread over all classes.

        For softmax equal to torch's `cross_entropy(reduction="sum")`.
        """
        log_probabilities = self.log_likelihood(logits)
        if smoothing:
            targets = targets * (1 - smoothing) + smoothing / targets.shape[1]
        if weights is not None:
            targets = targets * weights
        return -(targets * log_probabilities).sum()

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How many images get their class: logits [N, outputs], labels int64 [N] -> scalar float64."""
        scores = self.log_likelihood(logits) if self.missing_outputs else logits  # a softmax has its largest where the logits have it
        return (scores.argmax(dim=1) == labels).sum(dtype=torch.float64)

    def weight_sum(self, labels: Tensor, weights: Tensor | None = None) -> float:
        """What a summed loss is divided by: N, or the sum of the class weights of labels int64 [N] or soft targets [N, K]."""
        if weights is None:
            return float(len(labels))
        picked = weights[labels] if labels.ndim == 1 else labels * weights
        return float(picked.sum(dtype=torch.float64))

    def balanced_weights(self, labels: np.ndarray, num_classes: int) -> Tensor:
        """Class weights float32 [K], n / (K n_k) for labels int64 [N]; 1 for a class that is absent."""
        counts = np.bincount(labels, minlength=num_classes)
        return torch.from_numpy(_inverse_frequency(counts, len(labels)))


@dataclass(frozen=True)
class MultiLabel:
    """Any number of L findings per image, each its own sigmoid. N may be 0 everywhere; arithmetic is in float32 at least."""

    name: str

    def outputs(self, num_classes: int) -> int:
        """Number of logits of the head."""
        return num_classes

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """float32 [N, L] of labels 0/1 [N, L]."""
        return labels.float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """P(finding l is present): [N, L] -> float [N, L] in 0..1."""
        return torch.sigmoid(_at_least_float32(logits))

    def loss_sum(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Sum over images of the mean over findings of the binary cross-entropy, a scalar.

        Args:
            logits: [N, L].
            targets: float [N, L] in 0..1.
            weights: float [L, 2], of absence and presence of each finding, or None for ones.
            smoothing: how far targets move towards 1/2.
        """
        logits = _at_least_float32(logits)
        present = targets * (1 - smoothing) + smoothing / 2
        absent = 1 - present
        if weights is not None:
            absent, present = absent * weights[:, 0], present * weights[:, 1]
        return -(present * F.logsigmoid(logits) + absent * F.logsigmoid(-logits)).mean(dim=1).sum()

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over images of the share of findings that are right at probability 1/2: [N, L], 0/1 [N, L] -> scalar float64."""
        return ((logits > 0) == (labels > 0)).double().sum() / logits.shape[1]

    def weight_sum(self, labels: Tensor, weights: Tensor | None = None) -> float:
        """What a summed loss is divided by: N, or the sum over images of the mean weight; labels 0/1 or soft [N, L]."""
        if weights is None:
            return float(len(labels))
        picked = torch.lerp(weights[:, 0], weights[:, 1], labels.to(weights.dtype))
        return float(picked.mean(dim=1).sum(dtype=torch.float64))

    def balanced_weights(self, labels: np.ndarray, num_classes: int) -> Tensor:
        """Weights float32 [L, 2] of absence and presence, n / (2 n_lv) for labels 0/1 [N, L]; 1 for a value that is absent."""
        present = labels.sum(axis=0, dtype=np.int64)
        return torch.from_numpy(_inverse_frequency(np.stack([len(labels) - present, present], axis=1), len(labels)))


def _inverse_frequency(counts: np.ndarray, total: int) -> np.ndarray:
    weights = total / (counts.shape[-1] * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 1.0).astype(np.float32)


Kind = SingleLabel | MultiLabel

KINDS: dict[str, Kind] = {
    "binary": SingleLabel("binary", softmax_log_probabilities),
    "multiclass": SingleLabel("multiclass", softmax_log_probabilities),
    "multilabel": MultiLabel("multilabel"),
    "ordinal": SingleLabel("ordinal", continuation_log_probabilities, missing_outputs=1),
}

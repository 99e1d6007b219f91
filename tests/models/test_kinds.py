"""Losses, targets and probabilities of every kind of task against torch and against sums written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tlray.models.kinds import KINDS

SINGLE = ["binary", "multiclass", "ordinal"]
CLASSES = {"binary": 2, "multiclass": 5, "ordinal": 5, "multilabel": 4}


def draw(name, count=7, dtype=torch.float64, seed=0):
    """(kind, logits, labels, number of classes), drawn."""
    random, kind, classes = torch.Generator().manual_seed(seed), KINDS[name], CLASSES[name]
    logits = 3 * torch.randn(count, kind.outputs(classes), generator=random, dtype=torch.float64)
    shape = (count, classes) if name == "multilabel" else (count,)
    labels = torch.randint(0, 2 if name == "multilabel" else classes, shape, generator=random)
    return kind, logits.to(dtype), labels, classes


def test_every_kind_is_there_with_its_outputs():
    assert {name: kind.outputs(CLASSES[name]) for name, kind in KINDS.items()} == {
        "binary": 2,
        "multiclass": 5,
        "multilabel": 4,
        "ordinal": 4,
    }
    assert all(kind.name == name for name, kind in KINDS.items())


@pytest.mark.parametrize("name", ["binary", "multiclass"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_loss_is_torchs_cross_entropy(name, smoothing, weighted):
    kind, logits, labels, classes = draw(name)
    weights = torch.linspace(0.5, 2, classes, dtype=torch.float64) if weighted else None
    theirs = F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
    ours = kind.loss_sum(logits, kind.targets(labels, classes), weights, smoothing)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    mean = F.cross_entropy(logits, labels, weights, label_smoothing=smoothing)
    torch.testing.assert_close(ours / kind.weight_sum(labels, weights), mean, rtol=1e-6, atol=0)


def test_soft_targets_are_torchs_cross_entropy_too():
    kind, logits, labels, classes = draw("multiclass")
    targets = 0.3 * kind.targets(labels, classes) + 0.7 * kind.targets(labels.flip(0), classes)
    torch.testing.assert_close(kind.loss_sum(logits, targets), F.cross_entropy(logits, targets.double(), reduction="sum"))


def test_ordinal_probabilities_are_the_product_of_continuations():
    kind, logits, _, _ = draw("ordinal")
    go = torch.sigmoid(logits)
    expected = torch.stack(
        [
            1 - go[:, 0],
            go[:, 0] * (1 - go[:, 1]),
            go[:, 0] * go[:, 1] * (1 - go[:, 2]),
            go[:, 0] * go[:, 1] * go[:, 2] * (1 - go[:, 3]),
            go.prod(dim=1),
        ],
        dim=1,
    )
    torch.testing.assert_close(kind.probabilities(logits), expected)


def test_ordinal_loss_is_binary_over_the_continuations_reached():
    kind, logits, labels, classes = draw("ordinal")
    expected = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        for k in range(min(label + 1, classes - 1)):
            expected += F.binary_cross_entropy_with_logits(row[k], torch.tensor(float(label > k), dtype=torch.float64))
    torch.testing.assert_close(kind.loss_sum(logits, kind.targets(labels, classes)), expected)


def test_ordinal_loss_weighs_and_smooths_like_cross_entropy():
    kind, logits, labels, classes = draw("ordinal")
    weights = torch.linspace(0.5, 2, classes, dtype=torch.float64)
    ours = kind.loss_sum(logits, kind.targets(labels, classes), weights, 0.2)
    # cross_entropy of logits that are already log-probabilities changes nothing
    theirs = F.cross_entropy(kind.log_probabilities(logits), labels, weights, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_multilabel_loss_is_torchs_mean_over_findings(smoothing):
    kind, logits, labels, _ = draw("multilabel")
    targets = kind.targets(labels, 4)
    soft = targets.double() * (1 - smoothing) + smoothing / 2
    theirs = F.binary_cross_entropy_with_logits(logits, soft)
    torch.testing.assert_close(kind.loss_sum(logits, targets, None, smoothing) / kind.weight_sum(labels), theirs, rtol=1e-6, atol=0)


def test_multilabel_weights_weigh_presence_and_absence():
    kind, logits, labels, _ = draw("multilabel")
    weights = torch.tensor([[1.0, 3.0], [2.0, 0.5], [1.0, 1.0], [0.2, 5.0]], dtype=torch.float64)
    picked = torch.where(labels.bool(), weights[:, 1], weights[:, 0])
    theirs = F.binary_cross_entropy_with_logits(logits, labels.double(), picked, reduction="sum") / 4
    torch.testing.assert_close(kind.loss_sum(logits, kind.targets(labels, 4), weights), theirs, rtol=1e-6, atol=0)
    assert kind.weight_sum(labels, weights) == pytest.approx(float(picked.sum() / 4))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_finite_differences(name):
    kind, logits, labels, classes = draw(name, count=3)
    targets = kind.targets(labels, classes).double()
    assert torch.autograd.gradcheck(lambda x: kind.loss_sum(x, targets, None, 0.1), logits.requires_grad_())


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_batch_has_zero_loss_and_gradient(name):
    kind, logits, labels, classes = draw(name, count=0)
    logits.requires_grad_()
    total = kind.loss_sum(logits, kind.targets(labels, classes), None, 0.1)
    total.backward()
    assert total.item() == 0 == kind.weight_sum(labels)
    assert logits.grad is not None
    assert kind.probabilities(logits).shape == (0, classes)


@pytest.mark.parametrize("name", KINDS)
def test_shards_add_up_to_the_whole(name):
    kind, logits, labels, classes = draw(name, count=9)
    weights = kind.balanced_weights(labels.numpy(), classes)
    parts = [slice(0, 2), slice(2, 2), slice(2, 9)]
    losses = sum(kind.loss_sum(logits[part], kind.targets(labels[part], classes), weights) for part in parts)
    torch.testing.assert_close(losses, kind.loss_sum(logits, kind.targets(labels, classes), weights))
    assert sum(kind.weight_sum(labels[part], weights) for part in parts) == pytest.approx(kind.weight_sum(labels, weights))


@pytest.mark.parametrize("name", KINDS)
def test_low_precision_logits_are_lifted_to_float32(name):
    kind, logits, labels, classes = draw(name, dtype=torch.bfloat16)
    loss = kind.loss_sum(logits, kind.targets(labels, classes))
    assert loss.dtype == kind.probabilities(logits).dtype == torch.float32
    torch.testing.assert_close(loss, kind.loss_sum(logits.float(), kind.targets(labels, classes)))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_keep_their_type_and_extreme_logits_stay_finite(name, dtype):
    kind, logits, labels, classes = draw(name, dtype=dtype)
    probabilities = kind.probabilities(logits)
    assert probabilities.dtype == dtype
    if name != "multilabel":
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(7, dtype=dtype))
    assert torch.isfinite(kind.loss_sum(1e4 * logits, kind.targets(labels, classes)))


@pytest.mark.parametrize("name", SINGLE)
def test_balanced_weights_make_classes_count_alike(name):
    kind = KINDS[name]
    labels = np.array([0] * 6 + [1] * 2)
    weights = kind.balanced_weights(labels, 2)
    np.testing.assert_allclose(weights, [8 / 12, 2])
    assert kind.weight_sum(torch.from_numpy(labels), weights) == pytest.approx(8)
    np.testing.assert_allclose(kind.balanced_weights(labels, 3), [8 / 18, 8 / 6, 1])


def test_balanced_weights_of_findings_make_presence_and_absence_count_alike():
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], dtype=np.uint8)
    np.testing.assert_allclose(KINDS["multilabel"].balanced_weights(labels, 2), [[4 / 6, 2], [0.5, 1]])


@pytest.mark.parametrize("name", SINGLE)
def test_the_weight_of_soft_targets_is_that_of_their_labels(name):
    kind, _, labels, classes = draw(name)
    weights = torch.linspace(0.5, 2, classes)
    assert kind.weight_sum(kind.targets(labels, classes), weights) == pytest.approx(kind.weight_sum(labels, weights))

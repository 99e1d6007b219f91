"""One training as a generator: what every field does, every kind of task, and how it ends badly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import config_of, same, train

from tlray.errors import ConfigError, NonFiniteLoss
from tlray.registry import AUGMENTS, OPTIMIZERS
from tlray.runs.planning import SPACE
from tlray.training.fit import chance_level, fit
from tlray.training.setup import prepare


def test_a_state_is_a_copy_that_later_epochs_do_not_change(toy, places):
    config = config_of(toy(), epochs=3, lr=0.01)
    states, snapshots = [], []
    for epoch in fit(config, places):
        states.append(epoch.state())
        snapshots.append({name: tensor.clone() for name, tensor in states[-1].tensors.items()})
    for state, snapshot in zip(states, snapshots, strict=True):
        assert same(state.tensors, snapshot)
    assert not same(states[0].tensors, states[1].tensors)
    assert [len(state.meta["history"]) for state in states] == [1, 2, 3]


def test_epochs_say_where_they_stand(gradual, places):
    epochs, _ = train(gradual, places)
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert [epoch.phase for epoch in epochs] == [0, 0, 1, 1, 2, 2]
    assert {epoch.phases for epoch in epochs} == {3}
    assert [epoch.last for epoch in epochs] == [False] * 5 + [True]
    for index, epoch in enumerate(epochs):
        monitors = [each.metrics["monitor"] for each in epochs[: index + 1]]
        assert epoch.metrics["best"] == max(monitors)
        assert epoch.metrics["monitor"] == epoch.metrics["val_auroc"]
        ranked = sorted(epochs[: index + 1], key=lambda e: (-e.metrics["monitor"], e.metrics["val_loss"], e.number))
        assert epoch.best == ranked[0].number


def test_patience_ends_the_last_phase_and_says_so(toy, places):
    config = config_of(toy(), lr=1e-3, epochs=30, patience=2, monitor="accuracy")
    epochs, _ = train(config, places)
    monitors = [epoch.metrics["monitor"] for epoch in epochs]
    assert len(epochs) < 30
    assert epochs[-1].last
    assert monitors.index(max(monitors)) == len(monitors) - 3


def test_several_monitors_are_averaged(toy, places):
    epochs, _ = train(config_of(toy(), epochs=1, monitor="auroc+accuracy"), places)
    metrics = epochs[0].metrics
    assert metrics["monitor"] == pytest.approx((metrics["val_auroc"] + metrics["val_accuracy"]) / 2)


TWO_VALUES = {
    "lr": (1e-3, 2e-3),
    "weight_decay": (1e-6, 1e-2),
    "dropout": (0.0, 0.3),
    "scheduler": ("constant", "cosine"),
    "unfreeze": ("full", "last_1"),
    "layer_decay": (0.5, 1.0),
    "label_smoothing": (0.0, 0.1),
    "augment": ("none", "shift"),
}


def test_there_are_two_values_of_every_field_that_is_searched():
    assert TWO_VALUES.keys() == SPACE.keys()
    assert all(SPACE[name]._contains(SPACE[name].to_internal_repr(value)) for name, values in TWO_VALUES.items() for value in values)


@pytest.mark.parametrize("field", SPACE)
def test_every_field_that_is_searched_changes_the_weights(toy, encoder, places, field):
    base = config_of(toy(), weights=encoder("small_cnn"))
    one, two = (train(replace(base, **{field: value}), places)[1].tensors for value in TWO_VALUES[field])
    assert not torch.equal(one["model.head.1.weight"], two["model.head.1.weight"])


def heads(configs, places) -> list[torch.Tensor]:
    return [train(config, places)[1].tensors["model.head.1.weight"] for config in configs]


def all_differ(tensors: list[torch.Tensor]) -> bool:
    return len({tuple(tensor.flatten().tolist()) for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("scheduler", [each for each in SPACE["scheduler"].choices if each != "plateau"]),  # type: ignore[attr-defined]
        ("augment", [name for name in AUGMENTS.names() if not name.startswith("toy_")]),
        ("unfreeze", ["full", "head", "last_1", "first_1", "head_then_full", "gradual"]),
        ("optimizer", OPTIMIZERS.names()),
        ("warmup", [0.0, 0.5]),
        ("class_weights", ["none", "balanced"]),
        ("steps_per_epoch", [None, 2, 3]),
        ("batch_size", [4, 8]),
        ("seed", [0, 1]),
        ("samples", [None, 16]),
        ("precision", ["float32", "bfloat16", "float64"]),
    ],
)
def test_every_choice_is_another_training(toy, encoder, places, field, values):
    base = config_of(toy(train=21), weights=encoder("small_cnn"), epochs=3)  # 21: the classes are not balanced
    assert all_differ(heads([replace(base, **{field: value}) for value in values], places))


def test_a_training_repeats_itself_whatever_ran_before(gradual, places):
    _, state = train(gradual, places)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    try:
        _, again = train(gradual, places)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.get_num_threads() == 1
    assert same(state.tensors, again.tensors)


def test_two_trainings_taking_turns_do_not_disturb_each_other(gradual, toy, places):
    config, other = replace(gradual, epochs=3), config_of(toy(), epochs=3, dropout=0.5, threads=2)
    _, alone = train(config, places)
    state = alone
    for epoch, _ in zip(fit(config, places), fit(other, places), strict=True):
        state = epoch.state()
    assert same(alone.tensors, state.tensors)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("settings", [{}, {"class_weights": "balanced", "label_smoothing": 0.1}])
def test_every_kind_of_task_learns(toy, places, kind, settings):
    config = config_of(toy(kind, train=48, val=24), lr=0.01, epochs=6, **settings)
    epochs, _ = train(config, places)
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]
    assert epochs[-1].metrics["best"] > chance_level(config, places) + 0.2
    assert epochs[-1].metrics["train_accuracy"] > 0.7


@pytest.fixture(scope="module")
def ordinal(places):
    """An ordinal task: a bright bar as long as the class is high; put where tasks are looked up, and taken away again."""
    from tlray.data.raw import Raw, RawSplit, Source
    from tlray.registry import TASKS

    def load() -> Raw:
        random, splits = np.random.default_rng(0), {}
        for name, count in (("train", 40), ("val", 20), ("test", 20)):
            labels = np.arange(count) % 4
            images = random.integers(0, 60, (count, 16, 16), dtype=np.uint8)
            for image, label in zip(images, labels, strict=True):
                image[6:10, : 4 * label] += 150
            splits[name] = RawSplit(images, labels)
        return Raw("ordinal", ("none", "mild", "moderate", "severe"), splits, {"file": "drawn by a test", "licence": ""})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS._things, "bars", lambda spec, size, places: Source("bars-1", "bars", load))
        yield "bars"


def test_an_ordinal_task_learns_and_can_be_monitored_by_its_own_metrics(ordinal, places):
    config = config_of(ordinal, size=16, lr=0.01, epochs=6, monitor="mae", class_weights="balanced", label_smoothing=0.05)
    epochs, state = train(config, places)
    assert state.tensors["model.head.1.weight"].shape[0] == 3
    assert epochs[-1].metrics["best"] < chance_level(config, places) - 0.3
    assert epochs[-1].metrics["val_quadratic_kappa"] > 0.6


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18", "mobilenet_v2"])
def test_a_split_of_some_batches_and_one_image_trains(toy, places, backbone):
    epochs, _ = train(config_of(toy(train=17), backbone=backbone, epochs=1), places)
    assert np.isfinite(epochs[0].metrics["train_loss"])


def test_batch_norm_that_would_train_on_one_image_is_refused_before_the_first_epoch(toy, encoder, places):
    config = config_of(toy(), backbone="resnet18", weights=encoder("resnet18"), unfreeze="head_then_full", batch_size=1)
    with pytest.raises(ConfigError, match=r"batch_size=1 of 20 .*batch-norm of resnet18 needs two"):
        next(fit(config, places))
    epochs, _ = train(replace(config, unfreeze="head", epochs=1), places)
    assert epochs[0].last


def test_training_loss_and_accuracy_are_those_of_the_images_whatever_the_batches(toy, places):
    config = config_of(toy(train=21), lr=1e-12, epochs=1, class_weights="balanced")
    found = [train(replace(config, batch_size=size), places)[0][0].metrics for size in (21, 8, 5, 1)]
    for metrics in found[1:]:
        assert metrics["train_loss"] == pytest.approx(found[0]["train_loss"], abs=1e-6)
        assert metrics["train_accuracy"] == found[0]["train_accuracy"]


def test_balanced_class_weights_enter_the_loss_as_in_torch(toy, places):
    config = config_of(toy(train=21), lr=1e-12, epochs=1, batch_size=21, class_weights="balanced", label_smoothing=0.2)
    epochs, _ = train(config, places)
    prepared = prepare(config, places)
    labels = torch.from_numpy(np.array(prepared.task.train.labels))
    counts = torch.bincount(labels)
    assert counts[0] != counts[1]
    with torch.no_grad():
        logits = prepared.model(torch.from_numpy(np.array(prepared.task.train.images)))
        loss = torch.nn.functional.cross_entropy(logits, labels, 21 / (2 * counts.float()), label_smoothing=0.2)
    assert epochs[0].metrics["train_loss"] == pytest.approx(float(loss), abs=1e-6)


def test_folds_and_samples_choose_the_images(toy, places):
    config = config_of(toy(train=24), folds=3, fold=1, samples=10)
    prepared = prepare(config, places)
    assert len(prepared.train) == 10
    assert prepared.val_split is prepared.task.train
    assert not set(prepared.train) & set(prepared.val)
    states = heads([replace(config, fold=fold) for fold in range(3)], places)
    assert all_differ(states)
    epochs, _ = train(config, places)
    correct = epochs[0].metrics["val_accuracy"] * len(prepared.val)
    assert len(prepared.val) != len(prepared.task.val)
    assert correct == pytest.approx(round(correct))


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64)])
def test_every_precision_trains_and_keeps_its_weights_exactly(toy, places, precision, dtype):
    epochs, state = train(config_of(toy(), precision=precision, augment="affine", lr=0.01, epochs=3), places)
    assert state.tensors["model.head.1.weight"].dtype == dtype
    assert epochs[-1].metrics["train_loss"] < epochs[0].metrics["train_loss"]


def test_float64_is_float32_with_more_digits(toy, places):
    one, two = (train(config_of(toy(), precision=each, epochs=1), places)[0][0].metrics for each in ("float32", "float64"))
    assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-5)


@pytest.mark.parametrize(("backbone", "epoch"), [("small_cnn", 2), ("resnet18", 1)])
def test_a_training_that_diverges_ends_with_the_epoch_in_the_message(toy, places, backbone, epoch):
    config = config_of(toy(), backbone=backbone, optimizer="sgd", lr=100.0, epochs=3)
    training = fit(config, places)
    assert [next(training).number for _ in range(epoch - 1)] == list(range(1, epoch))
    with pytest.raises(NonFiniteLoss, match=f"not finite in epoch {epoch}"):
        next(training)


@pytest.mark.parametrize(
    ("kind", "monitor", "value"), [("binary", "auroc", 0.5), ("multiclass", "loss", np.log(3)), ("multilabel", "loss", np.log(2))]
)
def test_chance_is_what_equal_probabilities_get(toy, encoder, places, kind, monitor, value):
    config = config_of(toy(kind), weights=encoder("small_cnn"), unfreeze="gradual", monitor=monitor)
    assert chance_level(config, places) == pytest.approx(value)

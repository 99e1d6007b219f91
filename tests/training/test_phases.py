"""Schedules as phases, and the position of the next epoch as a function of the history."""

import itertools

import pytest

from tlray.config import Config
from tlray.errors import ConfigError, RunError
from tlray.registry import UNFREEZE
from tlray.training.phases import Phase, Position, locate, phases

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def plan(unfreeze: str, epochs: int = 6, stages: tuple[str, ...] = STAGES) -> list[Phase]:
    return phases(Config(weights="encoder.safetensors", unfreeze=unfreeze, epochs=epochs), stages)


def test_there_are_six_schedules():
    assert set(UNFREEZE.names()) == {"full", "head", "last_K", "first_K", "head_then_full", "gradual"}


@pytest.mark.parametrize("unfreeze", ["full", "head", "last_1", "first_1", "head_then_full", "gradual"])
def test_phases_add_up_to_the_epochs_and_hold_stages_in_order(unfreeze):
    for depth, epochs in itertools.product(range(1, 9), range(2, 25)):
        stages = tuple(f"s{index}" for index in range(depth))
        steps = plan(unfreeze, epochs, stages)
        assert sum(each.epochs for each in steps) == epochs
        assert all(each.epochs >= 1 for each in steps)
        assert all(each.trainable == tuple(name for name in stages if name in each.trainable) for each in steps)


@pytest.mark.parametrize(
    ("unfreeze", "trainable"),
    [
        ("full", STAGES),
        ("head", ()),
        ("last_1", ("layer4",)),
        ("last_2", ("layer3", "layer4")),
        ("last_5", STAGES),
        ("first_1", ("stem",)),
        ("first_2", ("stem", "layer1")),
        ("first_5", STAGES),
    ],
)
def test_schedules_of_one_phase_train_their_stages(unfreeze, trainable):
    assert plan(unfreeze, 7) == [Phase(7, trainable)]


@pytest.mark.parametrize(("epochs", "first"), [(2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (9, 3), (30, 10)])
def test_head_then_full_gives_the_head_a_third(epochs, first):
    assert plan("head_then_full", epochs) == [Phase(first, ()), Phase(epochs - first, STAGES)]


def test_gradual_opens_one_stage_more_from_the_top_in_each_phase():
    assert [each.trainable for each in plan("gradual", 6)] == [STAGES[5 - top :] for top in range(6)]
    for epochs in range(6, 40):
        lengths = [each.epochs for each in plan("gradual", epochs)]
        assert len(lengths) == 6
        assert lengths == sorted(lengths)  # what is left over goes to the last phases
        assert lengths[-1] - lengths[0] <= 1


@pytest.mark.parametrize("epochs", [2, 3, 4, 5])
def test_gradual_with_few_epochs_opens_several_stages_at_once_and_ends_with_all(epochs):
    steps = plan("gradual", epochs)
    opened = [len(each.trainable) for each in steps]
    assert [each.epochs for each in steps] == [1] * epochs
    assert opened[0] == 0
    assert opened[-1] == 5
    assert all(before < after for before, after in itertools.pairwise(opened))
    assert all(each.trainable == STAGES[5 - count :] for each, count in zip(steps, opened, strict=True))


@pytest.mark.parametrize("unfreeze", ["last_6", "first_6", "last_99"])
def test_more_stages_than_there_are_is_refused_with_their_names(unfreeze):
    with pytest.raises(ConfigError, match=r"has 5 stages \(stem, .*layer4\), so at most (last|first)_5"):
        plan(unfreeze)


@pytest.mark.parametrize("unfreeze", ["last_K", "first_K"])
def test_a_schedule_without_its_number_is_refused(unfreeze):
    with pytest.raises(ConfigError, match="needs a number"):
        plan(unfreeze)


@pytest.mark.parametrize(
    ("trainable", "first"), [((), 5), (("layer4",), 4), (("stem",), 0), (("stem", "layer1"), 0), (("layer3", "layer4"), 3), (STAGES, 0)]
)
def test_the_frozen_prefix_ends_at_the_first_trainable_stage(trainable, first):
    assert Phase(1, trainable).first_trainable(STAGES) == first


PLAN = [Phase(3, ()), Phase(4, ("layer4",)), Phase(3, STAGES)]


def course(scores: list[float], patience: int | None, minimise: bool = False) -> list[int]:
    """The phase of every epoch that is trained when the monitor takes these values."""
    history: list[tuple[int, float]] = []
    for score in scores:
        at = locate(PLAN, history, patience, minimise)
        if at is None:
            break
        assert at.done == sum(phase == at.phase for phase, _ in history)
        history.append((at.phase, score))
    return [phase for phase, _ in history]


def test_without_patience_every_phase_has_its_epochs():
    assert course([0.5] * 20, None) == [0] * 3 + [1] * 4 + [2] * 3


def test_the_first_epoch_stands_at_the_start():
    assert locate(PLAN, [], 2, False) == Position(0, 0)


@pytest.mark.parametrize("minimise", [False, True])
def test_patience_ends_the_phase_and_in_the_last_the_run(minimise):
    sign = -1 if minimise else 1
    better, worse = [sign * each for each in (0.1, 0.2, 0.3, 0.4)], [sign * each for each in (0.9, 0.8, 0.7)]
    assert course([*better[:3], *worse, *better[:1], *worse[1:]], 2, minimise) == [0] * 3 + [1] * 3 + [2] * 3
    assert course([*worse, *worse, *worse, *worse], 2, minimise) == [0] * 3 + [1] * 3 + [2] * 3
    assert course([*worse[:2], *worse[:2], *worse[:2], *better], 1, minimise) == [0, 0, 1, 1, 2, 2]


def test_an_equal_monitor_is_no_better():
    assert course([0.5] * 20, 2) == [0] * 3 + [1] * 3 + [2] * 3
    assert course([0.5] * 20, 1) == [0, 0, 1, 1, 2, 2]


def test_patience_counts_from_the_best_of_the_phase_and_not_from_an_earlier_phase():
    assert course([0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 2) == [0] * 3 + [1] * 4 + [2] * 3


def test_locate_depends_on_its_arguments_alone():
    history = [(0, 0.5), (0, 0.4)]
    before = list(history)
    assert locate(PLAN, history, 3, False) == locate(PLAN, history, 3, False) == Position(0, 2)
    assert history == before


def test_a_history_of_another_schedule_is_refused():
    with pytest.raises(RunError, match="phase 1 where the schedule is in phase 0"):
        locate(PLAN, [(0, 0.5), (1, 0.5)], None, False)

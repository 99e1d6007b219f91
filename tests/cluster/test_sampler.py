"""The sampler is a pure function of its arguments, learns within the default number of trials, and asks for nothing meaningless."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tlray.cluster.sampler import Sampler, check_space, told_value
from tlray.config import Config
from tlray.errors import ConfigError
from tlray.results import FAILED, FINISHED, NONFINITE, STOPPED, Trial
from tlray.runs.planning import FIRST, LAPTOP, SPACE

BASE = Config(task="digits", backbone="small_cnn", weights="imagenet", epochs=6)
DEFAULT_TRIALS = LAPTOP.trials


def sampler(space: dict[str, BaseDistribution] = SPACE, first: tuple = FIRST, trials: int = DEFAULT_TRIALS, seed: int = 0) -> Sampler:
    return Sampler(BASE, space, first, trials, seed)


def ended(number: int, config: Config, values: list[float], status: str = FINISHED, chance: float | None = None) -> Trial:
    history = [{"epoch": epoch, "monitor": value, "val_loss": 1.0} for epoch, value in enumerate(values, start=1)]
    return Trial(number, config.to_dict(), status, history=history, chance=chance)


def play(each: Sampler, count: int, score: Any, known: tuple[Trial, ...] = ()) -> list[Trial]:
    """`count` trials one after another, each with the one monitor that `score(config)` gives."""
    trials = list(known)
    for number in range(len(trials), count):
        config = each.propose(number, trials)
        trials.append(ended(number, config, [score(config)]))
    return trials


def prefers_small_rates(config: Config) -> float:
    return 1 - abs(config.lr - 3e-5) * 50


def test_equal_arguments_give_equal_proposals_in_another_process():
    """Also where strings hash differently, on which the order of Python's sets depends."""
    here = [trial.config for trial in play(sampler(), DEFAULT_TRIALS, prefers_small_rates)]
    play_it = "t.play(t.sampler(), t.DEFAULT_TRIALS, t.prefers_small_rates)"
    code = f"import json, test_sampler as t; print(json.dumps([each.config for each in {play_it}]))"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert os.environ.get("PYTHONHASHSEED") != "1"
    assert json.loads(answer.stdout) == here


def test_proposals_do_not_depend_on_what_was_asked_before():
    trials = play(sampler(), 8, prefers_small_rates)
    asked_often = sampler()
    for number in range(3, 12):
        asked_often.propose(number, trials)
    assert asked_often.propose(8, trials) == sampler().propose(8, trials)


def test_another_seed_or_number_gives_another_proposal():
    trials = play(sampler(), 8, prefers_small_rates)
    proposals = [sampler().propose(8, trials), sampler().propose(9, trials), sampler(seed=1).propose(8, trials)]
    assert len(set(proposals)) == 3


def test_first_recipes_go_first_and_unsampled():
    for number, recipe in enumerate(FIRST):
        assert sampler().propose(number, []) == replace(BASE, **recipe)
    assert sampler().propose(len(FIRST), []).lr not in {recipe["lr"] for recipe in FIRST}


def test_proposals_stay_inside_the_space_and_leave_the_rest_as_the_base_has_it():
    for trial in play(sampler(first=()), 20, prefers_small_rates):
        for name, value in trial.config.items():
            domain = SPACE.get(name)
            if isinstance(domain, CategoricalDistribution):
                assert value in domain.choices
            elif isinstance(domain, FloatDistribution):
                assert domain.low <= value <= domain.high
            else:
                assert value == getattr(BASE, name)


def test_whole_numbers_of_a_space_stay_whole():
    space: dict[str, BaseDistribution] = {"batch_size": IntDistribution(8, 64, step=8)}
    sizes = [trial.config["batch_size"] for trial in play(sampler(space, ()), 12, lambda config: config.batch_size)]
    assert all(isinstance(size, int) and size % 8 == 0 for size in sizes)
    assert len(set(sizes)) > 2


def test_tpe_proposes_within_the_default_trials():
    """After `startup` the proposals follow the history; an independent sampler's would not.

    TPE keeps the prior as one component of its mixture, and a draw from that is the same whatever the history: one in a few.
    """
    follows = []
    for seed in range(6):
        each = sampler(seed=seed)
        start = max(each.startup, len(FIRST))
        assert start < DEFAULT_TRIALS - 2
        small, large = (play(each, start, score) for score in (lambda config: -config.dropout, lambda config: config.dropout))
        assert [trial.config for trial in small] == [trial.config for trial in large]
        follows += [each.propose(number, small) != each.propose(number, large) for number in range(start, DEFAULT_TRIALS)]
    assert sum(follows) >= 0.8 * len(follows)


def test_tpe_learns_from_a_skewed_history_within_the_default_trials():
    """With the best rates at the low end, proposals after the start are clearly lower than independent draws."""
    learned, drawn = [], []
    for seed in range(12):
        each = sampler(first=(), seed=seed)
        learned += [math.log10(trial.config["lr"]) for trial in play(each, DEFAULT_TRIALS, lambda config: -config.lr)[each.startup :]]
        drawn += [math.log10(each.propose(number, []).lr) for number in range(each.startup, DEFAULT_TRIALS)]
    assert sum(learned) / len(learned) < sum(drawn) / len(drawn) - 0.2


def test_a_minimised_monitor_is_learned_downwards():
    down = Sampler(replace(BASE, monitor="loss"), {"lr": SPACE["lr"]}, (), 12, 0)
    up = Sampler(BASE, {"lr": SPACE["lr"]}, (), 12, 0)
    low = [trial.config for trial in play(down, 12, lambda config: config.lr)]
    high = [trial.config for trial in play(up, 12, lambda config: -config.lr)]
    assert [config["lr"] for config in low] == [config["lr"] for config in high]


def test_a_running_trial_is_not_proposed_again():
    """Trials that run at once: each proposal is told of those before it, and of a running one as if it went badly."""
    each = sampler(first=(), trials=6)
    trials = play(each, 5, prefers_small_rates)
    running = [Trial(5, replace(each.propose(5, trials), lr=3e-5).to_dict(), history=[]) for _ in range(3)]
    told, untold = each.propose(8, [*trials, *running]), each.propose(8, trials)
    assert told != untold


def test_layer_decay_is_absent_where_only_the_head_trains():
    space = {"unfreeze": CategoricalDistribution(("head", "full")), "layer_decay": FloatDistribution(0.5, 0.9)}
    configs = [Config(**trial.config) for trial in play(sampler(space, ()), 12, lambda config: config.layer_decay)]
    assert {config.layer_decay for config in configs if config.unfreeze == "head"} == {BASE.layer_decay}
    assert all(config.layer_decay < 1 for config in configs if config.unfreeze == "full")
    head = next(config for config in configs if config.unfreeze == "head")
    frozen = sampler(space, ())._frozen(ended(0, head, [0.5]))
    assert frozen is not None
    assert set(frozen.params) == {"unfreeze"}


def test_failed_trials_say_nothing():
    trials = play(sampler(), 6, prefers_small_rates)
    failed = ended(6, replace(BASE, lr=9e-3), [0.9], FAILED)
    assert sampler().propose(7, [*trials, failed]) == sampler().propose(7, trials)


def test_a_stopped_trial_is_told_its_best_epoch():
    assert told_value(ended(0, BASE, [0.6, 0.8, 0.7], STOPPED), minimise=False) == 0.8
    assert told_value(ended(0, BASE, [0.6, 0.8, 0.7], STOPPED), minimise=True) == 0.6


@pytest.mark.parametrize(("minimise", "worst"), [(False, 0.6), (True, 0.8)])
def test_a_nonfinite_trial_is_told_its_worst_finite_epoch_else_chance(minimise: bool, worst: float):
    assert told_value(ended(0, BASE, [0.7, 0.6, 0.8], NONFINITE, chance=0.5), minimise) == worst
    assert told_value(ended(0, BASE, [], NONFINITE, chance=0.5), minimise) == 0.5


def test_known_values_outside_the_space_are_left_out_of_the_study():
    """A first recipe may lie outside the space; Optuna would refuse it."""
    known = ended(0, replace(BASE, lr=1.0, unfreeze="last_3"), [0.5])
    frozen = sampler()._frozen(known)
    assert frozen is not None
    assert not {"lr", "unfreeze"} & set(frozen.params)
    sampler(first=()).propose(5, [known])


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"lrr": SPACE["lr"]}, "unknown field 'lrr' in the search space (did you mean 'lr'?)"),
        ({"seed": IntDistribution(0, 9)}, "seed cannot be searched: it is part of the question"),
        ({"layer_decay": SPACE["layer_decay"]}, "layer_decay cannot be searched: it changes nothing under unfreeze='head'"),
        ({"dropout": FloatDistribution(0.0, 1.5)}, "search space of dropout: dropout=1.5 is out of range"),
        ({"scheduler": CategoricalDistribution(("cosine", "cosinus"))}, "unknown scheduler 'cosinus' (did you mean 'cosine'?)"),
        ({"batch_size": FloatDistribution(8, 64)}, "batch_size=8.0 is not a whole number"),
    ],
)
def test_a_meaningless_space_is_refused_in_one_sentence(space: dict[str, BaseDistribution], sentence: str):
    with pytest.raises(ConfigError) as caught:
        check_space(space, replace(BASE, unfreeze="head"))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_space_is_accepted():
    check_space(SPACE, BASE)


def test_optuna_says_nothing(caplog: pytest.LogCaptureFixture):
    optuna.logging.enable_propagation()
    try:
        sampler().propose(5, play(sampler(), 5, prefers_small_rates))
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records


@pytest.mark.parametrize("seed", range(20))
def test_the_start_tries_every_choice_and_the_whole_of_every_range(seed: int):
    """Drawn independently, ten trials of two schedules are all of one with seed 2 of the search-quality benchmark."""
    space: dict[str, BaseDistribution] = {
        "lr": SPACE["lr"], "dropout": FloatDistribution(0.0, 0.6, step=0.1), "batch_size": IntDistribution(8, 64, step=8),
        "unfreeze": CategoricalDistribution(("head", "last_1")), "scheduler": SPACE["scheduler"],
        "steps_per_epoch": IntDistribution(1, 100, log=True),
    }  # fmt: skip
    each = sampler(space, (), trials=30, seed=seed)
    assert each.startup == 10
    configs = [each.propose(number, []) for number in range(10)]
    assert sorted(config.unfreeze for config in configs) == ["head"] * 5 + ["last_1"] * 5
    schedulers = SPACE["scheduler"]
    assert isinstance(schedulers, CategoricalDistribution)
    assert {config.scheduler for config in configs} == set(schedulers.choices)
    assert all(type(config.lr) is float for config in configs)
    tenths = (math.log(config.lr / 1e-5) / math.log(1e3) for config in configs)
    assert sorted(int(10 * each) for each in tenths) == list(range(10))
    assert {8, 64} < {config.batch_size for config in configs} <= set(range(8, 65, 8))
    assert all(min(abs(config.dropout - 0.1 * step) for step in range(7)) < 1e-9 and 0 <= config.dropout <= 0.6 for config in configs)
    steps: list[Any] = sorted(config.steps_per_epoch or 0 for config in configs)
    assert all(isinstance(each, int) for each in steps)
    assert steps[0] == 1
    assert 40 < steps[-1] <= 100


def test_the_start_fills_up_behind_the_first_recipes():
    space: dict[str, BaseDistribution] = {"unfreeze": CategoricalDistribution(("head", "last_1"))}
    each = sampler(space, ({"lr": 1e-3}, {"lr": 1e-4}), trials=18)
    assert each.startup == 6
    assert sorted(each.propose(number, []).unfreeze for number in range(2, 6)) == ["head", "head", "last_1", "last_1"]

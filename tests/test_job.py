"""What the main job prints."""

import io

import pytest
from optuna.distributions import CategoricalDistribution
from rich.console import Console

from tlray.cluster.resources import Resources
from tlray.cluster.session import Session
from tlray.config import Config
from tlray.data.task import open_task
from tlray.errors import ConfigError
from tlray.job import check_rule, print_banner, print_dashboard, print_next, print_plan, print_table, say
from tlray.runs.folder import Run
from tlray.runs.planning import Cell


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=140)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def entry(**changes):
    figure = {"value": 0.75, "low": 0.5, "high": 0.875}
    winner = {"trial": 3, "epoch": 2, "config": {"unfreeze": "gradual", "lr": 1e-3}, "monitor": 0.9}
    return {
        "cell": "breastmnist-resnet50", "task": "breastmnist", "backbone": "resnet50", "winner": winner,
        "monitor": "auroc", "trials": {"finished": 4, "stopped": 8},
        "test": {"accuracy": figure, "auroc": {"value": 0.8125, "low": 0.75, "high": 0.9375}}, "seeds": None, **changes,
    }  # fmt: skip


def test_a_line_is_printed_as_it_is(console):
    line = "[red]brackets[/red] " + "x" * 300
    say(console, line)
    assert printed(console) == line + "\n"


def test_the_banner_cannot_be_overlooked_and_is_absent_when_there_is_nothing_to_say(console):
    print_banner(console, [])
    assert printed(console) == ""
    print_banner(console, ["PHANTOM DATA [28 px]"])
    assert "ATTENTION" in printed(console)
    assert "PHANTOM DATA [28 px]" in printed(console)


def test_the_table_has_a_row_per_cell_with_intervals_and_the_winner(console):
    print_table(console, {"run": "mine", "partial": False, "cells": [entry(), entry(backbone="mobilenet_v2")]})
    text = printed(console)
    assert text.count("0.750 [0.500, 0.875]") == 2
    assert text.count("0.812 [0.750, 0.938]") == 2
    assert "mobilenet_v2" in text
    assert "4 finished, 8 stopped" in text
    assert "trial 3, epoch 2" in text


def test_the_table_shows_the_mean_over_seeds_with_its_interval(console):
    mean = {"values": [0.7, 0.8, 0.9], "mean": 0.8, "low": 0.6, "high": 1.0, "interval": "95 % t-interval over 3 seeds"}
    print_table(console, {"run": "mine", "partial": False, "cells": [entry(seeds={"accuracy": mean, "auroc": mean})]})
    text = printed(console)
    assert "3 seeds" in text
    assert text.count("0.800 [0.600, 1.000]") == 2
    assert "t-interval" in text


@pytest.mark.parametrize(
    ("settings", "room", "said"),
    [
        ({"unfreeze": "gradual"}, "8", "cached behind stem, layer1, layer2, layer3, layer4, in trials with augment=none"),
        ({}, "8", "cached behind layer4, in"),
        ({"unfreeze": "head_then_full"}, "8", "cached behind layer4, in"),
        ({"unfreeze": "last_2"}, "8", "cached behind layer2, in"),
        ({"unfreeze": "first_1"}, "8", "cached behind no stage"),  # all above the first stage trains on what changes
        ({"epochs": 1, "steps_per_epoch": 1, "batch_size": 2}, "8", "cached behind no stage"),  # too few images are read
        ({}, "0", "cached behind no stage"),
        ({"weights": "none", "unfreeze": "full"}, "8", ""),
        ({"unfreeze": "full"}, "8", ""),
        ({"augment": "flip"}, "8", ""),
    ],
)
def test_the_plan_says_behind_which_stages_frozen_features_are_cached(
    console, places, tmp_path, toy_npz, monkeypatch, settings, room, said
):
    monkeypatch.setenv("TLRAY_FEATURES_GIB", room)
    named = {"weights": "imagenet", "unfreeze": "head", **settings}
    base = Config(task=f"npz:{toy_npz(tmp_path / 'toy.npz')}", backbone="resnet18", **named)
    cell = Cell("toy", base, open_task(base.task, base.size, places), {}, ())
    print_plan(Run(tmp_path, places, Resources(0, 1, 1, 0.0), console), [cell], 1, 1)
    assert said in printed(console)
    assert ("frozen features" in printed(console)) is bool(said)


def test_the_plan_knows_every_schedule_that_a_trial_may_have(console, places, tmp_path, toy_npz):
    base = Config(task=f"npz:{toy_npz(tmp_path / 'toy.npz')}", backbone="resnet18", weights="imagenet")
    space = {"unfreeze": CategoricalDistribution(("full", "last_1", "last_9"))}  # the last is none of this backbone
    cell = Cell("toy", base, open_task(base.task, base.size, places), space, ({"unfreeze": "head"},))
    print_plan(Run(tmp_path, places, Resources(0, 1, 1, 0.0), console), [cell], 1, 1)
    assert "cached behind layer3, layer4, in trials" in printed(console)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_table_names_the_arithmetic_where_the_model_has_another(console, precision):
    cell = entry()
    cell["winner"]["config"] = {**cell["winner"]["config"], "precision": precision}
    print_table(console, {"run": "mine", "partial": False, "cells": [cell]})
    told = f"{cell['cell']}: trained and chosen in bfloat16; model and test figures in float32" in printed(console)
    assert told is (precision == "bfloat16")


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_figure_that_is_undefined_is_called_so(console, value):
    undefined = {"value": value, "low": value, "high": value}
    print_table(console, {"run": "mine", "partial": False, "cells": [entry(test={"accuracy": undefined, "auroc": undefined})]})
    assert printed(console).count("undefined") == 2


def test_the_dashboard_line_says_how_to_log_in(console, tmp_path):
    print_dashboard(console, Session("127.0.0.1:8265", tmp_path / "token", joined=False))
    assert printed(console).strip() == f"Dashboard: http://127.0.0.1:8265 (log in with the token that `cat {tmp_path}/token` prints)"


def test_a_clusters_dashboard_is_said_to_be_on_its_head(console, tmp_path):
    print_dashboard(console, Session("127.0.0.1:8265", tmp_path / "token", joined=True), joined_only=True)
    assert "http://127.0.0.1:8265 on the cluster's head, which `ray dashboard cluster.yaml` brings" in printed(console)
    assert f"cat {tmp_path}/token" in printed(console)


def test_without_a_dashboard_nothing_is_said_of_it(console):
    print_dashboard(console, Session("", None, joined=True))
    assert printed(console) == ""


@pytest.mark.parametrize("rule", ["best", "sensitivity", "sensitivity@1.5", "sensitivity@-1", ""])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(ConfigError, match="threshold rule"):
        check_rule(rule)


@pytest.mark.parametrize("rule", ["youden", "sensitivity@0.95", "sensitivity@.9"])
def test_rules_that_are_known_pass(rule):
    check_rule(rule)


def test_the_next_commands_name_the_best_cell(places, tmp_path):
    for minimise, best in ((False, "b"), (True, "a")):
        out = Console(file=io.StringIO(), width=140)
        monitors = {"a": 0.2, "b": 0.9}
        cells = [entry(cell=name, minimise=minimise, winner={**entry()["winner"], "monitor": value}) for name, value in monitors.items()]
        print_next(Run(tmp_path, places, Resources(0, 1, 1, 0.0), out), {"cells": cells})
        assert f"tlray predict {tmp_path}/{best}/model IMAGE.png" in printed(out)

"""Config: one validator that finds every problem at once, and the text forms of its fields."""

import dataclasses
import json
import pickle

import pytest

from tlray.config import (
    FIELDS,
    LOWER_IS_BETTER,
    RECONSTRUCTION,
    Config,
    parse_field,
    parse_settings,
    pretraining_source,
    unfreeze_rule,
)
from tlray.errors import ConfigError, UserError
from tlray.registry import AUGMENTS, BACKBONES, METRICS, OPTIMIZERS, SCHEDULERS, TASKS, UNFREEZE


def message(**values: object) -> str:
    """The one sentence with which Config refuses `values`."""
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    return str(caught.value)


def test_the_defaults_are_a_config():
    config = Config()
    assert (config.backbone, config.monitor, config.batch_size) == ("resnet18", "auroc", 64)


def test_a_config_is_frozen_hashable_and_varied_by_replace():
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]
    other = dataclasses.replace(config, lr=0.5)
    assert (other.lr, config.lr) == (0.5, 1e-3)
    assert len({config, other, Config()}) == 2


def test_replace_validates_too():
    with pytest.raises(ConfigError, match="lr=-1"):
        dataclasses.replace(Config(), lr=-1.0)


def test_to_dict_is_plain_json_and_gives_the_config_back():
    config = Config(samples="8/class", folds=5, fold=2, weights="imagenet", unfreeze="last_2")
    assert Config(**json.loads(json.dumps(config.to_dict()))) == config
    assert list(config.to_dict()) == list(FIELDS)


def test_a_config_travels_between_processes():
    config = Config(lr=0.25)
    assert pickle.loads(pickle.dumps(config)) == config


def test_every_problem_is_named_at_once():
    text = message(backbone="resnet19", lr=-1.0, epochs=0, optimizer="adamww", monitor="auroc+x", samples="five", weights="nope")
    for part in ("resnet19", "lr=-1.0", "epochs=0", "adamww", "'x'", "samples='five'", "nope"):
        assert part in text
    assert text.count("; ") == 6
    assert "\n" not in text


def test_a_config_error_is_a_users_error_and_a_value_error():
    with pytest.raises(UserError):
        Config(size=0)
    with pytest.raises(ValueError, match="size=0"):
        Config(size=0)


@pytest.mark.parametrize(
    ("field", "wrong", "meant"),
    [
        ("backbone", "resnet_18", "resnet18"),
        ("backbone", "mobilenetv2", "mobilenet_v2"),
        ("task", "breastmnst", "breastmnist"),
        ("optimizer", "admw", "adamw"),
        ("scheduler", "cosinus", "cosine"),
        ("augment", "flipp", "flip"),
        ("monitor", "aurroc", "auroc"),
        ("precision", "bfloat", "bfloat16"),
        ("class_weights", "balance", "balanced"),
    ],
)
def test_a_misspelt_name_is_guessed_and_the_choices_listed(field, wrong, meant):
    text = message(**{field: wrong})
    assert f"did you mean {meant!r}?" in text
    assert "choose from" in text


def test_a_misspelt_schedule_is_guessed():
    text = message(unfreeze="head_than_full", weights="imagenet")
    assert "unknown unfreeze schedule 'head_than_full' (did you mean 'head_then_full'?)" in text


def test_a_misspelt_source_of_weights_is_guessed():
    assert "unknown weights 'imagnet' (did you mean 'imagenet'?)" in message(weights="imagnet")
    assert "did you mean 'chestmnist'?" in message(weights="chestmnst")


@pytest.mark.parametrize("name", [name for name, each in FIELDS.items() if "low" in each.metadata or "above" in each.metadata])
def test_ranges_hold_at_both_ends(name):
    rule = FIELDS[name].metadata
    needs = {"folds": {"fold": 0}, "fold": {"folds": 2}}.get(name, {})
    step = 1e-9 if FIELDS[name].type is float else 1
    if "low" in rule:
        assert getattr(Config(**{name: rule["low"], **needs}), name) == rule["low"]
        assert f"{name}={rule['low'] - step!r} is out of range" in message(**{name: rule["low"] - step, **needs})
    if "above" in rule:
        assert "out of range: above 0" in message(**{name: rule["above"]})
        assert getattr(Config(**{name: rule["above"] + 1e-9}), name) == rule["above"] + 1e-9
    if "high" in rule:
        assert getattr(Config(**{name: rule["high"], **needs}), name) == rule["high"]
        assert "out of range" in message(**{name: rule["high"] + step, **needs})


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("epochs", 1.5, "a whole number"),
        ("epochs", "10", "a whole number"),
        ("epochs", None, "a whole number"),
        ("epochs", True, "a whole number"),
        ("lr", "0.1", "a number"),
        ("lr", True, "a number"),
        ("patience", "3", "a whole number or none"),
        ("samples", 0.5, "a whole number or text or none"),
        ("backbone", 18, "text"),
        ("weights", None, "text"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(field, value, kind):
    assert message(**{field: value}) == f"{field}={value!r} is not {kind}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value):
    assert message(lr=value) == f"lr={value!r} is not finite"


def test_a_whole_number_will_do_for_a_number():
    config = Config(lr=1)
    assert isinstance(config.lr, float)
    assert config == Config(lr=1.0)


@pytest.mark.parametrize("samples", [None, 2, 300, "1/class", "50/class"])
def test_samples_may_be(samples):
    assert Config(samples=samples).samples == samples


@pytest.mark.parametrize("samples", [0, 1, -5, "0/class", "/class", "5/classes", "5 / class", "all"])
def test_samples_may_not_be(samples):
    assert "samples=" in message(samples=samples)


def test_fold_and_folds_go_together():
    assert message(folds=5) == message(fold=0) == "fold and folds must be given together"
    assert message(folds=5, fold=5) == "fold=5 is not one of 5 folds (counted from 0)"
    assert Config(folds=5, fold=4).fold == 4


@pytest.mark.parametrize("unfreeze", ["head", "last_1", "first_1", "head_then_full", "gradual"])
def test_untrained_weights_may_not_start_frozen(unfreeze):
    text = message(weights="none", unfreeze=unfreeze)
    assert f"unfreeze={unfreeze!r}" in text
    assert "AUROC .5" in text
    assert Config(weights="imagenet", unfreeze=unfreeze).unfreeze == unfreeze


@pytest.mark.parametrize("unfreeze", ["head_then_full", "gradual"])
def test_schedules_with_phases_need_epochs(unfreeze):
    assert "needs epochs of at least 2" in message(unfreeze=unfreeze, weights="imagenet", epochs=1)


@pytest.mark.parametrize("unfreeze", ["last_0", "last_", "last_-1", "last_1.5", "LAST_1"])
def test_a_schedule_with_a_bad_number_is_unknown(unfreeze):
    assert "unknown unfreeze schedule" in message(unfreeze=unfreeze, weights="imagenet")


def test_unfreeze_rule_takes_the_number_out():
    assert unfreeze_rule("last_2") == ("last_K", 2)
    assert unfreeze_rule("first_10") == ("first_K", 10)
    assert unfreeze_rule("gradual") == ("gradual", None)


def test_monitor_joins_metrics_of_one_direction():
    assert not Config(monitor="auroc+accuracy").minimise
    assert Config(monitor="loss").minimise
    assert Config(monitor="loss+ece").minimise
    assert "mixes metrics" in message(monitor="auroc+loss")
    assert "unknown metric ''" in message(monitor="auroc+")


def test_lower_is_better_names_metrics_that_exist():
    assert set(METRICS.names()) >= LOWER_IS_BETTER


def test_a_path_is_a_task_and_is_not_opened():
    assert Config(task="npz:/nowhere/file.npz").task == "npz:/nowhere/file.npz"
    assert Config(task="folder:/nowhere").task == "folder:/nowhere"


@pytest.mark.parametrize("weights", ["weights.safetensors", "./here", "/abs/file.pt", "~/file", "../shared/w.safetensors"])
def test_a_file_of_weights_is_not_opened(weights):
    assert Config(weights=weights).weights == weights


@pytest.mark.parametrize(
    ("registry", "field"),
    [(TASKS, "task"), (BACKBONES, "backbone"), (OPTIMIZERS, "optimizer"), (SCHEDULERS, "scheduler"), (AUGMENTS, "augment"),
     (METRICS, "monitor")],
)  # fmt: skip
def test_every_registered_name_is_accepted(registry, field):
    assert registry.names()
    for name in registry.names():
        needs = {"objective": "autoencoder"} if name in RECONSTRUCTION else {}
        assert getattr(Config(**{field: name, **needs}), field) == name


def test_every_schedule_is_accepted():
    for name in UNFREEZE.names():
        assert Config(unfreeze=name.replace("_K", "_2"), weights="imagenet")


@pytest.mark.parametrize(
    ("weights", "source"),
    [
        ("none", None),
        ("imagenet", None),
        ("file.safetensors", None),
        ("chestmnist", ("chestmnist", {})),
        ("chestmnist?epochs=3&lr=1e-2", ("chestmnist", {"epochs": 3, "lr": 0.01})),
        ("mnist?samples=8/class&seed=3", ("mnist", {"samples": "8/class", "seed": 3})),
        ("chestmnist?patience=none", ("chestmnist", {"patience": None})),
        ("mnist/autoencoder?seed=1", ("mnist/autoencoder", {"seed": 1})),
        ("mnist/autoencoder?monitor=mse", ("mnist/autoencoder", {"monitor": "mse"})),
        ("npz:/a/b.npz/autoencoder?epochs=50&seed=3", ("npz:/a/b.npz/autoencoder", {"epochs": 50, "seed": 3})),
        ("folder:/a/b/autoencoder", ("folder:/a/b/autoencoder", {})),
    ],
)
def test_pretraining_source(weights, source):
    assert pretraining_source(weights) == source


@pytest.mark.parametrize("field", ["task", "backbone", "size", "weights", "unfreeze", "objective"])
@pytest.mark.parametrize("source", ["chestmnist", "chestmnist/autoencoder", "npz:some/file.npz/autoencoder"])
def test_a_pretraining_inherits_what_the_target_decides(source, field):
    text = message(weights=f"{source}?{field}=28")
    assert f"{field} cannot be overridden in a pretraining" in text


@pytest.mark.parametrize("monitor", ["mse", "psnr", "ssim", "psnr+ssim", "loss", "loss+mse"])
def test_an_autoencoder_is_judged_by_its_images_and_a_classifier_is_not(monitor):
    config = Config(objective="autoencoder", monitor=monitor)
    assert config.minimise is (monitor in ("mse", "loss", "loss+mse"))
    if "loss" in monitor.split("+")[:1]:
        return
    text = message(monitor=monitor)
    assert text.startswith(f"monitor={monitor!r}: {monitor.split('+')[0]} judges an autoencoder, which is a pretraining")
    assert "weights=<data set>/autoencoder" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"monitor": "auroc"},
            "(name it as weights=<data set>/autoencoder), is judged by loss, mse, psnr, ssim, not by monitor='auroc'",
        ),
        ({"monitor": "psnr+accuracy"}, "not by monitor='accuracy'"),
        ({"monitor": "ssim+mse"}, "mixes metrics"),
        ({"unfreeze": "gradual", "weights": "imagenet"}, "objective='autoencoder' has no use for unfreeze='gradual': leave it at 'full'"),
        ({"class_weights": "balanced"}, "no use for class_weights='balanced': leave it at 'none'"),
        ({"label_smoothing": 0.1}, "no use for label_smoothing=0.1: leave it at 0.0"),
        ({"size": 10}, "needs a size of at least 11 px, not 10"),
    ],
)
def test_what_an_autoencoder_cannot_have_is_one_sentence(settings, said):
    text = message(**{"objective": "autoencoder", "monitor": "ssim", **settings})
    assert said in text
    assert "; " not in text
    assert "\n" not in text


def test_a_misspelt_objective_is_guessed():
    assert "did you mean 'autoencoder'?" in message(objective="autoencodr")


def test_a_misspelt_field_of_a_pretraining_is_guessed():
    text = message(weights="chestmnist?epoch=3")
    assert "weights='chestmnist?epoch=3': unknown field 'epoch' (did you mean 'epochs'?)" in text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001),
        ("lr", "1", 1.0),
        ("epochs", "12", 12),
        ("samples", "300", 300),
        ("samples", "5/class", "5/class"),
        ("samples", "none", None),
        ("patience", "None", None),
        ("threads", "", None),
        ("weights", "none", "none"),
        ("augment", "none", "none"),
        ("task", "npz:a=b.npz", "npz:a=b.npz"),
    ],
)
def test_parse_field(name, text, value):
    parsed = parse_field(name, text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(("name", "text"), [("lr", "abc"), ("lr", ""), ("epochs", "1.5"), ("epochs", "none"), ("threads", "two")])
def test_parse_field_refuses_text_of_the_wrong_type(name, text):
    with pytest.raises(ConfigError, match=f"{name}='{text}' is not a"):
        parse_field(name, text)


def test_parse_field_guesses_the_field():
    with pytest.raises(ConfigError, match=r"unknown field 'learning_rate'.*choose from task"):
        parse_field("learning_rate", "1")
    with pytest.raises(ConfigError, match=r"did you mean 'dropout'"):
        parse_field("dropuot", "1")


@pytest.mark.parametrize("name", FIELDS)
def test_every_default_survives_being_written_and_read(name):
    default = FIELDS[name].default
    assert parse_field(name, str(default)) == default


def test_parse_settings():
    assert parse_settings(["lr=1e-3", "samples=300", "weights=mnist?seed=3"]) == {
        "lr": 0.001,
        "samples": 300,
        "weights": "mnist?seed=3",
    }
    with pytest.raises(ConfigError, match="'lr' is not of the form field=value"):
        parse_settings(["lr"])

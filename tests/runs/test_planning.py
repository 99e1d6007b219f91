"""What a search settles before Ray starts: fallbacks and what is said about them, cells, the space, the estimate."""

from dataclasses import replace

import pytest

from tlray.cache import Places
from tlray.config import Config
from tlray.data.task import open_task
from tlray.errors import ConfigError, DataError, WeightsError
from tlray.models.classifier import build_classifier
from tlray.models.weights import save_weights
from tlray.runs.planning import FIRST, SPACE, check_training, choose_tasks, choose_weights, estimate, plan_cells


@pytest.fixture(autouse=True)
def no_torch_hub(tmp_path, monkeypatch):
    """ImageNet weights of the user's own are not seen."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def toy(tmp_path_factory, toy_npz):
    return f"npz:{toy_npz(tmp_path_factory.mktemp('toy') / 'toy.npz')}"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A file of (untrained) small_cnn weights."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.5,), (0.5,)), {"classes": ["0", "1"]})
    return str(path)


def plan(tasks, weights, places, fixed=None, base=None):
    return plan_cells(tasks, ["small_cnn"], weights, base or Config(epochs=6), fixed or {}, places)


def test_default_tasks_that_cannot_be_had_are_replaced_by_one_phantom_and_said_so_with_reasons(places):
    tasks, banner = choose_tasks(None, 28, places)
    assert tasks == ["phantom_pneumonia"]
    text = "\n".join(banner)
    assert "PHANTOM" in banner[0]
    assert "nothing about patients" in text
    for name in ("pneumoniamnist", "breastmnist"):
        assert f"{name} cannot be had" in text
        assert f"{name}.npz" in text
    assert "offline" in text


def test_a_default_task_that_is_there_is_kept_beside_the_phantom(shared, places):
    tasks, banner = choose_tasks(None, 28, replace(places, data=str(shared / "data")))
    assert tasks == ["breastmnist", "phantom_pneumonia"]
    assert "stands in for pneumoniamnist." in banner[0]
    assert not any("breastmnist cannot" in line for line in banner)


def test_default_tasks_that_are_all_there_need_no_phantom(tmp_path, places, toy_npz):
    for name in ("pneumoniamnist", "breastmnist"):
        toy_npz(tmp_path / f"{name}.npz")
    assert choose_tasks(None, 28, replace(places, data=str(tmp_path))) == (["pneumoniamnist", "breastmnist"], [])


def test_a_named_task_never_falls_back(places):
    assert choose_tasks(["breastmnist"], 28, places) == (["breastmnist"], [])
    with pytest.raises(DataError, match="breastmnist is not there"):
        plan(["breastmnist"], "none", places)


def test_named_weights_never_fall_back(toy, places):
    assert choose_weights("imagenet", toy, "resnet18", places) == ("imagenet", None)
    with pytest.raises(WeightsError, match="ImageNet weights of resnet18 are not there"):
        plan_cells([toy], ["resnet18"], "imagenet", Config(), {}, places)


def test_without_imagenet_a_phantom_task_starts_from_the_phantom_source_and_another_from_nothing(toy, places):
    source, line = choose_weights(None, "phantom_pneumonia", "resnet50", places)
    assert source == "phantom_chest?epochs=3"
    assert line is not None
    assert "resnet50" in line
    assert "phantom_chest" in line
    assert "offline" in line
    source, line = choose_weights(None, toy, "resnet50", places)
    assert source == "none"
    assert line is not None
    assert "WITHOUT TRANSFER" in line
    assert choose_weights(None, toy, "small_cnn", places) == ("none", None)


def test_imagenet_weights_that_are_there_are_taken(toy, tmp_path, places):
    from torchvision.models import ResNet18_Weights

    (tmp_path / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]).write_bytes(b"looked at when it is opened")
    assert choose_weights(None, toy, "resnet18", replace(places, data=str(tmp_path))) == ("imagenet", None)


def test_the_fallback_of_weights_is_in_the_banner_once_per_task_and_backbone(toy, tmp_path, places, toy_npz):
    other = f"npz:{toy_npz(tmp_path / 'other.npz', seed=1)}"
    cells, banner = plan_cells([toy, other], ["resnet18", "small_cnn"], None, Config(epochs=2), {}, places)
    assert [(cell.base.backbone, cell.base.weights) for cell in cells] == [("resnet18", "none"), ("small_cnn", "none")] * 2
    assert [line.split(" from scratch")[0] for line in banner] == [f"resnet18 trains {spec}" for spec in (toy, other)]


def test_cells_are_named_by_task_and_backbone(toy, places):
    (cell,), banner = plan([toy], "none", places)
    assert cell.name == f"{cell.task.name}-small_cnn"
    assert banner == []


def test_without_weights_schedules_that_start_frozen_are_neither_searched_nor_among_the_recipes(toy, places):
    (cell,), _ = plan([toy], "none", places)
    assert "unfreeze" not in cell.space
    assert "layer_decay" in cell.space
    assert [recipe["unfreeze"] for recipe in cell.first] == ["full", "full"]
    assert cell.base.unfreeze == "full"


@pytest.mark.parametrize("schedule", ["head", "last_1", "first_2", "head_then_full", "gradual"])
def test_without_weights_a_schedule_that_starts_frozen_is_refused_by_name(schedule, toy, places):
    with pytest.raises(ConfigError, match=f"unfreeze='{schedule}'.*weights='none'"):
        plan([toy], "none", places, {"unfreeze": schedule})


def test_with_weights_every_schedule_is_searched_and_every_recipe_goes_first(toy, encoder, places):
    (cell,), _ = plan([toy], encoder, places)
    assert cell.space.keys() == SPACE.keys()
    assert cell.space["unfreeze"] == SPACE["unfreeze"]
    assert cell.first == FIRST


def test_a_schedule_of_two_phases_is_not_searched_within_one_epoch(toy, encoder, places):
    (cell,), _ = plan([toy], encoder, places, base=Config(epochs=1))
    assert set(cell.space["unfreeze"].choices) == {"full", "head", "last_1", "last_2", "first_2"}  # type: ignore[attr-defined]


def test_a_fixed_field_leaves_the_space_and_overrides_the_recipes(toy, encoder, places):
    (cell,), _ = plan([toy], encoder, places, {"lr": 0.02, "augment": "flip"})
    assert cell.space.keys() == SPACE.keys() - {"lr", "augment"}
    assert [recipe["lr"] for recipe in cell.first] == [0.02] * 3
    assert cell.base.lr == 0.02
    assert cell.base.augment == "flip"


def test_recipes_that_become_the_same_go_once(toy, places):
    (cell,), _ = plan([toy], "none", places, {"lr": 0.02, "dropout": 0.5})
    assert [replace(cell.base, **recipe) for recipe in cell.first] == [
        replace(cell.base, unfreeze="full", lr=0.02, dropout=0.5, augment="shift")
    ]


def test_layer_decay_is_not_searched_where_no_stage_trains(toy, encoder, places):
    (cell,), _ = plan([toy], encoder, places, {"unfreeze": "head"})
    assert "layer_decay" not in cell.space
    assert "unfreeze" not in cell.space


def test_a_pretraining_on_data_that_are_not_there_is_refused_before_any_trial(toy, places):
    with pytest.raises(DataError, match="pathmnist is not there"):
        plan([toy], "pathmnist", places)


@pytest.mark.parametrize("fixed", [{"objective": "autoencoder"}, {"objective": "autoencoder", "monitor": "ssim"}])
def test_an_autoencoder_is_no_training_of_its_own(toy, places, fixed):
    with pytest.raises(ConfigError, match=r"is a pretraining.*name it as weights=<data set>/autoencoder") as caught:
        plan([toy], "none", places, fixed)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"objective='autoencoder' gives no classifier: an autoencoder is a pretraining"):
        check_training(Config(task=toy, objective="autoencoder", monitor="ssim"), open_task(toy, 28, places), places)


def test_an_autoencoder_is_checked_before_any_trial_whatever_its_labels_are(toy, tmp_path, places, toy_npz):
    findings = f"npz:{toy_npz(tmp_path / 'findings.npz', kind='multilabel')}"
    (cell,), banner = plan([toy], f"{findings}/autoencoder?epochs=2", places)
    assert cell.base.weights == f"{findings}/autoencoder?epochs=2"
    assert banner == []
    for weights, error, said in [
        ("pathmnist/autoencoder", DataError, "pathmnist is not there"),
        (f"npz:{tmp_path}/nowhere.npz/autoencoder", DataError, "nowhere.npz"),
        (f"{findings}/autoencoder?samples=9999", DataError, "samples=9999"),
        (f"{findings}/autoencoder?monitor=auroc", ConfigError, "judged by loss, mse, psnr, ssim, not by monitor='auroc'"),
        (f"{findings}/autoencoder?label_smoothing=.1", ConfigError, "no use for label_smoothing=0.1"),
    ]:
        with pytest.raises(error, match=said) as caught:
            plan([toy], weights, places)
        assert "\n" not in str(caught.value)


def test_an_image_size_that_a_backbone_cannot_take_is_refused(toy, places):
    with pytest.raises(ConfigError, match="small_cnn needs images of at least 16 px, not 12"):
        plan([toy], "none", places, base=Config(size=12))


def test_the_estimate_is_positive_and_grows_with_the_work(toy, places):
    cells, _ = plan([toy], "none", places)
    one = estimate(cells, trials=4, epochs=6, concurrent=2, threads=1)
    assert one is not None
    assert one > 0
    for more in (dict(trials=8, epochs=6, concurrent=2), dict(trials=4, epochs=12, concurrent=2), dict(trials=4, epochs=6, concurrent=1)):
        larger = estimate(cells, **more, threads=1)
        assert larger is not None
        assert larger > one
    faster = estimate(cells, trials=4, epochs=6, concurrent=2, threads=2)
    assert faster is not None
    assert faster < one


def test_the_estimate_counts_the_batches_of_a_shortened_epoch(toy, places):
    (whole,), _ = plan([toy], "none", places)
    (short,), _ = plan([toy], "none", places, {"steps_per_epoch": 1, "batch_size": 8})
    assert short.epoch_seconds(1) < whole.epoch_seconds(1)  # type: ignore[operator]


def test_planning_opens_no_socket_when_offline(tmp_path, monkeypatch, places):
    import socket

    def refuse(*_args, **_options):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    own = Places(data=None, cache=str(tmp_path), offline=True)
    choose_tasks(None, 28, own)
    choose_weights(None, "breastmnist", "resnet50", own)

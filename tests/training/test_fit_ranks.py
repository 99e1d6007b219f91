"""Two processes train as one does: real processes, gloo, no Ray."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from trainings import SETTINGS, numbers, same

from tlray.cache import Places
from tlray.config import Config
from tlray.training.fit import fit
from tlray.training.world import World

pytestmark = pytest.mark.slow

METRICS_ALIKE = ("val_accuracy", "val_auroc", "val_f1", "val_ece", "train_accuracy")
IMAGES = {"objective": "autoencoder", "monitor": "ssim", "lr": 0.003}
IMAGES_ALIKE = ("val_mse", "val_psnr", "val_ssim")


def outcome(config: Config, places: Places, world: World | None = None) -> dict[str, Any]:
    """The history of a training and every tensor of its network at its end."""
    from tlray.training import fit as module

    networks, before = [], module.prepare

    def prepare(*arguments):
        prepared = before(*arguments)
        networks.append(prepared.model)
        return prepared

    module.prepare = prepare
    try:
        history = [epoch.history[-1] for epoch in fit(config, places, world=world)]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        module.prepare = before
    return {"history": numbers(history), "tensors": {name: value.clone() for name, value in networks[0].state_dict().items()}}


def process(rank: int, folder: str, configs: dict[str, Config], places: Places) -> None:
    """One of two ranks: trains everything with the other, writes what became of it; then one training alone within the group."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {name: outcome(config, places) for name, config in configs.items()}
    found["alone"] = outcome(configs["plain"], places, World(0, 1, torch.device("cpu")))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def configs(toy: Callable[..., str], encoder: Callable[..., str]) -> dict[str, Config]:
    """What both processes train: 13 images in batches of 4 leave a last batch of one image for two ranks, 10 of 2."""

    def config(train: int, val: int = 11, kind: str = "binary", **settings: Any) -> Config:
        return Config(task=toy(kind, train=train, val=val), **{**SETTINGS, "batch_size": 4, "epochs": 3, **settings})

    resnet = {"backbone": "resnet18", "weights": encoder("resnet18")}
    return {
        "plain": config(13, optimizer="adamw", lr=0.003),
        "weighted": config(13, class_weights="balanced", label_smoothing=0.1, lr=0.003),
        "multilabel": config(13, kind="multilabel", class_weights="balanced", lr=0.003),
        "steps": config(13, steps_per_epoch=3, batch_size=5, lr=0.003),
        "float64": config(13, precision="float64", lr=0.003),
        "scarce": config(13, val=2, batch_size=3, lr=0.003),
        "random": config(13, dropout=0.3, augment="affine", lr=0.003),
        "head": config(13, weights=encoder("small_cnn"), unfreeze="head", lr=0.01),
        "uncached": config(13, weights=encoder("small_cnn"), unfreeze="head", augment="flip", lr=0.01),
        "head_then_full": config(9, unfreeze="head_then_full", epochs=2, **resnet),
        "gradual": config(10, unfreeze="gradual", epochs=3, optimizer="sgd", lr=0.01, **resnet),
        "first_1": config(9, unfreeze="first_1", epochs=1, **resnet),
        "images": config(13, kind="multilabel", **IMAGES),
        "images_scarce": config(13, val=2, batch_size=3, **IMAGES),
        "images_random": config(13, augment="affine", dropout=0.3, **IMAGES),
        "images_batch_norm": config(10, backbone="mobilenet_v2", epochs=1, **IMAGES),
        "diverging": config(20, batch_size=8, optimizer="sgd", lr=100.0),
        "narrow": config(9, unfreeze="head_then_full", **{**resnet, "batch_size": 3}),
    }


@pytest.fixture(scope="module")
def ranks(configs, places, tmp_path_factory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What became of every config on rank 0 and on rank 1."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(process, (str(folder), configs, places), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def gap(one: dict[str, Any], two: dict[str, Any]) -> float:
    return max(abs(a[key] - b[key]) for a, b in zip(one["history"], two["history"], strict=True) for key in ("train_loss", "val_loss"))


@pytest.mark.parametrize("name", ["plain", "weighted", "multilabel", "steps", "float64", "scarce", "head", "images", "images_scarce"])
def test_two_workers_give_what_one_gives(configs, places, ranks, name):
    alone = outcome(configs[name], places)
    assert gap(alone, ranks[0][name]) < 1e-5
    for one, two in zip(alone["history"], ranks[0][name]["history"], strict=True):
        for metric in IMAGES_ALIKE if name.startswith("images") else METRICS_ALIKE:
            assert one[metric] == pytest.approx(two[metric], abs=1e-5)
    torch.testing.assert_close(alone["tensors"], ranks[0][name]["tensors"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "plain", "weighted", "multilabel", "steps", "scarce", "random", "head", "uncached", "head_then_full", "gradual", "first_1",
        "images", "images_scarce", "images_random", "images_batch_norm",
    ],
)  # fmt: skip
def test_both_ranks_hold_the_same_network_and_tell_the_same(ranks, name):
    first, second = (each[name] for each in ranks)
    assert "error" not in first, first
    assert same(first["tensors"], second["tensors"])  # buffers too
    assert first["history"] == second["history"]


@pytest.mark.parametrize(("name", "phases"), [("head_then_full", [0, 1]), ("gradual", [0, 1, 2]), ("first_1", [0])])
def test_networks_with_batch_norm_unfreeze_together(ranks, name, phases):
    history = ranks[0][name]["history"]
    assert [row["phase"] for row in history] == phases
    statistics = {key: value for key, value in ranks[0][name]["tensors"].items() if "running_mean" in key}
    assert len(statistics) == 20
    assert all(torch.isfinite(value).all() for value in statistics.values())


def test_ranks_draw_their_own_random_numbers(configs, places, ranks):
    assert gap(outcome(configs["random"], places), ranks[0]["random"]) > 1e-5


def test_a_process_may_train_alone_within_a_group(configs, places, ranks):
    alone = outcome(configs["plain"], places)
    for each in ranks:
        assert same(each["alone"]["tensors"], alone["tensors"])
        assert each["alone"]["history"] == alone["history"]


def test_both_ranks_end_a_diverging_training_alike(ranks):
    first, second = (each["diverging"]["error"] for each in ranks)
    assert first == second
    assert first.startswith("NonFiniteLoss: the training loss is not finite in epoch")


def test_batches_too_small_for_batch_norm_on_two_ranks_are_refused_before_the_first_epoch(ranks):
    assert ranks[0]["narrow"] == ranks[1]["narrow"]
    assert "ConfigError: batch_size=3 of 9 training images on 2 worker(s)" in ranks[0]["narrow"]["error"]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_of_an_evaluation_cover_it_in_order(size):
    indices = torch.arange(11).numpy()
    parts = [World(rank, size, torch.device("cpu")).mine(indices) for rank in range(size)]
    assert [index for part in parts for index in part] == list(range(11))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1

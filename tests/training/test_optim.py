"""Parameter groups and the course of the learning rate, against torch's own schedulers where there is one."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from tlray.config import Config
from tlray.models.classifier import build_classifier
from tlray.registry import BACKBONES, OPTIMIZERS, SCHEDULERS
from tlray.training.loop import freeze
from tlray.training.optim import make_optimizer, parameter_groups, plateau_factor, rate_factor, set_rates
from tlray.training.phases import phases

STEPS = 60


@pytest.fixture(scope="module")
def resnet():
    return build_classifier("resnet18", "binary", 2, 3, 0.0, (0.5,), (0.5,))


def config_of(**settings) -> Config:
    return Config(weights="encoder.safetensors", **settings)


def course(config: Config, total: int = STEPS) -> list[float]:
    factor = rate_factor(config, total, [])
    return [factor(step) for step in range(total)]


def torchs(make, total: int = STEPS) -> list[float]:
    """The learning rates that a torch scheduler gives to steps 0 to total - 1 from a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
@pytest.mark.parametrize("unfreeze", ["full", "head", "last_1", "first_2", "head_then_full", "gradual"])
def test_the_optimizer_holds_exactly_what_trains_in_every_phase(resnet, unfreeze, optimizer):
    config = config_of(unfreeze=unfreeze, optimizer=optimizer, epochs=8)
    for phase in phases(config, resnet.backbone.stage_names):
        freeze(resnet, phase.trainable)
        held = [id(each) for group in make_optimizer(resnet, phase.trainable, config).param_groups for each in group["params"]]
        trained = {name: id(each) for name, each in resnet.named_parameters() if each.requires_grad}
        assert sorted(held) == sorted(trained.values())
        assert {name.split(".")[1] for name in trained} == {*phase.trainable, "1"}  # head.1 is the linear layer


def test_layer_decay_scales_the_rate_by_the_distance_from_the_head(resnet):
    config = config_of(layer_decay=0.5, lr=0.1)
    groups = parameter_groups(resnet, resnet.backbone.stage_names, config)
    scales = {name: group["scale"] for group in groups for name in group["stages"]}
    assert scales == {"head": 1, "layer4": 1 / 2, "layer3": 1 / 4, "layer2": 1 / 8, "layer1": 1 / 16, "stem": 1 / 32}
    assert all(group["lr"] == 0.1 * group["scale"] for group in groups)
    assert {name: group["scale"] for group in parameter_groups(resnet, ("layer3", "layer4"), config) for name in group["stages"]} == {
        "head": 1, "layer4": 1 / 2, "layer3": 1 / 4,
    }  # fmt: skip


def test_stages_of_one_rate_share_their_groups(resnet):
    groups = parameter_groups(resnet, ("layer3", "layer4"), config_of(weight_decay=0.3))
    assert [(group["weight_decay"], group["stages"]) for group in groups] == [(each, {"layer3", "layer4", "head"}) for each in (0.3, 0.0)]


def test_biases_and_norms_have_no_weight_decay(resnet):
    for group in parameter_groups(resnet, resnet.backbone.stage_names, config_of(weight_decay=0.3)):
        decayed = {each.ndim > 1 for each in group["params"]}
        assert decayed == {group["weight_decay"] == 0.3}


def test_set_rates_gives_every_group_its_own_share_of_the_factor(resnet):
    config = config_of(layer_decay=0.5)
    optimizer = make_optimizer(resnet, ("layer4",), config)
    set_rates(optimizer, 0.2, 0.25)
    assert {name: group["lr"] for group in optimizer.param_groups for name in group["stages"]} == {"layer4": 0.025, "head": 0.05}


PLAIN = {
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, foreach=False),
    "adam": lambda groups, lr: torch.optim.Adam(groups, lr=lr, foreach=False),
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, foreach=False),
    "plain_sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, foreach=False),
}
"""torch's optimizers, one operation at a time."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS.names())
@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_fused_steps_are_torchs_plain_ones_whatever_the_memory_layout(backbone, optimizer):
    """After three steps on the gradients of a real batch: a fused kernel walks over raw memory, where they might lie in another order."""
    torch.manual_seed(0)
    model = build_classifier(backbone, "binary", 2, 3, 0.0, (0.5,), (0.5,))
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)).square().sum().backward()
    trained = []
    for build in (OPTIMIZERS[optimizer], PLAIN[optimizer]):
        mine = copy.deepcopy(model)
        for ours, theirs in zip(mine.parameters(), model.parameters(), strict=True):
            assert theirs.grad is not None
            ours.grad = theirs.grad.clone()
            assert ours.grad.stride() == theirs.grad.stride()
        stepper = build(parameter_groups(mine, mine.backbone.stage_names, Config(layer_decay=0.5, weight_decay=0.1)), 1e-3)
        for _ in range(3):
            stepper.step()
        trained.append(dict(mine.named_parameters()))
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name], rtol=1e-4, atol=1e-6)


def test_step_is_torchs_step_lr():
    np.testing.assert_allclose(course(config_of(scheduler="step")), torchs(lambda o: lr_scheduler.StepLR(o, STEPS // 3)), rtol=1e-9)


def test_cosine_is_torchs_cosine_annealing():
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS))
    np.testing.assert_allclose(course(config_of(scheduler="cosine")), expected, atol=1e-12)


def test_constant_stays():
    assert course(config_of(scheduler="constant")) == [1.0] * STEPS


def test_one_cycle_is_torchs_course():
    # torch has its peak at step .3 T - 1 and its floor at step T - 1; as functions of the share of steps done, which ours are,
    # they lie at .3 T and T, so torch is asked for a cycle of one step more with its peak there
    expected = torchs(lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=STEPS + 1, pct_start=(0.3 * STEPS + 1) / (STEPS + 1)))
    np.testing.assert_allclose(course(config_of(scheduler="one_cycle")), expected, atol=1e-12)
    plain = torchs(lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=6000), 6000)
    np.testing.assert_allclose(course(config_of(scheduler="one_cycle"), 6000), plain, atol=1e-3)


def test_slanted_triangular_rises_and_falls_linearly():
    rates = course(config_of(scheduler="slanted_triangular"))
    assert rates[0] == 1 / 32
    assert rates[6] == 1
    np.testing.assert_allclose(np.diff(rates[:7]), 31 / 32 / 6, rtol=1e-9)
    np.testing.assert_allclose(np.diff(rates[6:]), -31 / 32 / 54, rtol=1e-9)


@pytest.mark.parametrize("scheduler", SCHEDULERS.names())
@pytest.mark.parametrize("total", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_every_course_stays_between_zero_and_the_peak(scheduler, total, warmup):
    rates = course(config_of(scheduler=scheduler, warmup=warmup), total)
    assert all(0 < rate <= 1 for rate in rates)


def test_warm_up_is_torchs_linear_rise_and_then_the_schedule():
    def warmed(optimizer):
        rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / 12, total_iters=11)
        return lr_scheduler.SequentialLR(optimizer, [rise, lr_scheduler.CosineAnnealingLR(optimizer, 48)], [12])

    np.testing.assert_allclose(course(config_of(scheduler="cosine", warmup=0.2)), torchs(warmed), atol=1e-9)


def test_warm_up_multiplies_the_start_of_a_schedule_that_starts_low():
    rates = course(config_of(scheduler="one_cycle", warmup=0.2))
    np.testing.assert_allclose(rates[:12], np.arange(1, 13) / 12 / 25, rtol=1e-9)
    assert rates[12] == 1 / 25
    assert math.isclose(max(rates), 1, abs_tol=0.01)


@pytest.mark.parametrize(
    ("values", "factor"),
    [
        ([], 1),
        ([0.5, 0.4, 0.4], 1),
        ([0.5, 0.4, 0.4, 0.4], 0.1),
        ([0.5, 0.5, 0.5, 0.5], 0.1),
        ([0.5, 0.4, 0.4, 0.50001, 0.4, 0.4], 1),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 0.01),
        ([0.5, 0.4, 0.4, 0.4, 0.6, 0.4, 0.4], 0.1),
    ],
)
@pytest.mark.parametrize("minimise", [False, True])
def test_plateau_takes_a_tenth_after_three_epochs_without_a_better_monitor(values, factor, minimise):
    values = [1 - each for each in values] if minimise else values
    assert plateau_factor(values, minimise) == pytest.approx(factor)
    config = config_of(scheduler="plateau", monitor="loss" if minimise else "auroc", warmup=0.5)
    rates = rate_factor(config, 10, values)
    assert [rates(step) for step in (0, 4, 5, 9)] == pytest.approx([factor / 5, factor, factor, factor])

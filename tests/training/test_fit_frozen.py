"""What does not train stays as it is, to the bit; and why untrained weights must not be frozen."""

import pytest
import torch
from trainings import config_of, same, train

from tlray.config import Config
from tlray.errors import ConfigError
from tlray.models.weights import read_tensors
from tlray.registry import UNFREEZE
from tlray.training.fit import fit
from tlray.training.phases import phases

RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def stages_of(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """stage -> its tensors, from keys like `backbone.layer1.0.bn1.running_mean`."""
    stages: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("backbone."):
            stages.setdefault(key.split(".")[1], {})[key] = tensor
    return stages


@pytest.mark.parametrize(
    ("unfreeze", "augment"),
    [("last_1", "none"), ("first_1", "none"), ("head", "none"), ("head", "flip"), ("head_then_full", "none"), ("gradual", "none")],
)
def test_frozen_stages_keep_every_tensor_and_the_others_do_not(toy, encoder, places, watched, unfreeze, augment):
    config = config_of(toy(train=16), backbone="resnet18", weights=encoder("resnet18"), unfreeze=unfreeze, augment=augment, epochs=6)
    before = stages_of(read_tensors(encoder("resnet18"))[0])  # type: ignore[arg-type]
    plan = phases(config, RESNET_STAGES)
    for epoch in fit(config, places):
        now = stages_of({key: value.clone() for key, value in watched[-1].model.state_dict().items()})
        trainable = plan[epoch.phase].trainable
        for stage in RESNET_STAGES:
            assert same(now[stage], before[stage]) == (stage not in trainable)
            if stage in trainable:  # batch-norm's statistics too
                assert not any(torch.equal(now[stage][key], before[stage][key]) for key in now[stage] if "running" in key)
        before = now
        if len(plan) == 1 and epoch.number == 2:
            break
    assert len(watched) == len(plan[: epoch.phase + 1])


@pytest.mark.parametrize("unfreeze", ["full", "last_1", "first_1", "head", "head_then_full", "gradual"])
def test_the_optimizer_of_every_phase_holds_exactly_what_has_a_gradient(toy, encoder, places, watched, unfreeze):
    config = config_of(toy(), weights=encoder("small_cnn"), unfreeze=unfreeze, epochs=3)
    for epoch in fit(config, places):
        runner = watched[-1]
        held = {id(each) for group in runner.optimizer.param_groups for each in group["params"]}
        graded = {id(each) for each in runner.model.parameters() if each.grad is not None}
        assert held == graded
        assert len(watched) == epoch.phase + 1


@pytest.mark.parametrize(("unfreeze", "drops"), [("head", False), ("first_1", False), ("last_1", True), ("full", True)])
def test_only_a_stage_that_trains_drops_channels(toy, encoder, places, watched, unfreeze, drops):
    config = config_of(toy(), weights=encoder("small_cnn"), unfreeze=unfreeze, dropout=0.5)  # small_cnn's is in conv2
    training = fit(config, places)
    next(training)
    runner = watched[-1]
    runner.train_epoch(2, 1, [])
    assert runner.model.backbone.conv2.training is drops
    assert runner.model.head.training


@pytest.mark.parametrize("unfreeze", [name.replace("_K", "_1") for name in UNFREEZE.names() if name != "full"])
def test_untrained_weights_are_refused_by_name_for_every_schedule_that_freezes(unfreeze):
    with pytest.raises(ConfigError, match=rf"unfreeze='{unfreeze}' starts from frozen stages, but weights='none'.*AUROC \.5"):
        Config(weights="none", unfreeze=unfreeze)


def test_a_head_on_untrained_frozen_features_stays_at_chance_where_full_training_learns(toy, encoder, places):
    task, found = toy(train=32, val=120), {}
    for unfreeze, epochs in (("head", 4), ("full", 10)):
        settings = {"backbone": "mobilenet_v2", "weights": encoder("mobilenet_v2", untrained=True), "unfreeze": unfreeze}
        found[unfreeze] = [
            each.metrics
            for each in train(config_of(task, batch_size=4, lr=3e-3, scheduler="constant", epochs=epochs, **settings), places)[0]
        ]
    # the features of every image are the same to 1e-9: what is left is rounding
    assert all(abs(each["val_auroc"] - 0.5) < 0.15 for each in found["head"])
    assert all(each["val_loss"] == pytest.approx(0.6931, abs=0.002) for each in found["head"])
    assert found["full"][-1]["best"] > 0.9

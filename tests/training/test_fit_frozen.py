"""What does not train stays as it is, to the bit; and why untrained weights must not be frozen."""

import pytest
import torch
from trainings import config_of, same, train

from tlray.config import Config
from tlray.errors import ConfigError
from tlray.models.weights import read_tensors
from tlray.registry import UNFREEZE
from tlray.training.fit import fit
from tlray.training.loop import PhaseRunner
from tlray.training.phases import phases

RESNET_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


@pytest.fixture
def watched(monkeypatch) -> list[PhaseRunner]:
    """Every runner that a training makes, as it goes along."""
    runners, before = [], PhaseRunner.__init__

    def init(self, *arguments):
        before(self, *arguments)
        runners.append(self)

    monkeypatch.setattr(PhaseRunner, "__init__", init)
    return runners


def stages_of(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """stage -> its tensors, from keys like `backbone.layer1.0.bn1.running_mean`."""
    stages: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("backbone."):
            stages.setdefault(key.split(".")[1], {})[key] = tensor
    return stages


@pytest.mark.parametrize("unfreeze", ["last_1", "first_1", "head", "head_then_full", "gradual"])
@pytest.mark.parametrize("augment", ["none", "flip"])
def test_frozen_stages_keep_every_tensor_and_the_others_do_not(toy, encoder, places, watched, unfreeze, augment):
    if augment == "flip" and unfreeze != "head":
        pytest.skip("augmentation decides only whether a phase of the head alone is cached")
    config = config_of(toy(train=16), backbone="resnet18", weights=encoder("resnet18"), unfreeze=unfreeze, augment=augment, epochs=6)
    before = stages_of(read_tensors(encoder("resnet18"))[0])  # type: ignore[arg-type]
    plan = phases(config, RESNET_STAGES)
    if len(plan) == 1:
        config = config_of(config.task, **{**config.to_dict(), "epochs": 2, "task": None} | {"task": config.task}) if False else config
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


def test_dropout_of_a_frozen_stage_does_not_drop(toy, encoder, places):
    # small_cnn has its dropout in conv2; with a frozen conv2 the only one is the head's, and a frozen head has none
    config = config_of(toy(), weights=encoder("small_cnn"), unfreeze="head", dropout=0.5)
    runner_stages = []
    before = PhaseRunner.train_epoch

    def train_epoch(self, *arguments):
        row = before(self, *arguments)
        runner_stages.append((self.model.backbone.training_flags if False else self.model.backbone.conv2.training, self.model.head.training))
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseRunner, "train_epoch", train_epoch)
        train(config, places)
    assert runner_stages == [(False, True)] * 2


@pytest.mark.parametrize("unfreeze", [name.replace("_K", "_1") for name in UNFREEZE.names() if name != "full"])
def test_untrained_weights_are_refused_by_name_for_every_schedule_that_freezes(unfreeze):
    with pytest.raises(ConfigError, match=rf"unfreeze='{unfreeze}' starts from frozen stages, but weights='none'.*AUROC \.5"):
        Config(weights="none", unfreeze=unfreeze)


def test_a_head_on_untrained_frozen_features_stays_at_chance_where_full_training_learns(toy, encoder, places):
    untrained = encoder("resnet18", untrained=True)
    task = toy(train=64, val=32)
    found = {}
    for unfreeze in ("head", "full"):
        config = config_of(task, backbone="resnet18", weights=untrained, unfreeze=unfreeze, batch_size=16)
        found[unfreeze] = [epoch.metrics["val_auroc"] for epoch in train(config, places)[0]]
    assert all(abs(value - 0.5) < 0.15 for value in found["head"]), found
    assert max(found["full"]) > 0.9, found

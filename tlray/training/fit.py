"""One training as a generator of epochs. It knows no Ray: a trial, a TorchTrainer worker and a test are a dozen lines around it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from tlray.cache import Places
from tlray.config import Config
from tlray.errors import NonFiniteLoss, RunError
from tlray.results import rank_key
from tlray.training.checkpoint import Checkpoint
from tlray.training.loop import PhaseRunner, check_batches
from tlray.training.metrics import monitor_value
from tlray.training.objectives import objective_of
from tlray.training.phases import Position, locate, trained_stages
from tlray.training.setup import Prepared, prepare, set_up_process
from tlray.training.world import World


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    number: from 1. phase: from 0. phases: how many there are. last: whether training ends with it.
    metrics: train_loss, train_accuracy (classification alone), val_<metric>, monitor, best (of the monitor so far), seconds.
    best: number of the best epoch so far: best monitor, ties by lower validation loss, then by earlier epoch.
    images: that were trained on, over all ranks.
    state: copies the state after this epoch into a Checkpoint when called; valid until the next `next()`.
    """

    number: int
    phase: int
    phases: int
    last: bool
    metrics: dict[str, float]
    best: int
    images: int
    history: list[dict[str, Any]]
    state: Callable[[], Checkpoint]


def fit(config: Config, places: Places | None = None, *, resume: Checkpoint | None = None, world: World | None = None) -> Iterator[Epoch]:
    """Train `config` and yield every Epoch; with `resume`, those after the checkpoint's, bit-equal to the uninterrupted run's.

    Inside an initialised torch.distributed group every rank calls it and gets equal metrics; `world` may name one process alone there.

    Raises ConfigError, DataError, WeightsError or NotPrepared before the first epoch, RunError when `resume` belongs to another
    training, NonFiniteLoss when the loss or the outputs stop being finite.
    """
    places, world = places or Places(), world or World.current()
    set_up_process(config)
    prepared = prepare(config, places)
    check_batches(prepared, world)
    prepared.model.to(world.device)
    history: list[dict[str, Any]] = load(prepared, resume) if resume else []
    images = config.steps_per_epoch * config.batch_size if config.steps_per_epoch else len(prepared.train)
    runner, phase = None, -1
    while (at := _locate(prepared, history)) is not None:
        started = time.monotonic()
        set_up_process(config)  # another training may have run in this process since the last epoch
        if at.phase != phase:
            runner, phase = PhaseRunner(prepared, at.phase, world, places, history[-1]["cached"] if at.done else None), at.phase
            if resume and at.done:
                load_optimizer(prepared, runner, resume)
            resume = None
        assert runner is not None
        history = [*history, _run_epoch(prepared, runner, at, history, started)]
        best = min(history, key=lambda row: rank_key(row, config.minimise))["epoch"]
        metrics = {key: value for key, value in history[-1].items() if key not in ("epoch", "phase", "phases")}
        last = _locate(prepared, history) is None
        state = _state_of(prepared, runner, history, best)
        yield Epoch(len(history), at.phase, len(prepared.plan), last, metrics, best, images, history, state)


def chance_level(config: Config, places: Places) -> float:
    """The monitor that knowing nothing would get on validation; what a sampler is told about a trial without one.

    Equal probabilities for every class, or (autoencoder) images of an even grey.
    """
    prepared = prepare(replace(config, weights="none", unfreeze="full"), places)
    return monitor_value(objective_of(prepared, torch.device("cpu")).chance(), config.monitor)


def _locate(prepared: Prepared, history: list[dict[str, Any]]) -> Position | None:
    scores = [(row["phase"], row["monitor"]) for row in history]
    return locate(prepared.plan, scores, prepared.config.patience, prepared.config.minimise)


def _run_epoch(prepared: Prepared, runner: PhaseRunner, at: Position, history: list[dict], started: float) -> dict[str, Any]:
    config, number = prepared.config, len(history) + 1
    in_phase = [row["monitor"] for row in history if row["phase"] == at.phase]
    row: dict[str, Any] = {"epoch": number, "phase": at.phase, "phases": len(prepared.plan), "cached": runner.cached}
    row |= runner.train_epoch(number, at.done, in_phase)
    row |= runner.validate(number)
    row["monitor"] = monitor_value({key[4:]: value for key, value in row.items() if key.startswith("val_")}, config.monitor)
    if row["monitor"] != row["monitor"]:
        raise NonFiniteLoss(f"the monitor {config.monitor} is not a number in epoch {number}")
    values = [each["monitor"] for each in history] + [row["monitor"]]
    row["best"] = min(values) if config.minimise else max(values)
    row["seconds"], row["time"] = time.monotonic() - started, time.time()
    return row


def _state_of(prepared: Prepared, runner: PhaseRunner, history: list[dict], best: int) -> Callable[[], Checkpoint]:
    def state() -> Checkpoint:
        kept = ("head.", *(f"backbone.{name}." for name in trained_stages(prepared.plan[: history[-1]["phase"] + 1])))
        tensors = {f"model.{key}": value for key, value in prepared.model.state_dict().items() if key.startswith(kept)}
        for name, parameter in _optimized(prepared, runner).items():
            values = runner.optimizer.state[parameter]
            tensors |= {f"optimizer.{name}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
        meta = {
            "config": prepared.config.to_dict(),
            "epoch": len(history),
            "history": history,
            "encoder": prepared.encoder,
            "best": best,
        }
        return Checkpoint({key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}, meta)

    return state


def load(prepared: Prepared, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Give the prepared model a checkpoint's weights; returns its history. RunError when it belongs to another training."""
    if checkpoint.meta["config"] != prepared.config.to_dict():
        raise RunError("the checkpoint belongs to another configuration; start a run of another name")
    if checkpoint.meta["encoder"] != prepared.encoder:
        raise RunError(f"the weights {prepared.config.weights!r} have changed since the checkpoint was written: put the old ones back")
    tensors = {key.removeprefix("model."): value for key, value in checkpoint.tensors.items() if key.startswith("model.")}
    prepared.model.load_state_dict(tensors, strict=False)
    return checkpoint.meta["history"]


def _optimized(prepared: Prepared, runner: PhaseRunner) -> dict[str, torch.nn.Parameter]:
    """The optimizer's parameters by their names in the model, in the optimizer's order."""
    names = {parameter: name for name, parameter in prepared.model.named_parameters()}
    return {names[parameter]: parameter for group in runner.optimizer.param_groups for parameter in group["params"]}


def load_optimizer(prepared: Prepared, runner: PhaseRunner, checkpoint: Checkpoint) -> None:
    """Give the optimizer of a phase that was interrupted its state back. RunError when the checkpoint has another's."""
    numbers = {name: index for index, name in enumerate(_optimized(prepared, runner))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in checkpoint.tensors.items():
        if key.startswith("optimizer."):
            name, kind = key.removeprefix("optimizer.").rsplit(".", 1)
            if name not in numbers:
                raise RunError(f"a checkpoint of this training holds the optimizer's state of {name!r}: another version of tlray wrote it")
            layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format  # as the network's own
            state.setdefault(numbers[name], {})[kind] = value.clone(memory_format=layout)
    runner.optimizer.load_state_dict({"state": state, "param_groups": runner.optimizer.state_dict()["param_groups"]})

"""Parameter groups with layer-wise rates, optimizers, and learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Callable, Sequence

import torch

from tlray.config import Config
from tlray.models.autoencoder import Network
from tlray.registry import OPTIMIZERS, SCHEDULERS


def parameter_groups(model: Network, trainable: Sequence[str], config: Config) -> list[dict]:
    """The trainable stages' and the head's parameters by rate and weight decay; each group costs its own call of a fused optimizer.

    `scale` is layer_decay to the power of the stage's distance from the head; `stages` are those of the group, `head` among them.
    Biases and norm parameters (one-dimensional) get no weight decay. Layer-wise rates: Howard & Ruder 2018, arXiv:1801.06146.
    """
    stages = model.backbone.stage_names
    parts = [(name, config.layer_decay ** (len(stages) - stages.index(name)), getattr(model.backbone, name)) for name in trainable]
    parts.append(("head", 1.0, model.head))
    groups: dict[tuple[float, float], dict] = {}
    for name, scale, module in parts:
        parameters = list(module.parameters())
        for decayed in (True, False):
            chosen = [each for each in parameters if (each.ndim > 1) == decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                new = {"params": [], "stages": set(), "scale": scale, "lr": config.lr * scale, "weight_decay": decay}
                group = groups.setdefault((scale, decay), new)
                group["params"] += chosen
                group["stages"].add(name)
    return list(groups.values())


# Each in torch's fused form, one pass over the memory: AdamW's step on ResNet-50 takes 24 ms on a core instead of 88, a tenth of a
# training step on 64 images of 32 px.


@OPTIMIZERS.register("adamw")
def adamw(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    return torch.optim.AdamW(groups, lr=lr, fused=True)


@OPTIMIZERS.register("adam")
def adam(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980); weight decay is added to the gradient."""
    return torch.optim.Adam(groups, lr=lr, fused=True)


@OPTIMIZERS.register("sgd")
def sgd(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum .9."""
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)


@OPTIMIZERS.register("plain_sgd")
def plain_sgd(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent without momentum."""
    return torch.optim.SGD(groups, lr=lr, fused=True)


def make_optimizer(model: Network, trainable: Sequence[str], config: Config) -> torch.optim.Optimizer:
    """A fresh optimizer over the trainable stages and the head."""
    return OPTIMIZERS[config.optimizer](parameter_groups(model, trainable, config), config.lr)


@SCHEDULERS.register("constant")
def constant(progress: float) -> float:
    """The same rate throughout."""
    return 1.0


@SCHEDULERS.register("step")
def step(progress: float) -> float:
    """A tenth after each third of the steps."""
    return 0.1 ** int(3 * progress)


@SCHEDULERS.register("cosine")
def cosine(progress: float) -> float:
    """Half a cosine down to zero (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@SCHEDULERS.register("one_cycle")
def one_cycle(progress: float) -> float:
    """From 1/25 up to the peak over 30 % of the steps and down to nearly zero, both by cosine (Smith & Topin 2017, arXiv:1708.07120)."""
    if progress < 0.3:
        return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * progress / 0.3))
    low = 1 / 25 / 1e4
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (progress - 0.3) / 0.7))


@SCHEDULERS.register("slanted_triangular")
def slanted_triangular(progress: float) -> float:
    """Linear from 1/32 to the peak over 10 % of the steps, then linear back (Howard & Ruder 2018, arXiv:1801.06146)."""
    height = progress / 0.1 if progress < 0.1 else 1 - (progress - 0.1) / 0.9
    return (1 + height * 31) / 32


@SCHEDULERS.register("plateau")
def plateau(progress: float) -> float:
    """A tenth after each three epochs of the phase without a better monitor (the reductions come from `plateau_factor`)."""
    return 1.0


def plateau_factor(values: Sequence[float], minimise: bool) -> float:
    """Product of torch's ReduceLROnPlateau reductions after these monitor values of the phase; replayed, so never stored."""
    dummy = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    follower = torch.optim.lr_scheduler.ReduceLROnPlateau(dummy, "min" if minimise else "max", factor=0.1, patience=2, threshold=0)
    for value in values:
        follower.step(value)
    return dummy.param_groups[0]["lr"]


def rate_factor(config: Config, total_steps: int, phase_values: Sequence[float]) -> Callable[[int], float]:
    """The factor on every group's peak rate at a step (from 0) of a phase of `total_steps`.

    With warm-up the rate rises linearly over the first share of the steps, and the schedule runs over the rest.
    """
    schedule = SCHEDULERS[config.scheduler]
    warm = round(config.warmup * total_steps)
    reduced = plateau_factor(phase_values, config.minimise) if config.scheduler == "plateau" else 1.0

    def factor(step_index: int) -> float:
        if step_index < warm:
            return reduced * (step_index + 1) / warm * schedule(0.0)
        return reduced * schedule((step_index - warm) / max(1, total_steps - warm))

    return factor


def set_rates(optimizer: torch.optim.Optimizer, lr: float, factor: float) -> None:
    """Give every group its peak rate (lr times the group's scale) times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"] * factor

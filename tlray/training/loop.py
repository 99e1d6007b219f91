"""One phase of a training on this rank: its network, optimizer and batches; one epoch; one evaluation."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tlray.cache import Places
from tlray.data.loader import epoch_batches, mix, steps_in_epoch
from tlray.data.task import Split
from tlray.errors import ConfigError, NonFiniteLoss
from tlray.models.autoencoder import Network
from tlray.models.classifier import Classifier
from tlray.registry import AUGMENTS
from tlray.training.features import Frozen, Prefix, cached_features, drawn_rows, extraction_batch, prefix_of, worth_caching
from tlray.training.objectives import objective_of
from tlray.training.optim import make_optimizer, rate_factor, set_rates
from tlray.training.phases import Phase, as_loaded
from tlray.training.setup import Prepared
from tlray.training.world import World


class Above(nn.Module):
    """What lies above the frozen prefix: the stages from the first trainable one, pooling and head; the part that DDP wraps."""

    def __init__(self, model: Network, start: int):
        super().__init__()
        self.stages = nn.ModuleList(getattr(model.backbone, name) for name in model.backbone.stage_names[start:])
        self.head = model.head
        self._pool = model.pool

    def forward(self, x: Tensor) -> Tensor:
        """What the head gives for the prefix's output: the boundary's maps, or pooled features where that is the whole backbone."""
        for stage in self.stages:
            x = stage(x)
        return self.head(self._pool(x) if x.ndim == 4 else x)


def freeze(model: Network, trainable: tuple[str, ...]) -> None:
    """Set what trains: frozen stages have no parameter gradients, stay in eval mode and keep their batch-norm statistics."""
    for name in model.backbone.stage_names:
        stage = getattr(model.backbone, name)
        stage.requires_grad_(name in trainable)
        stage.train(name in trainable)
    model.head.requires_grad_(True)
    model.head.train()


def trains_batch_norm(model: Network, phase: Phase) -> bool:
    """Whether a stage that trains in this phase holds a batch-norm."""
    modules = (module for name in phase.trainable for module in getattr(model.backbone, name).modules())
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)


def check_batches(prepared: Prepared, world: World) -> None:
    """Raise ConfigError where batch-norm would have to train on fewer than two images of a rank."""
    config, images = prepared.config, len(prepared.train)
    batch = config.batch_size if config.steps_per_epoch else min(config.batch_size, images)
    if batch < 2 * world.size and any(trains_batch_norm(prepared.model, phase) for phase in prepared.plan):
        raise ConfigError(
            f"batch_size={config.batch_size} of {images} training images on {world.size} worker(s) leaves one of them fewer than two, "
            f"but the batch-norm of {config.backbone} needs two: raise batch_size or samples, or take fewer workers"
        )


def _replicated(above: Above) -> DistributedDataParallel:
    """`above` with gradients averaged over ranks, where they lie; batch-norm's buffers are left to each rank until the epoch's end."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # the successor of broadcast_buffers is new in torch 2.15
        return DistributedDataParallel(above, broadcast_buffers=False, gradient_as_bucket_view=True)


@dataclass(frozen=True)
class Rows:
    """What batches are cut from: pixels or cached features of a split, and where in it the images of a training stand.

    array: [n, ...] as stored, memory-mapped, or on the device where it is small enough to stay there. at: int64, its index for the
    i-th image of the training.
    """

    array: np.ndarray | Tensor
    at: np.ndarray

    def batch(self, numbers: np.ndarray, device: torch.device) -> Tensor:
        """The rows of the training's images `numbers`, on the device."""
        if isinstance(self.array, Tensor):
            return self.array[torch.from_numpy(self.at[numbers]).to(device, non_blocking=True)]
        return torch.from_numpy(self.array[self.at[numbers]]).to(device, non_blocking=True)


DEVICE_SHARE = 0.1
"""Part of this process's share of a GPU's memory that one array of pixels or features may take for the length of a phase."""


def near(array: np.ndarray, device: torch.device) -> np.ndarray | Tensor:
    """An array on the GPU where it takes little of its memory, so that no batch crosses the bus; else, and on a CPU, as it is."""
    if device.type != "cuda":
        return array
    share = torch.cuda.get_per_process_memory_fraction(device) * torch.cuda.get_device_properties(device).total_memory
    return torch.from_numpy(np.array(array)).to(device) if array.nbytes <= DEVICE_SHARE * share else array


class PhaseRunner:
    """Trains one phase epoch by epoch; made anew for each phase, and after a resume.

    Args:
        number: of the phase in the plan, from 0.
        cached: whether its epochs before the resume read their frozen prefix from the cache, which is kept; None: there are none.
    """

    def __init__(self, prepared: Prepared, number: int, world: World, places: Places, cached: bool | None = None):
        phase = prepared.plan[number]
        self.prepared, self.config, self.phase, self.world = prepared, prepared.config, phase, world
        self.model: Network = prepared.model
        self.objective = objective_of(prepared, world.device)
        stages = self.model.backbone.stage_names
        self.start = phase.first_trainable(stages)
        freeze(self.model, phase.trainable)
        above = Above(self.model, self.start)
        self.network = _replicated(above) if world.size > 1 else above
        self.optimizer = make_optimizer(self.model, phase.trainable, self.config)
        self.batch_norm = trains_batch_norm(self.model, phase)
        drawn = len(prepared.train)
        self.steps = steps_in_epoch(drawn, self.config.batch_size, self.config.steps_per_epoch, world.size, self.batch_norm)
        untouched = as_loaded(prepared.plan, number, stages) > 0  # then the prefix is the encoder's, which names the features
        self.prefix = self._prefix_to_cache(cached) if untouched else None
        self.cached = self.prefix is not None
        self._train_rows, self._val_rows = self._open_rows(places)

    def _needed(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        prepared = self.prepared
        return drawn_rows(prepared.task, prepared.train, prepared.val, prepared.val_split)

    def _prefix_to_cache(self, before: bool | None) -> Prefix | None:
        """The frozen prefix where its output is read from the cache, as `before` says or else by rule; None where it is not."""
        task, config, drawn = self.prepared.task, self.config, len(self.prepared.train)
        if config.augment != "none":
            return None
        train, val = (len(split) if rows is None else len(rows) for rows, split in zip(self._needed(), self._splits(), strict=True))
        prefix = prefix_of(config.backbone, task.channels, self.start, config.size)
        by_rule = worth_caching(config, self.phase, drawn, train) and prefix.affordable(train + val, config.precision)
        return prefix if (by_rule if before is None else before) else None

    def _splits(self) -> tuple[Split, Split]:
        return self.prepared.task.train, self.prepared.val_split

    def _open_rows(self, places: Places) -> tuple[Rows, Rows]:
        """What batches of training and of validation images are cut from: the splits' pixels, or the cached output of the prefix."""
        prepared, config, device, opened = self.prepared, self.config, self.world.device, []
        for split, split_key, rows, indices in zip(
            self._splits(), prepared.split_keys, self._needed(), (prepared.train, prepared.val), strict=True
        ):
            if self.prefix is None:
                opened.append(Rows(near(split.images, device), indices))
                continue
            assert isinstance(self.model, Classifier)  # an autoencoder trains all its stages
            frozen = Frozen(self.model, self.prefix, prepared.encoder, config.size, config.precision, device)
            array = cached_features(frozen, split, split_key, rows, places)
            opened.append(Rows(near(array, device), indices if rows is None else np.searchsorted(rows, indices)))
        freeze(self.model, self.phase.trainable)
        return opened[0], opened[1]

    def _network_input(self, rows: Tensor) -> Tensor:
        """The prefix's output for a batch of pixels, without gradients; cached features as they are, maps stored [N, H, W, C]."""
        if self.cached:
            return rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
        pixels = self.model.normalise(rows)
        with torch.no_grad():
            outputs = self.model.backbone.forward_stages(pixels, 0, self.start) if self.start else pixels
        return self.model.pool(outputs) if self.start == len(self.model.backbone.stage_names) else outputs

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def train_epoch(self, epoch: int, done: int, phase_values: list[float]) -> dict[str, float]:
        """Train one epoch (numbered from 1 over the training, `done` before it in this phase); its `train_<metric>`.

        Raises NonFiniteLoss, naming the epoch, when a loss was NaN or infinite.
        """
        config, world, device, objective = self.config, self.world, self.world.device, self.objective
        torch.manual_seed(mix("epoch", config.seed, epoch, world.rank))
        generator = torch.Generator(device).manual_seed(mix("augment", config.seed, epoch, world.rank))
        augment = AUGMENTS[config.augment] if config.augment != "none" else None
        factor = rate_factor(config, self.phase.epochs * self.steps, phase_values)
        losses, hits = [], []  # of every step, on the device; read once, so that no step waits for it
        shares = [0.0, 0.0]  # of the losses' divisor, and images
        freeze(self.model, self.phase.trainable)
        batches = epoch_batches(
            len(self.prepared.train), config.batch_size, config.steps_per_epoch, config.seed, epoch, world.size, self.batch_norm
        )
        for step, batch in enumerate(batches):
            mine = world.mine(batch)
            rows, numbers = self._train_rows.batch(mine, device), torch.from_numpy(mine).to(device, non_blocking=True)
            targets = objective.targets(numbers)
            if augment and len(mine):
                rows, targets = augment(rows.float(), targets, generator)
            with self._autocast():
                outputs = self.network(self._network_input(rows))
            loss_sum = objective.loss_sum(outputs, rows, targets)
            whole = objective.whole(batch)
            set_rates(self.optimizer, config.lr, factor(done * self.steps + step))
            self.optimizer.zero_grad(set_to_none=True)
            (loss_sum * (world.size / whole)).backward()  # DDP averages over ranks what is divided by the global weight here
            self.optimizer.step()
            losses.append(loss_sum.detach())
            hits.append(objective.hits(outputs.detach(), numbers))
            shares = [shares[0] + whole / world.size, shares[1] + len(mine)]
        world.average_buffers(getattr(self.model.backbone, name) for name in self.phase.trainable)
        sums = torch.stack([torch.stack(losses).double().sum(), torch.stack(hits).sum()])
        loss, right, whole, count = world.sum(torch.cat([sums, torch.tensor(shares, dtype=torch.float64, device=device)])).tolist()
        if not np.isfinite(loss):
            raise NonFiniteLoss(f"the training loss is not finite in epoch {epoch}")
        return objective.train_metrics(loss / whole, right, count)

    @torch.no_grad()
    def validation_rows(self) -> np.ndarray:
        """What the objective gathers of every validation image (logits [N, outputs]), on every rank, from the bare network in eval mode."""
        self.model.eval()
        above = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        step, parts = extraction_batch(self.config.size, self.world.device), []
        mine = self.world.mine(np.arange(len(self.prepared.val)))
        for start in range(0, max(1, len(mine)), step):  # an empty share is a batch of none, which has the right shape
            rows = self._val_rows.batch(mine[start : start + step], self.world.device)
            with self._autocast():
                outputs = above(self._network_input(rows))
            parts.append(self.objective.gathered(outputs, rows))
        return self.world.gather(np.concatenate(parts))

    def validate(self, epoch: int) -> dict[str, float]:
        """`val_<metric>` for every metric, exact on any number of ranks. Raises NonFiniteLoss on a NaN in what was gathered."""
        gathered = self.validation_rows()
        if not np.isfinite(gathered).all():
            raise NonFiniteLoss(f"the validation outputs are not finite in epoch {epoch}")
        return {f"val_{name}": value for name, value in self.objective.metrics(gathered).items()}

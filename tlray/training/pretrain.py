"""Weights that tlray makes itself: `weights="SOURCE[/autoencoder]?field=value"` is a training on SOURCE, cached by Config and data."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tlray.cache import Places, build_once, digest
from tlray.config import AS_WEIGHTS, AUTOENCODER_SUFFIX, Config, pretraining_source
from tlray.data.task import open_task
from tlray.errors import ConfigError, NotPrepared, WeightsError
from tlray.lending import borrow_folder, lend_folder
from tlray.models.autoencoder import Autoencoder
from tlray.models.weights import Encoder, open_weights, read_tensors, save_weights
from tlray.storage import AnyPath, place, remove_tree
from tlray.training.checkpoint import checkpoint_of_epoch, newest_checkpoint, save_checkpoint
from tlray.training.fit import Epoch, fit, load
from tlray.training.setup import Prepared, prepare
from tlray.training.world import World

CLASSIFIER: dict[str, Any] = {"epochs": 6, "lr": 1e-3, "scheduler": "one_cycle", "weight_decay": 1e-4, "batch_size": 64, "seed": 0}
"""What a classifier's pretraining is unless `?field=value` says otherwise; backbone and size come from the target."""

AUTOENCODER: dict[str, Any] = {
    "objective": "autoencoder", "monitor": "ssim", "epochs": 10, "lr": 5e-3, "scheduler": "one_cycle", "weight_decay": 1e-4,
    "batch_size": 32, "seed": 0,
}  # fmt: skip
"""What an autoencoder's pretraining is, likewise."""


def pretraining_config(config: Config) -> Config | None:
    """The training that makes `config.weights`, or None when that is no data set."""
    source = pretraining_source(config.weights)
    if source is None:
        return None
    task, overrides = source
    kind = AUTOENCODER if task.endswith(AUTOENCODER_SUFFIX) else CLASSIFIER
    fields = {**kind, "threads": config.threads, **overrides}
    return Config(
        task=task.removesuffix(AUTOENCODER_SUFFIX), size=config.size, backbone=config.backbone, weights="none", unfreeze="full", **fields
    )


def pretrained_folder(config: Config, places: Places) -> Path:
    """Where the weights of this pretraining are or will be; `config` as `pretraining_config` gives it. Threads are no part of the name."""
    task = open_task(config.task, config.size, places)
    fields = {key: value for key, value in config.to_dict().items() if key not in ("task", "threads")}
    what = "-autoencoder" if config.objective == "autoencoder" else ""
    return places.folder("pretrained") / f"{task.name}{what}-{config.backbone}-{digest(fields, task.fingerprint)[:16]}"


def work_folder(config: Config, places: Places) -> AnyPath:
    """Where a run keeps the checkpoints of this pretraining while it makes it; another run may be making the same."""
    folder = pretrained_folder(config, places)
    name = f"{folder.name}-{digest(places.run)[:16]}"
    if places.shelf is not None:  # every rank must see them, and another node go on
        return place(places.shelf) / "pretraining" / name
    return folder.with_name(f".{name}")


def encoder_file(config: Config, places: Places) -> Path:
    """The safetensors file that `pretrain` leaves: of a classifier the whole, of an autoencoder the backbone; borrowed where missing."""
    return _here(pretrained_folder(config, places) / "encoder.safetensors", places)


def autoencoder_file(config: Config, places: Places) -> Path:
    """The safetensors file that `pretrain` leaves of an autoencoder besides: backbone and decoder; borrowed where missing."""
    return _here(pretrained_folder(config, places) / "autoencoder.safetensors", places)


def _here(file: Path, places: Places) -> Path:
    if not file.is_file():
        borrow_folder("pretrained", file.parent.name, places)
    return file


def missing_pretraining(config: Config, places: Places) -> Config | None:
    """The pretraining that must run before `config` can be trained, or None."""
    source = pretraining_config(config)
    return source if source and not encoder_file(source, places).is_file() else None


def pretrain(config: Config, places: Places, world: World | None = None, report: Callable[[Epoch], None] | None = None) -> Path:
    """Train an encoder to its best validation epoch and keep it, unless another run was first; resumes where this run stopped.

    Every rank of a torch.distributed group calls it, and rank 0 writes; `world` may name one process alone there. `report` is told of
    every epoch.
    """
    world = world or World.current()
    lead = world.rank == 0
    folder, work = pretrained_folder(config, places), work_folder(config, places)
    for epoch in fit(config, places, resume=newest_checkpoint(work), world=world):
        if lead:
            save_checkpoint(work, epoch.state())
        if report:
            report(epoch)
    if lead:
        if not encoder_file(config, places).is_file():
            newest = newest_checkpoint(work)
            assert newest is not None
            best, meta = prepare(config, places), newest.meta
            load(best, checkpoint_of_epoch(work, meta["best"]))
            remove_tree(folder)  # what somebody has left of it
            build_once(folder, lambda temporary: _keep(temporary, best, meta))
        lend_folder(folder, places)
        remove_tree(work)
    return encoder_file(config, places)


def _keep(folder: Path, best: Prepared, meta: dict[str, Any]) -> None:
    row = meta["history"][meta["best"] - 1]
    about = {
        "backbone": best.config.backbone, "mean": best.model.mean.tolist(), "std": best.model.std.tolist(),
        "classes": list(best.task.classes), "kind": best.task.kind, "task": best.task.name,
        "phantom": bool(best.task.source.get("phantom")),
        "config": best.config.to_dict(), "epoch": meta["best"], "monitor": row["monitor"],
        "validation": {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")},
    }  # fmt: skip
    if best.config.objective == "autoencoder":
        save_weights(folder / "autoencoder.safetensors", best.model.float(), about)
    save_weights(folder / "encoder.safetensors", best.model.float(), about, with_head=best.config.objective != "autoencoder")


def open_pretrained(config: Config, channels: int, places: Places) -> Encoder:
    """The encoder that `config.weights` names. Raises NotPrepared when it has not been made."""
    source = pretraining_config(config)
    assert source is not None
    path = _made(encoder_file(source, places), config)
    encoder = open_weights(str(path), config.backbone, channels, places)
    assert encoder is not None
    return replace(encoder, head=None)  # the source's classes are not the target's, whatever their number


def open_autoencoder(config: Config, places: Places) -> tuple[Prepared, Autoencoder]:
    """The pretraining that `config.weights` names, prepared, and its autoencoder in eval mode, backbone and decoder.

    Raises ConfigError when `weights` names none, NotPrepared when it has not been made, WeightsError when its file is damaged.
    """
    source = pretraining_config(config)
    if source is None or source.objective != "autoencoder":
        raise ConfigError(f"weights={config.weights!r} is no autoencoder: name it as {AS_WEIGHTS}")
    path = _made(autoencoder_file(source, places), config)
    prepared = prepare(source, places)
    tensors, _ = read_tensors(path)
    try:
        prepared.model.float().load_state_dict(tensors)
    except RuntimeError:
        raise WeightsError(f"{path} does not hold this autoencoder: delete {path.parent} to have it made anew") from None
    return prepared, prepared.model.eval()


def _made(path: Path, config: Config) -> Path:
    if not path.is_file():
        raise NotPrepared(
            f"weights={config.weights!r} must be pretrained first for {config.backbone} at {config.size} px: "
            "call tlray.runs.folder.prepare_weights([config], run)"
        )
    return path

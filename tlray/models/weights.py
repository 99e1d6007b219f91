"""Where an encoder's weights come from: nowhere, ImageNet or a file; checked tensor by tensor, never unpickled.

Weights that come from pretraining on a data set are made and found by `tlray.training.pretrain`; they are Encoders too.
"""

import functools
import json
import pickle
import urllib.error
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision import models

from tlray.cache import Places, array_digest, digest, file_digest, ordinary, write_bytes
from tlray.errors import WeightsError
from tlray.lending import borrow_file
from tlray.models.autoencoder import Network
from tlray.models.backbones import Backbone, build_backbone
from tlray.models.classifier import Classifier

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue in 0..1, as torchvision's weights expect."""

PLAIN_MEAN, PLAIN_STD = (0.5,), (0.5,)
"""Normalisation of a network that starts from no weights; one number for all channels."""

HEADS = ("head.1", "fc", "classifier.1")
"""Where a file keeps its linear head: ours, torchvision's ResNet, torchvision's MobileNet."""


@dataclass(frozen=True)
class Encoder:
    """Weights for a backbone and what must go with them. The tensors may be shared: load them, do not change them."""

    state: dict[str, Tensor]
    """The backbone's whole `state_dict`: float32, counters int64."""
    head: dict[str, Tensor] | None
    """{"weight": float32 [outputs, num_features], "bias": [outputs]} when the source has one."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Normalisation of pixels in 0..1, one number per channel or one for all."""
    key: str
    """sha256 over the tensors and the normalisation, whatever file they came in."""
    notes: tuple[str, ...]
    """What a user should know about how they were read."""
    source: dict[str, Any]
    """JSON: where they came from (weights, file, sha256, layout, classes, metadata)."""


def open_weights(weights: str, backbone: str, channels: int, places: Places) -> Encoder | None:
    """The encoder that `weights` (none, imagenet or a file) names for this backbone and these image channels; None for none.

    Raises WeightsError when it cannot be had, is damaged, holds anything but tensors or belongs to another architecture.
    """
    if weights == "none":
        return None
    path = weights_file(weights, backbone, places)
    try:
        ordinary(path)
        stat = path.stat()
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(f"weights {path} cannot be opened ({error.strerror}): name none, imagenet, a data set or a file") from error
    return _open_file(weights == "imagenet", path.absolute(), (stat.st_mtime_ns, stat.st_size), backbone, channels)


def file_name(weights: str, backbone: str) -> str:
    """Under which name nodes lend each other the file of these weights."""
    return f"imagenet {backbone}" if weights == "imagenet" else weights


def weights_file(weights: str, backbone: str, places: Places) -> Path:
    """The file that imagenet, or a path, names on this node; one that is missing here is borrowed. It may not exist.

    Raises WeightsError when ImageNet's cannot be had or is damaged.
    """
    if weights == "imagenet":
        return _imagenet_file(backbone, places)
    path = Path(weights).expanduser()
    return path if path.exists() else borrow_file(file_name(weights, backbone), places) or path


def encoder_of(state: dict[str, Tensor], head: dict[str, Tensor] | None, mean: Sequence[float], std: Sequence[float],
               source: dict[str, Any], notes: Sequence[str] = ()) -> Encoder:  # fmt: skip
    """An Encoder of these tensors with its key computed."""
    tensors = {**state, **{f"head.{name}": tensor for name, tensor in (head or {}).items()}}
    contents = {name: array_digest(np.atleast_1d(tensor.numpy(force=True))) for name, tensor in tensors.items()}
    return Encoder(state, head, tuple(mean), tuple(std), digest(contents, list(mean), list(std)), tuple(notes), source)


def load_encoder(model: Network, encoder: Encoder, classes: Sequence[str]) -> list[str]:
    """Load an encoder into the network of a task with these class names; returns one sentence per thing worth knowing.

    The head is loaded only into a classifier, when it has as many outputs and, where the source names its classes, names the same ones.
    """
    model.backbone.load_state_dict(encoder.state)
    notes = list(encoder.notes)
    if encoder.head is None or not isinstance(model, Classifier):
        return notes
    linear, name = model.linear, encoder.source.get("file", encoder.source.get("weights", "the weights"))
    theirs, ours = len(encoder.head["weight"]), linear.out_features
    named = encoder.source.get("classes")
    if theirs != ours:
        return [*notes, f"head of {theirs} outputs in {name} dropped: this task has {ours}"]
    if named is not None and list(named) != list(classes):
        return [*notes, f"head in {name} dropped: its classes are not this task's"]
    linear.load_state_dict(encoder.head)
    return [*notes, f"head of {ours} outputs in {name} kept" + ("" if named is not None else ", which does not name its classes")]


def save_weights(path: str | Path, model: Network, metadata: dict[str, Any], with_head: bool = True) -> None:
    """Write a network as safetensors, atomically: float32 tensors and, under `tlray`, JSON metadata.

    Args:
        path: the file.
        model: its backbone's name, mean and std are added to the metadata.
        metadata: JSON; `classes`, the class names in order, decides later whether the head can be kept.
        with_head: whether the head (an autoencoder's decoder) is written beside the backbone.
    """
    tensors = {
        name: tensor.detach().cpu().to(torch.float32 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if with_head or name.startswith("backbone.")
    }
    # str() of a float32 is the shortest text that gives it back: .485, not .48500001431
    normalisation = {name: [float(str(each)) for each in getattr(model, name).float().numpy(force=True)] for name in ("mean", "std")}
    text = json.dumps({**metadata, "backbone": model.backbone.name, **normalisation})
    write_bytes(path, save(tensors, metadata={"tlray": text}))  # its save_file says in no OSError that a disk is full


def imagenet_available(backbone: str, places: Places) -> str | None:
    """None when ImageNet weights of `backbone` are at hand or can be downloaded, else one sentence that says why not."""
    if backbone not in models.list_models():
        return f"{backbone} has no ImageNet weights: name none, a file or a data set to pretrain on"
    files = _imagenet_places(backbone, places)
    if any(file.is_file() for file in files):
        return None
    from tlray.data.download import reachable

    url = _imagenet_url(backbone)
    if not places.offline and reachable(url):
        return None
    looked = ", ".join(str(file) for file in files)
    why = "offline forbids the download" if places.offline else f"{url} cannot be reached"
    return f"ImageNet weights of {backbone} are not there (looked for {looked}) and {why}: put the file at one of these places"


def _imagenet_url(backbone: str) -> str:
    return models.get_model_weights(backbone)["IMAGENET1K_V1"].url


def _imagenet_places(backbone: str, places: Places) -> list[Path]:
    """Where the official file may lie; the last one, torch hub's, is where a download goes."""
    name = _imagenet_url(backbone).rpartition("/")[2]
    own = [Path(places.data).expanduser() / "weights" / name, Path(places.data).expanduser() / name] if places.data else []
    return [*own, Path(torch.hub.get_dir()) / "checkpoints" / name]


def _imagenet_file(backbone: str, places: Places) -> Path:
    """The official file, downloaded when missing, with its checksum (its first digits stand in the name) verified."""
    files = _imagenet_places(backbone, places) if backbone in models.list_models() else []
    path = next((file for file in files if file.is_file()), None) or borrow_file(file_name("imagenet", backbone), places)
    if path is None:
        if problem := imagenet_available(backbone, places):
            raise WeightsError(problem)
        path = files[-1]
    prefix = path.stem.rpartition("-")[2]
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_name(f".{path.name}.lock")):
                if not path.is_file():
                    torch.hub.download_url_to_file(_imagenet_url(backbone), str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError, urllib.error.URLError) as error:
            raise WeightsError(f"{_imagenet_url(backbone)} could not be downloaded ({error}): put the file at {path}") from error
    found = _digest(path, path.stat().st_mtime_ns)
    if not found.startswith(prefix):
        raise WeightsError(f"{path} is damaged: its sha256 begins with {found[:8]}, not {prefix}; delete it and get it anew")
    return path


@functools.lru_cache(maxsize=8)
def _digest(path: Path, modified: int) -> str:
    """sha256 of a file, once per process and modification time."""
    return file_digest(path)


@functools.lru_cache(maxsize=1)  # a process that runs many trials opens the same file for each
def _open_file(imagenet: bool, path: Path, stamp: tuple[int, int], backbone: str, channels: int) -> Encoder:
    tensors, metadata = read_tensors(path)
    own = _own_metadata(path, metadata)
    if own is not None and own.get("backbone", backbone) != backbone:
        raise WeightsError(f"weights {path} are those of a {own['backbone']}, not of a {backbone}")
    with torch.device("meta"):
        network = build_backbone(backbone, channels, 0.0)
    ours = any(name.startswith("backbone.") for name in tensors)
    if not ours and not network.torchvision_keys:
        raise WeightsError(f"weights {path} are not those of a {backbone}: no tensor is named backbone.<...>, as tlray saves them")
    names = {key: f"backbone.{key}" if ours else network.torchvision_keys[key] for key in network.state_dict()}
    state, notes = _checked(path, network, tensors, names)
    mean, std = _normalisation(path, own, ours, network)
    source = {
        "weights": "imagenet" if imagenet else "file",
        "file": path.name if imagenet else str(path),
        "sha256": _digest(path, stamp[0]),
        "layout": "tlray" if ours else "torchvision",
        "classes": (own or {}).get("classes"),
        "metadata": own if own is not None else metadata,
    }
    return encoder_of(state, _head(tensors, network.num_features), mean, std, source, notes)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a safetensors or torch file, known by content and not by name, and safetensors' metadata.

    A torch file may nest its tensors under `state_dict` or `model` and prefix their names with `module.`.
    Raises WeightsError for anything else, also for a file that holds more than tensors and plain values.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and start[:4] != b"PK\x03\x04":
        try:
            with safe_open(path, framework="pt") as opened:
                names = list(opened.keys())
                return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
        except SafetensorError as error:
            raise WeightsError(f"weights {path} are damaged or cut off ({error}): get the file anew") from error
    if not start.startswith((b"PK\x03\x04", b"\x80")):
        raise WeightsError(f"{path} is neither a safetensors nor a torch file: name a file of weights")
    try:
        # given a path, torch decides by the name's ending; what it warns of is refused or harmless
        with open(path, "rb") as file, warnings.catch_warnings(action="ignore"):
            value = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged, and is not unpickled: save the model's state_dict() alone"
        ) from error
    except Exception as error:  # what torch's reader raises over spoilt bytes is written down nowhere
        raise WeightsError(f"weights {path} are damaged or no torch file of tensors: get the file anew") from error
    return _unwrapped(path, value), {}


def _unwrapped(path: Path, value: Any) -> dict[str, Tensor]:
    """The flat dictionary of tensors in what a torch file held."""
    while isinstance(value, dict) and (
        inner := next((name for name in ("state_dict", "model") if isinstance(value.get(name), dict)), None)
    ):
        value = value[inner]
    if not isinstance(value, dict) or not value or not all(isinstance(each, Tensor) for each in value.values()):
        raise WeightsError(f"{path} holds no dictionary of tensors: save the model's state_dict()")
    return {str(name).removeprefix("module."): tensor for name, tensor in value.items()}


def _own_metadata(path: Path, metadata: dict[str, str]) -> dict[str, Any] | None:
    if "tlray" not in metadata:
        return None
    try:
        own = json.loads(metadata["tlray"])
    except ValueError:
        own = None
    if not isinstance(own, dict):
        raise WeightsError(f"weights {path} have damaged tlray metadata: save them anew")
    return own


def _normalisation(path: Path, own: dict[str, Any] | None, ours: bool, network: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if own is None and not ours:
        return IMAGENET_MEAN, IMAGENET_STD
    read = []
    for name in ("mean", "std"):
        values = (own or {}).get(name)
        values = values if isinstance(values, list) and len(values) in (1, network.channels) else [None]
        if not all(isinstance(each, float | int) and np.isfinite(each) and (name == "mean" or each > 0) for each in values):
            raise WeightsError(
                f"weights {path} do not say in their tlray metadata the {name} of each channel they were trained with: save anew"
            )
        read.append(tuple(float(each) for each in values if each is not None))
    return read[0], read[1]


def _head(tensors: dict[str, Tensor], num_features: int) -> dict[str, Tensor] | None:
    """The linear head of a file, when it has one of our shape."""
    for name in HEADS:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        if weight is not None and bias is not None and weight.ndim == 2 and weight.shape[1] == num_features:
            return {"weight": weight.to(torch.float32, copy=True), "bias": bias.to(torch.float32, copy=True)}
    return None


def _checked(path: Path, network: Backbone, tensors: dict[str, Tensor], names: dict[str, str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The backbone's state in our keys, every tensor there and of the right shape, nothing left over but the head."""
    state, wrong, converted = {}, [], set()
    for key, template in network.state_dict().items():
        found = tensors.get(names[key])
        if found is None and key.endswith("num_batches_tracked"):
            found = torch.zeros((), dtype=torch.int64)
        if found is None:
            wrong.append(f"{names[key]}, which is not in the file")
        elif found.shape != template.shape or found.is_floating_point() != template.is_floating_point():
            wrong.append(f"{names[key]}, which is {_shape(found)} in the file and {_shape(template)} in the network")
        else:
            converted |= {_type(found)} - {_type(template)}
            state[key] = found.to(template.dtype, copy=True)  # safetensors gives views of the mapped file, which may change
            if not torch.isfinite(state[key]).all():
                raise WeightsError(f"weights {path} hold numbers that are not finite, in {names[key]}: use others")
    if wrong:
        raise WeightsError(
            f"weights {path} are not those of a {network.name}: {len(wrong)} of its {len(names)} tensors are missing or different, "
            f"first {wrong[0]}"
        )
    left = tensors.keys() - set(names.values())
    ours = any(name.startswith("backbone.") for name in names.values())
    heads = ("head.",) if ours else tuple(f"{each}." for each in HEADS)  # a head of ours may be an autoencoder's decoder
    extra = sorted(name for name in left if not name.startswith(heads) and "num_batches_tracked" not in name)
    if extra:
        raise WeightsError(f"weights {path} are not those of a {network.name}: {len(extra)} tensors too many, first {extra[0]}")
    return state, tuple(f"{path.name}: {each} numbers read as float32" for each in sorted(converted))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return f"{_type(tensor)} {list(tensor.shape)}"

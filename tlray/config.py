"""One training is one flat, frozen `Config`; one word is one parameter everywhere.

`lr` is `--set lr=...`, `"lr"` in a search space, `config.lr`, `lr=` in the optimizer and the column `config/lr`.
`dataclasses.replace` is the only way to vary a Config and `__post_init__` the only validator of names and ranges.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, get_args
from urllib.parse import parse_qsl

from tlray.errors import ConfigError
from tlray.registry import AUGMENTS, BACKBONES, METRICS, OPTIMIZERS, SCHEDULERS, TASKS, UNFREEZE, did_you_mean

LOWER_IS_BETTER = frozenset({"loss", "ece", "mae", "mse"})
"""Metrics that are better when lower; all others are better when higher."""

RECONSTRUCTION = ("mse", "psnr", "ssim")
"""Metrics of an autoencoder's images; a classifier has all the others, and both have the loss."""

SSIM_WINDOW = 11
"""Pixels on a side of the window of ssim: smaller images have none."""

AUTOENCODER_SUFFIX = "/autoencoder"
"""What stands behind a data set in `weights` when an autoencoder, and not a classifier, is to be trained on it."""

AS_WEIGHTS = f"weights=<data set>{AUTOENCODER_SUFFIX}"
"""How a user names an autoencoder, for messages."""

PATH_SCHEMES = ("npz:", "folder:")
"""A task that starts with one of these is the user's own file or folder."""


def _knob(default: Any, doc: str, **rule: Any) -> Any:
    """A field with its one-line documentation and its range: low, high (inclusive), above (exclusive), choices."""
    return field(default=default, metadata={"help": doc, **rule})


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of one training.

    Raises ConfigError, once, with every problem of names, types and ranges. Files are checked when the task is opened.
    """

    task: str = _knob("pneumoniamnist", "Data set: a name, npz:FILE or folder:DIR.")
    size: int = _knob(28, "Pixels on a side that the network sees.", low=8, high=1024)
    samples: int | str | None = _knob(None, "Training images drawn by the seed: none (all), a number, or N/class (N of each class).")
    folds: int | None = _knob(None, "Number of cross-validation folds of the training split, or none.", low=2, high=100)
    fold: int | None = _knob(None, "Which fold (from 0) is the validation split; needs folds.", low=0)
    augment: str = _knob("none", "Random change of the training images.", registry=AUGMENTS)
    backbone: str = _knob("resnet18", "Network without its head.", registry=BACKBONES)
    weights: str = _knob(
        "none",
        "Where the encoder comes from: none, imagenet, a file, or a data set to pretrain on (SOURCE[/autoencoder][?field=value&...]).",
    )
    objective: str = _knob("classification", "What is learned: classification, or autoencoder (to rebuild the images; a pretraining).",
                           choices=("classification", "autoencoder"))  # fmt: skip
    dropout: float = _knob(0.0, "Probability of dropping a feature before the head's linear layer.", low=0.0, high=0.95)
    unfreeze: str = _knob(
        "full", "Which stages train when: head, full, last_K, first_K, head_then_full (LP-FT), gradual.", registry=UNFREEZE
    )
    layer_decay: float = _knob(1.0, "Factor on the learning rate per stage downwards from the head; 1 = equal.", above=0.0, high=1.0)
    optimizer: str = _knob("adamw", "Optimizer.", registry=OPTIMIZERS)
    lr: float = _knob(1e-3, "Peak learning rate of the head, per step.", above=0.0, high=100.0)
    weight_decay: float = _knob(1e-4, "Weight decay of weight matrices (biases and norms have none).", low=0.0, high=10.0)
    scheduler: str = _knob("cosine", "Course of the learning rate over each phase's steps.", registry=SCHEDULERS)
    warmup: float = _knob(0.0, "Share of each phase's steps over which the learning rate rises linearly.", low=0.0, high=0.9)
    label_smoothing: float = _knob(0.0, "Share of the label's weight spread over all classes.", low=0.0, high=0.9)
    class_weights: str = _knob("none", "none, or balanced: weight inverse to the frequency in the drawn labels.",
                               choices=("none", "balanced"))  # fmt: skip
    epochs: int = _knob(10, "Epochs over all phases.", low=1, high=100_000)
    steps_per_epoch: int | None = _knob(None, "None: every image once per epoch; N: N batches drawn from consecutive permutations.", low=1)
    batch_size: int = _knob(64, "Images per optimizer step, over all workers.", low=1, high=1_000_000)
    patience: int | None = _knob(None, "Epochs without a better monitor after which a phase (the last: the run) ends, or none.", low=1)
    monitor: str = _knob("auroc", "Validation metric that decides; several of one direction joined by + are averaged.")
    precision: str = _knob("float32", "Arithmetic of the forward pass.", choices=("float32", "bfloat16", "float64"))
    threads: int | None = _knob(None, "CPU threads of one process (part of the numbers); none: all it may use.", low=1, high=1024)
    seed: int = _knob(0, "Seed of the draw, the initial weights and everything random.", low=0, high=2**32 - 1)

    def __post_init__(self) -> None:
        problems = [problem for each in dataclasses.fields(self) if (problem := self._field_problem(each))]
        problems += self._name_problems()
        if not problems:
            problems = self._combination_problems()
        if problems:
            raise ConfigError("; ".join(problems))

    def _field_problem(self, each: dataclasses.Field) -> str | None:
        value, rule = getattr(self, each.name), each.metadata
        types: Any = get_args(each.type) or (each.type,)
        if isinstance(value, bool) or not isinstance(value, types):
            if float in types and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300:
                object.__setattr__(self, each.name, float(value))
                return self._field_problem(each)
            return f"{each.name}={value!r} is not {_type_name(types)}"
        if value is None or isinstance(value, str):
            choices = rule.get("choices")
            if choices and value not in choices:
                return f"{each.name}={value!r}{did_you_mean(str(value), choices)}: choose from {', '.join(choices)}"
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return f"{each.name}={value!r} is not finite"
        low, high, above = rule.get("low"), rule.get("high"), rule.get("above")
        if (low is not None and value < low) or (high is not None and value > high) or (above is not None and value <= above):
            lower = f"above {above:g}" if above is not None else f"at least {low:g}"
            return f"{each.name}={value!r} is out of range: {lower}" + (f", at most {high:g}" if high is not None else "")
        return None

    def _name_problems(self) -> list[str]:
        problems = []
        for each in dataclasses.fields(self):
            registry, value = each.metadata.get("registry"), getattr(self, each.name)
            if registry and isinstance(value, str):
                problems.append(registry.problem(unfreeze_rule(value)[0] if each.name == "unfreeze" else value))
        if isinstance(self.task, str) and not self.task.startswith(PATH_SCHEMES):
            problems.append(TASKS.problem(self.task))
        if isinstance(self.monitor, str):
            problems += [METRICS.problem(name) for name in self.monitor.split("+")]
        if isinstance(self.samples, str) and not re.fullmatch(r"[1-9]\d*/class", self.samples):
            problems.append(f"samples={self.samples!r} is neither a number nor N/class")
        if isinstance(self.samples, int) and self.samples < 2:
            problems.append(f"samples={self.samples} is out of range: at least 2")
        if isinstance(self.weights, str):
            problems += pretraining_problems(self.weights)
        return [problem for problem in problems if problem]

    def _combination_problems(self) -> list[str]:
        problems = []
        if len({name in LOWER_IS_BETTER for name in self.monitor.split("+")}) > 1:
            problems.append(f"monitor={self.monitor!r} mixes metrics that are better when lower with others")
        if (self.fold is None) != (self.folds is None):
            problems.append("fold and folds must be given together")
        elif self.fold is not None and self.folds is not None and self.fold >= self.folds:
            problems.append(f"fold={self.fold} is not one of {self.folds} folds (counted from 0)")
        if self.weights == "none" and self.unfreeze != "full":
            problems.append(
                f"unfreeze={self.unfreeze!r} starts from frozen stages, but weights='none' gives untrained ones, whose features are "
                "random, in some backbones constant (AUROC .5): use unfreeze='full' or name weights"
            )
        if self.unfreeze in ("head_then_full", "gradual") and self.epochs < 2:
            problems.append(f"unfreeze={self.unfreeze!r} has several phases and needs epochs of at least 2")
        return problems + (self._autoencoder_problems() if self.objective == "autoencoder" else self._classifier_problems())

    def _classifier_problems(self) -> list[str]:
        theirs = [name for name in self.monitor.split("+") if name in RECONSTRUCTION]
        if not theirs:
            return []
        return [f"monitor={self.monitor!r}: {theirs[0]} judges an autoencoder, which is a pretraining: name it as {AS_WEIGHTS}"]

    def _autoencoder_problems(self) -> list[str]:
        problems = []
        if foreign := [name for name in self.monitor.split("+") if name not in ("loss", *RECONSTRUCTION)]:
            problems.append(
                f"an autoencoder, which is a pretraining (name it as {AS_WEIGHTS}), is judged by loss, {', '.join(RECONSTRUCTION)}, "
                f"not by monitor={foreign[0]!r}"
            )
        needed = {"unfreeze": "full", "class_weights": "none", "label_smoothing": 0.0}
        problems += [
            f"objective='autoencoder' has no use for {name}={getattr(self, name)!r}: leave it at {value!r}"
            for name, value in needed.items()
            if getattr(self, name) != value
        ]
        if self.size < SSIM_WINDOW:
            problems.append(
                f"objective='autoencoder' needs a size of at least {SSIM_WINDOW} px, not {self.size}: ssim has a window of that size"
            )
        return problems

    @property
    def minimise(self) -> bool:
        """Whether a lower monitor is better."""
        return self.monitor.split("+")[0] in LOWER_IS_BETTER

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, as plain JSON values."""
        return dataclasses.asdict(self)


FIELDS = {each.name: each for each in dataclasses.fields(Config)}


def unfreeze_rule(name: str) -> tuple[str, int | None]:
    """`last_2` -> ("last_K", 2); a name without a number as it is."""
    if found := re.fullmatch(r"(last|first)_([1-9]\d*)", name):
        return f"{found[1]}_K", int(found[2])
    return name, None


def _type_name(types: tuple) -> str:
    names = {int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return " or ".join(names[each] for each in types)


def parse_field(name: str, text: str) -> Any:
    """The value that `text` from a command line means for field `name`.

    Raises ConfigError for an unknown field or a text of the wrong type.
    """
    if name not in FIELDS:
        raise ConfigError(f"unknown field {name!r}{did_you_mean(name, FIELDS)}: choose from {', '.join(FIELDS)}")
    types = get_args(FIELDS[name].type) or (FIELDS[name].type,)
    if type(None) in types and text.lower() in ("none", ""):
        return None
    for kind in (each for each in (int, float) if each in types):
        try:
            return kind(text)
        except ValueError:
            continue
    if str in types:
        return text
    raise ConfigError(f"{name}={text!r} is not {_type_name(types)}")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`["lr=1e-3", "samples=300"]` -> {"lr": 0.001, "samples": 300}."""
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is not of the form field=value")
        values[name.strip()] = parse_field(name.strip(), text.strip())
    if values.get("objective") == "autoencoder":
        raise ConfigError(f"--set objective=autoencoder: an autoencoder is a pretraining, name it as {AS_WEIGHTS}")
    return values


def pretraining_source(weights: str) -> tuple[str, dict[str, Any]] | None:
    """(data set, overridden fields) when `weights` names a data set to pretrain on; None for none, imagenet and files.

    The data set keeps its `/autoencoder`, when it has one.
    """
    name, _, query = weights.partition("?")
    if weights in ("none", "imagenet") or (name.removesuffix(AUTOENCODER_SUFFIX) not in TASKS and not name.startswith(PATH_SCHEMES)):
        return None
    return name, {key: parse_field(key, text) for key, text in parse_qsl(query, keep_blank_values=True)}


def pretraining_problems(weights: str) -> list[str]:
    """What is wrong with the spelling of `weights`; whether a file is there is checked when it is opened."""
    try:
        source = pretraining_source(weights)
    except ConfigError as error:
        return [f"weights={weights!r}: {error}"]
    if source:
        fixed = sorted({"task", "backbone", "size", "weights", "unfreeze", "objective"} & set(source[1]))
        return [f"weights={weights!r}: {', '.join(fixed)} cannot be overridden in a pretraining"] if fixed else []
    if weights in ("none", "imagenet") or "/" in weights or "." in weights or weights.startswith("~"):
        return []
    choices = ["none", "imagenet", *TASKS.names()]
    return [
        f"unknown weights {weights!r}{did_you_mean(weights, choices)}: none, imagenet, a file, or a data set ({', '.join(choices[2:])})"
    ]

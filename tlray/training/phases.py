"""An unfreeze schedule is a list of phases; a phase says which stages train besides the head."""

from collections.abc import Sequence
from dataclasses import dataclass

from tlray.config import Config, unfreeze_rule
from tlray.errors import ConfigError, RunError
from tlray.registry import UNFREEZE


@dataclass(frozen=True)
class Phase:
    """So many epochs in which these stages (bottom to top) and the head train."""

    epochs: int
    trainable: tuple[str, ...]

    def first_trainable(self, stages: Sequence[str]) -> int:
        """Index of the first trainable stage, which is the length of the frozen prefix; len(stages) when only the head trains."""
        return min((list(stages).index(name) for name in self.trainable), default=len(stages))


@UNFREEZE.register("full")
def full(stages: tuple[str, ...], epochs: int, k: int | None) -> list[Phase]:
    """Everything trains from the first step (fine-tuning)."""
    return [Phase(epochs, stages)]


@UNFREEZE.register("head")
def head(stages: tuple[str, ...], epochs: int, k: int | None) -> list[Phase]:
    """Only the head trains (fixed features, linear probing)."""
    return [Phase(epochs, ())]


@UNFREEZE.register("last_K")
def last_k(stages: tuple[str, ...], epochs: int, k: int | None) -> list[Phase]:
    """The top K stages train (Yosinski et al. 2014, arXiv:1411.1792)."""
    return [Phase(epochs, stages[-(k or 1) :])]


@UNFREEZE.register("first_K")
def first_k(stages: tuple[str, ...], epochs: int, k: int | None) -> list[Phase]:
    """The bottom K stages train (surgical fine-tuning for input shifts, Lee et al. 2023, arXiv:2210.11466)."""
    return [Phase(epochs, stages[: (k or 1)])]


@UNFREEZE.register("head_then_full")
def head_then_full(stages: tuple[str, ...], epochs: int, k: int | None) -> list[Phase]:
    """The head for a third of the epochs, then everything (LP-FT, Kumar et al. 2022, arXiv:2202.10054)."""
    first = max(1, round(epochs / 3))
    return [Phase(first, ()), Phase(epochs - first, stages)]


@UNFREEZE.register("gradual")
def gradual(stages: tuple[str, ...], epochs: int, k: int | None) -> list[Phase]:
    """The head, then one stage more from the top in each phase (Howard & Ruder 2018, arXiv:1801.06146).

    With fewer epochs than stages + 1 several stages are unfrozen at once; epochs left over go to the last phases.
    """
    count = min(epochs, len(stages) + 1)
    opened = [round(index * len(stages) / (count - 1)) for index in range(count)] if count > 1 else [len(stages)]
    lengths = [epochs // count + (index >= count - epochs % count) for index in range(count)]
    return [Phase(length, stages[len(stages) - top :]) for length, top in zip(lengths, opened, strict=True)]


def phases(config: Config, stages: Sequence[str]) -> list[Phase]:
    """The phases of a training on a backbone with these stages.

    Raises ConfigError when the schedule does not say for how many stages, or asks for more than there are.
    """
    rule, k = unfreeze_rule(config.unfreeze)
    if rule.endswith("_K") and k is None:
        raise ConfigError(f"unfreeze={rule!r} needs a number in the place of K, such as {rule[:-1]}1")
    if k is not None and k > len(stages):
        raise ConfigError(
            f"unfreeze={config.unfreeze!r}: {config.backbone} has {len(stages)} stages ({', '.join(stages)}), "
            f"so at most {rule[:-1]}{len(stages)}"
        )
    return UNFREEZE[rule](tuple(stages), config.epochs, k)


def trained_stages(plan: Sequence[Phase]) -> set[str]:
    """Stages that train in any of these phases."""
    return {name for phase in plan for name in phase.trainable}


def as_loaded(plan: Sequence[Phase], number: int, stages: Sequence[str]) -> int:
    """Length of the frozen prefix of phase `number`, 0 where a phase before has trained a part of it."""
    start = plan[number].first_trainable(stages)
    return start if trained_stages(plan[:number]).isdisjoint(stages[:start]) else 0


def has_backbone_phase(unfreeze: str) -> bool:
    """Whether any stage of the backbone ever trains under this schedule."""
    return unfreeze != "head"


@dataclass(frozen=True)
class Position:
    """Where the next epoch stands: phase (from 0) and the epochs of that phase that are done."""

    phase: int
    done: int


def locate(plan: Sequence[Phase], scores: Sequence[tuple[int, float]], patience: int | None, minimise: bool) -> Position | None:
    """The position after these epochs, a pure function of their (phase, monitor) pairs; None when training is over.

    A phase ends after its epochs, or when `patience` of them in a row brought no better monitor than the best of the phase.
    """
    index, values = 0, []
    for phase, score in scores:
        if phase != index:
            raise RunError(f"the history has an epoch of phase {phase} where the schedule is in phase {index}: start a run of another name")
        values.append(-score if minimise else score)
        since_best = len(values) - 1 - values.index(max(values))
        if len(values) == plan[index].epochs or (patience is not None and since_best >= patience):
            index, values = index + 1, []
    return Position(index, len(values)) if index < len(plan) else None

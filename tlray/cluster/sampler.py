"""Which configuration comes next: Optuna's TPE as a pure function of the seed, the trial's number and the trials that have ended.

Nothing is stored and nothing unpickled: after a resume the study is built anew from the trials' own files and proposes what it would
have proposed.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tlray.config import FIELDS, Config
from tlray.data.loader import mix
from tlray.errors import ConfigError
from tlray.registry import did_you_mean
from tlray.results import FAILED, NONFINITE, Trial
from tlray.training.phases import has_backbone_phase

NOT_SEARCHED = frozenset({"task", "size", "folds", "fold", "backbone", "monitor", "threads", "seed"})
"""Fields that say what is asked, not how well it is answered."""

Space = Mapping[str, BaseDistribution]


def good_trials(ended: int) -> int:
    """How many of the ended trials TPE models as the good ones: a quarter.

    Optuna's default, a tenth, is a single trial up to ten of them: then the proposals hardly depend on the results.
    """
    return min(25, math.ceil(0.25 * ended))


def relevant(name: str, config: Config) -> bool:
    """Whether field `name` changes a training with this Config; what is not relevant is absent from the trial."""
    return name != "layer_decay" or has_backbone_phase(config.unfreeze)


def check_space(space: Space, base: Config) -> None:
    """Refuse a space with unknown or meaningless fields, or with values that no Config may have. Raises ConfigError."""
    problems = []
    for name, domain in space.items():
        if name not in FIELDS:
            problems.append(f"unknown field {name!r} in the search space{did_you_mean(name, FIELDS)}")
            continue
        if name in NOT_SEARCHED:
            problems.append(f"{name} cannot be searched: it is part of the question")
        elif name == "layer_decay" and "unfreeze" not in space and not relevant(name, base):
            problems.append(f"{name} cannot be searched: it changes nothing under unfreeze={base.unfreeze!r}")
        ends = domain.choices if isinstance(domain, CategoricalDistribution) else (domain.low, domain.high)  # type: ignore[attr-defined]
        for value in ends:
            try:
                replace(base, **{name: value})
            except ConfigError as error:
                problems.append(f"search space of {name}: {error}")
    if problems:
        raise ConfigError("; ".join(problems))


class Proposer(Protocol):
    """Names a search's configurations one by one: `trials` of them, those of `first` never judged early, all on the question `base`."""

    @property
    def base(self) -> Config: ...
    @property
    def first(self) -> Sequence[dict[str, Any]]: ...
    @property
    def trials(self) -> int: ...
    def propose(self, number: int, known: Sequence[Trial]) -> Config: ...


@dataclass(frozen=True)
class Sampler:
    """Proposes configurations.

    base: what is not searched. space: field -> Optuna distribution. first: overrides of the configurations that go first, unsampled.
    trials: how many are planned, which sets how many go before TPE learns from them.
    """

    base: Config
    space: dict[str, BaseDistribution]
    first: tuple[dict[str, Any], ...]
    trials: int
    seed: int

    @property
    def startup(self) -> int:
        """Trials, the first ones included, before TPE proposes; a third of the plan, so it does within few trials."""
        return max(2, min(10, self.trials // 3))

    def propose(self, number: int, known: Sequence[Trial]) -> Config:
        """The configuration of trial `number`, given the trials that have ended (others count as running ones).

        Equal arguments give equal configurations, in any process.
        """
        if number < len(self.first):
            return replace(self.base, **self.first[number])
        if number < self.startup:
            return self._spread(number - len(self.first), self.startup - len(self.first))
        study = self._study(number)
        for trial in known:
            if (frozen := self._frozen(trial)) is not None:
                study.add_trial(frozen)
        asked = study.ask()
        return self._drawn(lambda name, domain: _suggest(asked, name, domain))

    def _spread(self, number: int, count: int) -> Config:
        """One of `count` configurations that cover every range and all choices evenly (a Latin hypercube, McKay et al. 1979).

        Independent draws miss a choice now and then, and TPE then hardly ever looks at it again.
        """

        def cell(name: str, domain: BaseDistribution) -> Any:
            generator = np.random.default_rng(mix("start", name, self.seed))
            place = generator.permutation(count)[number]
            if isinstance(domain, CategoricalDistribution):
                return domain.choices[(place + generator.integers(len(domain.choices))) % len(domain.choices)]
            return _at(domain, (place + generator.random(count)[number]) / count)

        return self._drawn(cell)

    def _study(self, number: int) -> optuna.Study:
        """An empty study whose sampler is seeded for this trial alone."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = mix("sampler", self.seed, number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # group, constant_liar: pinned and tested
            warnings.simplefilter("ignore", FutureWarning)  # gamma goes in Optuna 6; pinned below it and tested
            sampler = optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=self.startup, gamma=good_trials
            )
        return optuna.create_study(sampler=sampler, direction="minimize" if self.base.minimise else "maximize")

    def _drawn(self, draw: Callable[[str, BaseDistribution], Any]) -> Config:
        """Draw field after field; the schedule goes first because it decides which others mean anything."""
        config = self.base
        for name in sorted(self.space, key=lambda each: each != "unfreeze"):
            if relevant(name, config):
                config = replace(config, **{name: draw(name, self.space[name])})
        return config

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial | None:
        """An ended or running trial as Optuna knows it, None for a failed one (which says nothing about its configuration)."""
        config = Config(**trial.config)
        params = {
            name: trial.config[name] for name in self.space if relevant(name, config) and _inside(trial.config[name], self.space[name])
        }
        domains = {name: self.space[name] for name in params}
        if not trial.ended:
            return optuna.trial.create_trial(state=TrialState.RUNNING, params=params, distributions=domains)
        value = told_value(trial, self.base.minimise)
        return None if value is None else optuna.trial.create_trial(params=params, distributions=domains, value=value)


def told_value(trial: Trial, minimise: bool) -> float | None:
    """What the sampler is told: the best monitor; for a non-finite trial its worst, else chance; None for a failed one."""
    values = [row["monitor"] for row in trial.history]
    if trial.status == FAILED:
        return None
    if trial.status == NONFINITE:
        return (max(values) if minimise else min(values)) if values else trial.chance
    return (min(values) if minimise else max(values)) if values else None


def _suggest(asked: optuna.trial.Trial, name: str, domain: BaseDistribution) -> Any:
    if isinstance(domain, CategoricalDistribution):
        return asked.suggest_categorical(name, domain.choices)
    if isinstance(domain, IntDistribution):
        return asked.suggest_int(name, domain.low, domain.high, step=domain.step, log=domain.log)
    assert isinstance(domain, FloatDistribution)
    return asked.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _at(domain: BaseDistribution, share: float) -> Any:
    """The value at a share of a range, from 0 to below 1."""
    assert isinstance(domain, FloatDistribution | IntDistribution)
    step = domain.step or 0
    high = domain.high + step  # each step has its share, the last one too
    value = domain.low * (high / domain.low) ** share if domain.log else domain.low + share * (high - domain.low)
    if step:
        value = min(domain.low + (value - domain.low) // step * step, domain.high)
    return int(value) if isinstance(domain, IntDistribution) else float(value)


def _inside(value: Any, domain: BaseDistribution) -> bool:
    if isinstance(domain, CategoricalDistribution):
        return value in domain.choices
    return domain.low <= value <= domain.high  # type: ignore[attr-defined]

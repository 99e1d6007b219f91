"""A comparison: every combination of named values under every seed (and fold), each training to its end, no search."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tlray.cluster.session import started
from tlray.cluster.trial import Job
from tlray.config import Config
from tlray.data.task import Task, open_task
from tlray.errors import ConfigError, RunError, StorageError, UserError
from tlray.report.comparing import compare_arms, conclusion
from tlray.report.stats import Spread
from tlray.results import FINISHED, Trial, read_summary, read_trials, rows_of, trial_folder
from tlray.runs.arms import Across, Grid, make_grid
from tlray.runs.delivery import describe_task
from tlray.runs.evaluation import Scored, TestDoor, score
from tlray.runs.figures import chosen_arms, fold_share, interval_of, measured, spreads_of, validated
from tlray.runs.folder import Run, finish, interrupted, prepare_weights
from tlray.runs.planning import check_training
from tlray.runs.progress import Display
from tlray.training.metrics import chance_metrics

FOLDER = "comparison"
METRICS = ("auroc", "accuracy", "balanced_accuracy", "f1")
"""Test metrics that arms are compared by; the conclusion is drawn from the first."""
NAMED = 3
"""Trainings that broke off that are named one by one."""
Pairs = Callable[[dict[str, float]], Sequence[tuple[str, str]]]
"""From the mean best validation monitor of each arm to the pairs (arm, what it is compared with)."""


@dataclass(frozen=True)
class Question:
    """What a comparison is to answer.

    title, text: for the report. metrics: see METRICS. pairs: which arms are compared; by default each with the first arm of its task.
    """

    title: str = ""
    text: str = ""
    metrics: Sequence[str] = METRICS
    pairs: Pairs | None = None


@dataclass(frozen=True)
class Comparison:
    """A finished comparison: what stands in summary.json, and what pictures and verdicts are made from.

    trials, scored: of each arm, one per replicate. spreads: arm -> metric -> bootstrap over test images.
    """

    run: Run
    summary: dict[str, Any]
    grid: Grid
    trials: dict[str, list[Trial]]
    scored: dict[str, list[Scored]]
    spreads: dict[str, dict[str, Spread]]

    def values(self, arm: str, metric: str, split: str = "test") -> list[float]:
        """A metric of an arm's trainings, one per replicate."""
        return [each.metrics(split)[metric] for each in self.scored[arm]]

    def entry(self, arm: str) -> dict[str, Any]:
        """An arm's entry in the summary."""
        return next(each for each in self.summary["comparison"]["arms"] if each["arm"] == arm)

    def paired(self, metric: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """Pairs of arms compared on a test metric, Holm over these (see `compare_arms`)."""
        named = {name for pair in pairs for name in pair}
        values = {arm: self.values(arm, metric) for arm in named}
        spreads = {arm: self.spreads[arm][metric] for arm in named}
        return compare_arms(metric, pairs, values, spreads, fold_share(self.grid))


def compare(
    base: Config, across: Across, run: Run, seeds: Sequence[int] = (0, 1, 2, 3, 4), question: Question | None = None
) -> Comparison:  # fmt: skip
    """Train every combination under every seed, choose by mean validation, then open the test split once for all.

    The choice stands in summary.json before the test split is opened. Seeds (and folds) are shared, so arms are paired. A run that was
    interrupted, also while it was scored, goes on where it was.

    Args:
        base: what is the same everywhere.
        across: see `Across`; `folds=[K]` repeats every arm over K folds of the training split.
        seeds: each sets the draw of samples, the initial weights and everything random.

    Raises Interrupted after Ctrl-C, with the state saved; RunError when a training broke off; the UserError of a wrong
    configuration before anything is trained.
    """
    question = question or Question()
    grid, names = checked(base, across, run, seeds, question)
    began, before = time.monotonic(), _spent(run)

    def seconds() -> float:
        return before + time.monotonic() - began

    def rows(trials: list[Trial]) -> list[dict[str, Any]]:
        return [{**row, "task": names[row["config/task"]]} for row in rows_of(FOLDER, base.task, trials)]

    def leave_table() -> None:
        finish(run, "compare", rows(read_trials(run.folder / FOLDER)), [], partial=True, seconds=seconds())

    trials = _trained(grid, run, leave_table)
    of_arm = {arm: [trial for trial in trials if trial.arm == arm] for arm in grid.arms}
    interval = interval_of(grid)
    entries = [validated(grid, arm, of_arm[arm], names[grid.first(arm).task], interval) for arm in grid.arms]
    about = _about(grid, run, question, entries)
    finish(run, "compare", rows(trials), [], partial=True, seconds=seconds(), more={"comparison": about})
    scored = _scored(run, grid, of_arm)
    about["arms"] = [measured(entry, scored[entry["arm"]], interval) for entry in entries]
    tasks = {entry["arm"]: entry["task"] for entry in entries}
    spreads = spreads_of(scored, tasks, question.metrics)
    for entry in about["arms"]:
        entry["test_noise"] = {metric: spread.summary() for metric, spread in spreads[entry["arm"]].items()}
        about["tasks"][entry["task"]]["images_test"] = len(scored[entry["arm"]][0].labels["test"])
    done = Comparison(run, {"comparison": about}, grid, of_arm, scored, spreads)
    pairs = _pairs(question, entries, tasks)
    about["comparisons"] = [each for metric in question.metrics for each in done.paired(metric, pairs)]
    images = {task: facts["images_test"] for task, facts in about["tasks"].items()}
    about["conclusion"] = conclusion(about["comparisons"], question.metrics[0], len(grid.seeds), images, grid.folds)
    summary = finish(run, "compare", rows(trials), [], partial=False, seconds=seconds(), more={"comparison": about})
    return replace(done, summary=summary)


def checked(
    base: Config, across: Across, run: Run, seeds: Sequence[int], question: Question
) -> tuple[Grid, dict[str, str]]:  # fmt: skip
    """The grid and the name of each task. Finds what is wrong before Ray starts: names, data, subsets, weights, metrics, an old run."""
    grid, seen, names = make_grid(base, across, seeds), set(), {}
    for _, config in grid.configs:
        key = str(replace(config, seed=0, fold=None if config.folds is None else 0))
        if key not in seen:
            seen.add(key)
            task = open_task(config.task, config.size, run.places)
            check_training(config, task, run.places)
            if config.task not in names:
                _check_metrics(task, question)
            names[config.task] = task.name
    for trial in read_trials(run.folder / FOLDER):
        wanted = grid.configs[trial.number][1].to_dict() if trial.number < len(grid.configs) else {"number of trainings": len(grid.configs)}
        different = [name for name, value in wanted.items() if name != "threads" and trial.config.get(name) != value]
        if different:
            raise RunError(f"{run.folder} was started with another {different[0]}: repeat its command, or give another --name")
    return grid, names


def _check_metrics(task: Task, question: Question) -> None:
    known = chance_metrics(task.kind, len(task.classes), np.asarray(task.val.labels))
    if missing := [metric for metric in question.metrics if metric not in known]:
        raise ConfigError(
            f"metrics: {missing[0]} is not measured for {task.name}, a task of kind {task.kind}: choose from {', '.join(known)}"
        )


def _spent(run: Run) -> float:
    """Wall time of earlier sessions: as their summary has it, or, where one was killed, about what its trainings took."""
    ended = [trial for trial in read_trials(run.folder / FOLDER) if trial.ended]
    trained = sum(row["seconds"] for trial in ended for row in trial.history) / run.resources.concurrent
    said = read_summary(run.folder)["seconds"] if (run.folder / "summary.json").is_file() else 0.0
    return max(trained, said)


def _trained(grid: Grid, run: Run, leave_table: Callable[[], object]) -> list[Trial]:
    """Every training, at its end; where one has none, a partial table is left and the error says why."""
    with started():
        prepare_weights([config for _, config in grid.configs], run)
        try:
            _train(grid, run)
        except KeyboardInterrupt:
            raise interrupted(run, leave_table) from None
        except StorageError:
            raise  # there is nowhere to leave a table
        except UserError:
            leave_table()
            raise
    trials = read_trials(run.folder / FOLDER)
    if len(trials) < len(grid.configs) or not all(trial.ended for trial in trials):
        raise interrupted(run, leave_table)
    if broken := [trial for trial in trials if trial.status != FINISHED]:
        leave_table()
        raise RunError(_broke_off(run, broken, len(trials)))
    return trials


def _broke_off(run: Run, broken: Sequence[Trial], of: int) -> str:
    said = [
        f"{trial.arm} under seed {trial.config['seed']} after {len(trial.history)} of {trial.config['epochs']} epochs"
        f" ({trial.reason or trial.status}; in {trial_folder(run.folder / FOLDER, trial.number)})"
        for trial in broken[:NAMED]
    ]
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return (
        f"{len(broken)} of {of} trainings broke off, so nothing is compared: {', '.join(said)}{more}; remove their folders to have them"
        " trained anew by the same command with --resume, or compare without such arms under another --name"
    )


def _train(grid: Grid, run: Run) -> None:
    from tlray.cluster import tuning  # imports Ray

    job = Job(run.name, run.folder / FOLDER, f"{run.name}-{FOLDER}", run.places, run.resources)
    with Display(run.console, {FOLDER: len(grid.configs)}, grid.base.monitor, grid.base.minimise) as display:
        display.already(FOLDER, read_trials(run.folder / FOLDER))
        tuning.grid(tuning.Book(job, grid.base.minimise, display, keep_best=True), grid.configs)


def _about(grid: Grid, run: Run, question: Question, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The part of the summary that validation settles."""
    sizes = {each["config"]["task"]: each["config"]["size"] for each in entries}
    facts = [describe_task(spec, size, run.places) for spec, size in sizes.items()]
    return {
        "title": question.title or run.name, "question": question.text, "monitor": grid.base.monitor, "minimise": grid.base.minimise,
        "metrics": list(question.metrics), "seeds": grid.seeds, "folds": grid.folds, "tasks": {each["task"]: each for each in facts},
        "chosen": chosen_arms(entries, grid.base.minimise), "arms": entries, "comparisons": [], "conclusion": "", "claims": [],
    }  # fmt: skip


def _scored(run: Run, grid: Grid, of_arm: dict[str, list[Trial]]) -> dict[str, list[Scored]]:
    """Every training on its splits; the test split of each task is opened once, or not at all when all have been scored."""
    door = TestDoor(run.ledger, f"comparison: {len(grid.configs)} trainings of {len(of_arm)} arms, after the choice by validation")
    minimise, cell = grid.base.minimise, run.folder / FOLDER
    return {arm: [score(cell, trial, minimise, run.places, door) for trial in trials] for arm, trials in of_arm.items()}


def _pairs(question: Question, entries: list[dict[str, Any]], tasks: dict[str, str]) -> Sequence[tuple[str, str]]:
    """The family of comparisons. Raises ConfigError for a pair that names no arm, or arms of two tasks."""
    if question.pairs is None:
        first = {task: arm for arm, task in reversed(tasks.items())}
        return [(arm, first[task]) for arm, task in tasks.items() if arm != first[task]]
    pairs = question.pairs({entry["arm"]: entry["validation"]["mean"] for entry in entries})
    for pair in pairs:
        if not set(pair) <= tasks.keys() or tasks[pair[0]] != tasks[pair[1]]:
            raise ConfigError(f"pairs: {pair[0]!r} and {pair[1]!r} are not two arms of one task")
    return pairs

"""A search: every cell's trials on Ray, its winner by validation, its test figures, its model."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tlray.cache import read_json, read_sealed, write_sealed
from tlray.cluster.sampler import Sampler
from tlray.cluster.trial import Job
from tlray.data.loader import mix
from tlray.errors import RunError, StorageError, UserError, raise_unless_of_the_file
from tlray.results import Trial, rank_key, read_trials, rows_of, winner
from tlray.runs.delivery import deliver, describe_task, repeats_of, seed_figures
from tlray.runs.folder import Run, finish, interrupted, prepare_weights
from tlray.runs.planning import Cell
from tlray.runs.progress import Display
from tlray.storage import AnyPath


def search(
    cells: Sequence[Cell], run: Run, *, trials: int, seed: int, seeds: int = 1, seconds: float | None = None, rule: str = "youden"
) -> dict[str, Any]:
    """Search every cell, deliver its winner, and write the tables and the report; the summary.

    Args:
        trials: per cell.
        seed: of the searcher; the trainings' own is in each cell's base.
        seeds: how many seeds of the winning configuration are trained, the winner's own included.
        seconds: time budget of all cells, or None.
        rule: how the operating threshold is chosen on validation.

    Raises Interrupted after Ctrl-C, with the state saved and a partial table; RunError when no trial of any cell came to an epoch.
    """
    started = time.monotonic()
    with _partial_if_cut_short(cells, run):
        prepare_weights([cell.base for cell in cells], run)
        deadline = None if seconds is None else started + seconds
        with Display(run.console, {cell.name: trials for cell in cells}, cells[0].base.monitor, cells[0].base.minimise) as display:
            for index, cell in enumerate(cells):
                left = None if deadline is None else max(1.0, (deadline - time.monotonic()) / (len(cells) - index))
                over = _search_cell(cell, run, display, trials, seed, left)
                _check_ended(run, read_trials(run.folder / cell.name), 0 if over else trials)
        entries = [_delivered(cell, cells, run, seeds, rule) for cell in cells]
    none = not any(entry["winner"] for entry in entries)
    summary = finish(run, "search", _rows(cells, run), entries, partial=none, seconds=time.monotonic() - started)
    if none:
        raise RunError("; ".join(_why_none(cell, read_trials(run.folder / cell.name)) for cell in cells))
    return summary


def best_by_validation(cells: Sequence[Cell], run: Run, *, trials: int, seed: int) -> Trial:
    """Search every cell without opening the test split; the best training of all by validation.

    Goes on where an interrupted call stopped. Raises Interrupted after Ctrl-C, RunError when no training came to an epoch.
    """
    prepare_weights([cell.base for cell in cells], run)
    minimise = cells[0].base.minimise
    with Display(run.console, {cell.name: trials for cell in cells}, cells[0].base.monitor, minimise) as display:
        for cell in cells:
            _search_cell(cell, run, display, trials, seed, None)
            _check_ended(run, read_trials(run.folder / cell.name), trials)
    found = [trial for cell in cells if (best := winner(read_trials(run.folder / cell.name), minimise)) for trial in [best[0]]]
    if not found:
        raise RunError("; ".join(_why_none(cell, read_trials(run.folder / cell.name)) for cell in cells))
    return min(found, key=lambda trial: rank_key(trial.best_row(minimise) or {}, minimise))


def _search_cell(cell: Cell, run: Run, display: Display, trials: int, seed: int, seconds: float | None) -> bool:
    """Search one cell; whether its time ran out."""
    from tlray.cluster import tuning  # imports Ray

    started = time.monotonic()
    display.already(cell.name, read_trials(run.folder / cell.name))
    book = tuning.Book(_job(run, cell, cell.name), cell.base.minimise, display)
    tuning.search(book, Sampler(cell.base, cell.space, cell.first, trials, mix("search", seed, cell.name)), seconds)
    return seconds is not None and time.monotonic() - started >= seconds


def _job(run: Run, cell: Cell, folder: str) -> Job:
    return Job(run.name, run.folder / folder, f"{run.name}-{folder.replace('/', '-')}", run.places, run.resources)


def _delivered(cell: Cell, cells: Sequence[Cell], run: Run, seeds: int, rule: str) -> dict[str, Any]:
    """The cell's entry in the summary; a cell whose test split was opened before an interruption keeps the entry it got then."""
    file = run.folder / cell.name / "delivered.json"
    if not file.is_file():
        found = read_trials(run.folder / cell.name)
        best = winner(found, cell.base.minimise)
        if best is None:
            run.console.print(_why_none(cell, found), markup=False, highlight=False, soft_wrap=True)
            return _partial_entry(cell, run)
        write_sealed(file, _deliver_cell(cell, cells, run, found, best[0], seeds, rule))
    try:
        return read_sealed(file)
    except (OSError, ValueError) as error:
        raise_unless_of_the_file(error, file)
        raise RunError(f"{file} is damaged ({error}): remove it and resume, the winner is delivered anew") from None


def _why_none(cell: Cell, found: list[Trial]) -> str:
    first = f"the first says: {found[0].reason or found[0].status}" if found else "none was started"
    return f"no trial of {cell.name} came to the end of an epoch; {first}"


def _deliver_cell(
    cell: Cell, cells: Sequence[Cell], run: Run, found: list[Trial], best: Trial, seeds: int, rule: str
) -> dict[str, Any]:  # fmt: skip
    """Train the winner's repeats, then open the test split for all of them and write the model."""
    from tlray.cluster import tuning  # imports Ray

    folder = run.folder / cell.name
    repeats: list[Trial] = []
    if seeds > 1:
        book = tuning.Book(_job(run, cell, f"{cell.name}/seeds"), cell.base.minimise, keep_best=True)
        repeats = tuning.grid(book, repeats_of(best, seeds))
        _check_ended(run, repeats, seeds - 1)
    delivered = deliver(folder, found, run.places, run.ledger, list(run.banner), rule)
    figures = seed_figures(folder, repeats, delivered.pop("uncalibrated"), run.places, run.ledger)
    return {**_entry(cell, run, found), **delivered, "seeds": figures, "model": _model_facts(folder)}


@contextlib.contextmanager
def _partial_if_cut_short(cells: Sequence[Cell], run: Run) -> Iterator[None]:
    """Leave a table marked partial where the block ends early: by Ctrl-C, which becomes Interrupted, or by what a user has to mend."""
    try:
        yield
    except KeyboardInterrupt:
        raise interrupted(run, lambda: _write_partial(cells, run)) from None
    except StorageError:
        raise  # there is nowhere to leave it
    except UserError:
        _write_partial(cells, run)
        raise


def _write_partial(cells: Sequence[Cell], run: Run) -> None:
    if rows := _rows(cells, run):
        finish(run, "search", rows, [_partial_entry(cell, run) for cell in cells], partial=True, seconds=0.0)


def _check_ended(run: Run, done: list[Trial], wanted: int) -> None:
    """Raise Interrupted where Tune came back without having done all it was asked."""
    if len(done) < wanted or not all(trial.ended for trial in done):
        raise interrupted(run)


def _rows(cells: Sequence[Cell], run: Run) -> list[dict[str, Any]]:
    return [row for cell in cells for row in rows_of(cell.name, cell.task.name, read_trials(run.folder / cell.name))]


def _entry(cell: Cell, run: Run, found: list[Trial]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for trial in found:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    rows = [row for trial in found for row in trial.history]
    return {
        "cell": cell.name, "backbone": cell.base.backbone, **describe_task(cell.base.task, cell.base.size, run.places),
        "minimise": cell.base.minimise, "monitor": cell.base.monitor, "trials": counts, "lost": sum(trial.lost for trial in found),
        "epochs": len(rows), "seconds": sum(row["seconds"] for row in rows),
    }  # fmt: skip


def _partial_entry(cell: Cell, run: Run) -> dict[str, Any]:
    empty = dict.fromkeys(("winner", "weights", "validation", "temperature", "threshold", "threshold_rule", "test", "seeds", "model"))
    return {**_entry(cell, run, read_trials(run.folder / cell.name)), **empty}


def _model_facts(folder: AnyPath) -> dict[str, Any]:
    metrics = read_json(folder / "model" / "metrics.json")
    return {name: metrics[name] for name in ("parameters", "megabytes", "ms_per_image")}

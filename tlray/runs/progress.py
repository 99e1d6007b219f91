"""What the main job shows while it runs: a bar on a terminal, else a line per trial that ends."""

import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tlray.results import Trial


class Screen(Console):
    """A console that falls silent when its pipe or its terminal goes away; what is being done goes on."""

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the process."""
        self.quiet = True
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self.file.fileno())

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:  # EIO: of a terminal that was closed
            self.on_broken_pipe()


def screen() -> Screen:
    """Standard output: as wide as the terminal, or as a table wants it."""
    return Screen() if sys.stdout.isatty() else Screen(width=140)


class Display:
    """Hears of trials and epochs (`tlray.cluster.tuning.Listener`) and shows trials done, the best so far, and the time left."""

    def __init__(self, console: Console, planned: dict[str, int], monitor: str, minimise: bool):
        self.console, self.monitor, self.minimise = console, monitor, minimise
        self.planned, self.done = planned, dict.fromkeys(planned, 0)
        self.best: dict[str, float] = {}
        self.running: dict[tuple[str, int], int] = {}
        self.started, self.counted = time.monotonic(), 0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.rows = {cell: self.bar.add_task(cell, total=total, note="waiting") for cell, total in planned.items()}

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def already(self, cell: str, trials: list[Trial]) -> None:
        """Count trials that an earlier run has ended."""
        for trial in trials:
            if trial.ended:
                self.done[cell] += 1
                self._better(cell, [row["monitor"] for row in trial.history])
        self._show(cell)

    def trial_started(self, cell: str, trial: Trial) -> None:
        self.running[cell, trial.number] = 0
        self._show(cell)

    def epoch_ended(self, cell: str, number: int, result: dict[str, Any]) -> None:
        self.running[cell, number] = result["epoch"]
        self._better(cell, [result["best"]])
        self._show(cell)

    def trial_ended(self, cell: str, trial: Trial) -> None:
        self.running.pop((cell, trial.number), None)
        self.done[cell] += 1
        self.counted += 1
        self._show(cell)
        values = [row["monitor"] for row in trial.history]
        best = f"{min(values) if self.minimise else max(values):.4f}" if values else "-"
        config = trial.config
        knobs = f"{config['unfreeze']}, lr {config['lr']:.1e}, dropout {config['dropout']:.2f}, {config['scheduler']}, {config['augment']}"
        if trial.arm:
            fold = f", fold {config['fold']}" if config["fold"] is not None else ""
            knobs = f"{trial.arm}, seed {config['seed']}{fold}"
        reason = f": {trial.reason}" if trial.status in ("failed", "nonfinite") else ""
        reason += f", taken up {trial.lost} time{'s' * (trial.lost > 1)} after a lost process" if trial.lost else ""
        epochs = f"{len(trial.history)} epoch{'s' * (len(trial.history) != 1)}"
        self.console.print(
            f"  {cell} trial {trial.number} {trial.status} after {epochs}, best {self.monitor} {best} ({knobs}){reason}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    def _better(self, cell: str, values: list[float]) -> None:
        values = [*values, *([self.best[cell]] if cell in self.best else [])]
        if values:
            self.best[cell] = min(values) if self.minimise else max(values)

    def _show(self, cell: str) -> None:
        note = f"best {self.monitor} {self.best[cell]:.4f}" if cell in self.best else "first epoch"
        running = ", ".join(f"#{number} epoch {epoch}" for (name, number), epoch in sorted(self.running.items()) if name == cell)
        self.bar.update(self.rows[cell], completed=self.done[cell], note=f"{note}  {running}{self._left()}")

    def _left(self) -> str:
        """Time left at the pace so far, once a few trials have ended."""
        if self.counted < 3:
            return ""
        open_trials = sum(self.planned.values()) - sum(self.done.values())
        seconds = (time.monotonic() - self.started) / self.counted * open_trials
        return f"  about {seconds / 60:.0f} min left" if seconds >= 90 else f"  about {seconds:.0f} s left"

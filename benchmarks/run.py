"""All benchmarks one after another, each a process of its own, then the page of what they found; what `make bench` starts.

    python benchmarks/run.py [NAME ...] [--quick]

Exit status 1 when a benchmark could not be measured. A missed target is none of that: it stands on the page and in the summary.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
NOT_HERE = 2
"""What gpu.py exits with on a machine without a GPU."""


@dataclass(frozen=True)
class Step:
    """A benchmark: the name of its file, its arguments, and the minutes that it takes on two cores (gpu: on its GPU)."""

    name: str
    minutes: float
    arguments: tuple[str, ...] = ()
    gpu: bool = False

    @property
    def command(self) -> str:
        """As a user types it."""
        return " ".join(("python", f"benchmarks/{self.name}.py", *self.arguments))


STEPS = (
    Step("frozen_features", 16),
    Step("searches", 40, ("head",)),
    Step("searches", 30, ("mixed",)),
    Step("searches", 20, ("mixed", "--precision", "bfloat16")),
    Step("search_as_a_user", 80),
    Step("extractions", 2),
    Step("fit_loop", 10),
    Step("loader", 5),
    Step("reference_loop", 8),
    Step("orchestration", 3),
    Step("two_workers", 7),
    Step("memory", 5),
    Step("search_quality", 15),
    Step("growth", 13),
    Step("many_trials", 10),
    Step("gpu", 10, gpu=True),
    Step("order_by_cost", 6),
    Step("phantom_difficulty", 2),
)
"""In the order in which they run and stand on the page."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended: done, failed or no GPU here."""

    step: Step
    status: int
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it could have been measured here and was not."""
        return self.status != 0 and not (self.step.gpu and self.status == NOT_HERE)

    @property
    def words(self) -> str:
        """For the summary."""
        return f"FAILED (exit status {self.status})" if self.failed else "not measured: no GPU here" if self.status else "done"


def run(step: Step, folder: Path, quick: bool) -> Outcome:
    """Start one benchmark of a folder and wait for it; what it prints goes where this process's output goes."""
    command = [sys.executable, str(folder / f"{step.name}.py"), *step.arguments, *(["--quick"] if quick else [])]
    started = time.monotonic()
    status = subprocess.run(command, cwd=folder.parent, check=False).returncode
    return Outcome(step, status, time.monotonic() - started)


def summary(outcomes: Sequence[Outcome]) -> Table:
    """What ran, and how long it took."""
    table = Table(title="Benchmarks")
    for column in ("benchmark", "reckoned", "took", "outcome"):
        table.add_column(column)
    for each in outcomes:
        table.add_row(each.step.command, f"{each.step.minutes:g} min", f"{each.seconds / 60:.1f} min", each.words)
    return table


def main() -> int:
    """Run what was asked for."""
    names = list(dict.fromkeys(step.name for step in STEPS))
    parser = argparse.ArgumentParser(description="Run the benchmarks one after another and write benchmarks/README.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="a tiny version of each, to see that it works; writes nothing")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in names]:
        parser.error(f"there is no benchmark {', '.join(unknown)}: choose from {', '.join(names)}")
    steps = [step for step in STEPS if not asked.names or step.name in asked.names]
    console, outcomes = Console(width=140, highlight=False), []
    if not asked.quick:
        console.print(
            f"{len(steps)} benchmarks, about {sum(step.minutes for step in steps):.0f} minutes; the machine should do nothing else."
        )
    for step in steps:
        console.rule(step.command)
        outcomes.append(run(step, HERE, asked.quick))
    written = 0 if asked.quick else subprocess.run([sys.executable, str(HERE / "page.py")], check=False).returncode
    console.print(summary(outcomes))
    return int(written != 0 or any(each.failed for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())

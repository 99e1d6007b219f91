"""benchmarks/README.md, made from what the benchmarks wrote to results/; the same results give the same page.

    python benchmarks/page.py

Prints which targets are missed and what was not measured.
"""

import json
import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import HERE, RESULTS, Benchmark, Row
from run import STEPS, Step

PAGE = HERE / "README.md"
MET = {True: "yes", False: "**no**", None: ""}
HEAD = """# Benchmarks

Each file here is one claim and measures it against a fair baseline: the ordinary idiom, well written, with the same model, batches,
epochs, precision, threads, validation and checkpoints. Both sides are measured in turn in one run. Where a side differs in one of these
or ran once, its section says so. A figure is the median over the repeats, with the smallest and the largest in brackets; without a unit
it is a ratio, or what its row names. It is of the commit that its section names, without one of 2026-11-21 or before. This page is
written by `python benchmarks/page.py` from `results/`.

## How to run

```
make bench                       # all of them, one after another, then this page; about {hours:.0f} hours on two cores that do nothing else
make bench ARGS="loader memory"  # some of them
make bench ARGS=--quick          # a tiny version of each, to see that it works; writes nothing
python benchmarks/loader.py      # one by itself; `python benchmarks/page.py` puts it on this page
```

The real data and weights are looked for in the folder `shared` beside the checkout.
"""


class PageError(Exception):
    """A file in results/ that the page cannot be made from."""


@dataclass(frozen=True)
class Result:
    """What one benchmark found, and where and when. facts: processor, cores and the like, and the versions, by name.

    commit: of tlray; "" where the result does not say.
    """

    benchmark: Benchmark
    facts: dict[str, str]
    command: str
    date: str
    commit: str


def read(path: Path) -> Result:
    """One file of results/. Raises PageError when it is not as `measure.record` writes it."""
    try:
        found = json.loads(path.read_text())
        rows = [Row(**{**row, "values": _values(path, row)}) for row in found["rows"]]
        if pictures := [name for name in found["pictures"] if not (path.parent / name).is_file()]:
            raise PageError(f"{path} shows {pictures[0]}, which is not in {path.parent}: run its benchmark again")
        facts = {**found["hardware"], **found["versions"]}
        benchmark = Benchmark(found["name"], found["title"], rows, found["notes"], found["pictures"])
        words = {name: str(value) for name, value in facts.items()}
        return Result(benchmark, words, found["command"], found["date"], found.get("commit", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise PageError(f"{path} is not as a benchmark writes it ({error!r}): run its benchmark again") from None


def _values(path: Path, row: dict[str, Any]) -> list[float]:
    """JSON has no infinity (what never came to its end) and no NaN: both were written as null, which must not pass for a target met."""
    if not row["values"] or (None in row["values"] and row["at_least"] is not None):
        raise PageError(f"{path} has no number for {row['what']!r}: run its benchmark again")
    return [math.inf if value is None else value for value in row["values"]]


def step_of(command: str) -> Step | None:
    """The entry of run.py's list that a command carries out: of its arguments all, and of such entries the one with the most."""
    _, script, *arguments = shlex.split(command)
    same = [step for step in STEPS if step.name == Path(script).stem and set(step.arguments) <= set(arguments)]
    return max(same, key=lambda step: len(step.arguments), default=None)


def read_all(folder: Path) -> list[tuple[Step, Result]]:
    """Every result of a folder with its entry, in the order of run.py's list. Raises PageError when one belongs to no entry."""
    found = []
    for path in sorted(folder.glob("*.json")):
        result = read(path)
        if (step := step_of(result.command)) is None:
            raise PageError(f"{path} was written by `{result.command}`, which run.py does not list: delete it or list that")
        found.append((step, result))
    return sorted(found, key=lambda pair: (STEPS.index(pair[0]), pair[1].benchmark.name))


def cell(text: str) -> str:
    """A text for a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def hardware(results: Sequence[Result]) -> str:
    """What most results were measured with, and which of them with something else."""
    lines = []
    for name in dict.fromkeys(name for result in results for name in result.facts):
        values = {result.benchmark.name: result.facts.get(name, "not there") for result in results}
        usual = Counter(values.values()).most_common(1)[0][0]
        others = [f"{benchmark}: {value}" for benchmark, value in values.items() if value != usual]
        lines.append((name, usual, "; ".join(others)))
    return "## Measured on\n\n" + table(("", "", "except in"), lines)


def claims(results: Sequence[Result]) -> list[tuple[Result, Row]]:
    """The rows of the summary: those that have a target; of a benchmark without any, all."""
    picked = []
    for result in results:
        rows = result.benchmark.rows
        picked += [(result, row) for row in rows if row.met is not None or all(each.met is None for each in rows)]
    return picked


def missing(found: Sequence[tuple[Step, Result]]) -> list[str]:
    """A sentence for every entry of run.py's list that has no result."""
    lacking = [step for step in STEPS if step not in [each for each, _ in found]]
    where = {True: "GPU: not measured; `{}` is ready to run on a machine with one.", False: "`{}`: not measured."}
    return [where[step.gpu].format(step.command) for step in lacking]


def summary(found: Sequence[tuple[Step, Result]]) -> str:
    """Every claim with its figure, target, and whether it is met, and what was not measured."""
    lines = [(result.benchmark.name, row.what, row.figure(), row.target(), MET[row.met])
             for result, row in claims([result for _, result in found])]  # fmt: skip
    parts = [table(("benchmark", "claim", "figure", "target", "met"), lines)] if lines else []
    parts += ["".join(f"- {sentence}\n" for sentence in missing(found))] if missing(found) else []
    return "## Summary\n\n" + "\n".join(parts)


def section(result: Result) -> str:
    """One benchmark: command, date, commit, all its rows, notes and pictures."""
    benchmark, when = result.benchmark, result.date + (f", commit {result.commit}" if result.commit else "")
    rows = [(row.what, row.figure(), row.target(), MET[row.met], row.detail) for row in benchmark.rows]
    parts = [f"## {benchmark.title}\n", f"`{result.command}`, {when}\n", table(("", "figure", "target", "met", "detail"), rows)]
    parts += ["".join(f"- {note}\n" for note in benchmark.notes)] if benchmark.notes else []
    parts += [f"![{benchmark.title}](results/{name})\n" for name in benchmark.pictures]
    return "\n".join(parts)


def page(folder: Path) -> str:
    """The whole page from a folder of results. Raises PageError as `read_all`."""
    found = read_all(folder)
    results = [result for _, result in found]
    parts = [HEAD.format(hours=sum(step.minutes for step in STEPS) / 60), *([hardware(results)] if results else []), summary(found)]
    return "\n".join([*parts, *map(section, results)])


def main() -> int:
    """Write the page and say what is missed."""
    try:
        found = read_all(RESULTS)
        PAGE.write_text(page(RESULTS), encoding="utf-8")
    except PageError as error:
        sys.exit(str(error))
    judged = [(result, row) for result, row in claims([result for _, result in found]) if row.met is not None]
    missed = [(result, row) for result, row in judged if not row.met]
    for result, row in missed:
        print(f"MISSED in {result.benchmark.name}: {row.what}: {row.figure()}, target {row.target()}")
    print("\n".join(missing(found)))
    print(f"{PAGE}: {len(judged) - len(missed)} of {len(judged)} targets met")
    return 0


if __name__ == "__main__":
    sys.exit(main())

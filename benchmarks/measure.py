"""What all benchmarks share: timing, rows with their spread and target, and the file that the page is made from."""

import math
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tlray.cache import write_json
from tlray.training.setup import available_threads

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("torch", "torchvision", "ray", "optuna", "numpy")
SHARED = HERE.parents[1] / "shared"
"""Where the real data and weights stand: the folder `shared` beside the checkout."""


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark.

    what: what is measured against what, in words. values: one for each repeat. at_most, at_least: the target, where there is one.
    unit: "" for a ratio, else as printed behind the figure. detail: the seconds of both sides, their accuracy, and the like.
    """

    what: str
    values: list[float]
    at_most: float | None = None
    at_least: float | None = None
    unit: str = ""
    detail: str = ""

    @property
    def median(self) -> float:
        """The middle one of the repeats."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.at_most is None and self.at_least is None:
            return None
        return (self.at_most is None or self.median <= self.at_most) and (self.at_least is None or self.median >= self.at_least)

    def figure(self) -> str:
        """Median, and the smallest and largest of the repeats."""
        spread = f" [{number(min(self.values))}, {number(max(self.values))}]" if len(self.values) > 1 else ""
        return f"{number(self.median)}{spread}{self.unit}"

    def target(self) -> str:
        """The target in words."""
        bounds = [("at most", self.at_most), ("at least", self.at_least)]
        return ", ".join(f"{word} {number(value)}{self.unit}" for word, value in bounds if value is not None) or "none"


@dataclass(frozen=True)
class Benchmark:
    """What one file of this folder found: one claim, its rows, and what a reader must know of how they were measured."""

    name: str
    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)


def number(value: float) -> str:
    """Three digits, or all before the point where there are more."""
    return f"{value:.3g}" if abs(value) < 999.5 or math.isinf(value) else f"{value:.0f}"


def seconds_of(action: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> tuple[list[float], list[float]]:
    """Both sides measured in turn, so that what else the machine does meets both; the seconds that each call returned."""
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratios(top: Sequence[float], bottom: Sequence[float]) -> list[float]:
    """Repeat by repeat."""
    return [a / b for a, b in zip(top, bottom, strict=True)]


def seconds_text(values: Sequence[float]) -> str:
    """The median in a unit that suits it."""
    middle = statistics.median(values)
    return f"{middle * 1e3:.3g} ms" if middle < 1 else f"{middle:.3g} s"


def show(benchmark: Benchmark) -> None:
    """Print a benchmark as a table."""
    table = Table(title=benchmark.title)
    for column in ("what", "figure", "target", "met", "detail"):
        table.add_column(column, overflow="fold")
    for row in benchmark.rows:
        table.add_row(row.what, row.figure(), row.target(), {True: "yes", False: "NO", None: ""}[row.met], row.detail)
    Console(width=160).print(table)


def record(benchmark: Benchmark) -> None:
    """Print a benchmark as a table and write it to `results/<name>.json`, with hardware, versions, date, commit and command."""
    show(benchmark)
    RESULTS.mkdir(exist_ok=True)
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES if _installed(name)}}
    facts = {"hardware": hardware(), "versions": versions, "date": time.strftime("%Y-%m-%d"), "commit": commit(HERE.parent)}
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    write_json(RESULTS / f"{benchmark.name}.json", {**asdict(benchmark), **facts, "command": command})


def commit(checkout: Path) -> str:
    """What is measured: a checkout's commit, and whether files differ from it, but for those that benchmarks write; "" without git."""
    try:
        head, *changed = (
            subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True).stdout.strip()
            for arguments in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!benchmarks/README.md"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + " with changes" * any(changed)


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def hardware() -> dict[str, Any]:
    """What this machine is, learnt without Ray, so that a machine that has only torch can measure too."""
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": cpu_name(), "cpus": available_threads(), "system": platform.system(), "gpus": ", ".join(names) or "none"}


def cpu_name() -> str:
    """The processor's name and whether it multiplies bfloat16, as Linux gives them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return (names[0] if names else platform.machine()) + (" with AVX512-BF16" if "avx512_bf16" in text else "")

"""Does a search of five hundred trials stay as large and as fast as it began, and does its report open?

    python benchmarks/many_trials.py

The main job as a user starts it: 500 head-only trials of up to four epochs, MobileNetV2 on BreastMNIST from the CIFAR-10 weights, two at a
time. Once a second the anonymous memory (`/proc/<pid>/smaps_rollup`) of its process and of all that descend from it is noted beside the
number of trials begun: the driver, the trials' processes, and Ray's own together. Compared are the first hundred trials after the first
hundred, in which everything settles, and the last hundred. Then the report is built anew, and opened in headless Chromium where there is
one (the time includes the browser's own start). `results/many_trials.svg` is the picture.
"""

import argparse
import bisect
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from measure import HERE, RESULTS, SHARED, Benchmark, Row, record, seconds_of, show
from memory import anonymous

from tlray.report.page import write_report
from tlray.report.style import BLUE, GREEN, VERMILION, Picture, standalone

WEIGHTS = SHARED / "weights" / "mobilenet_v2-cifar10.safetensors"
TRIALS, WINDOW = 500, 100
WAIT_SECONDS = 1.0
KINDS = {"driver": BLUE, "largest trial process": GREEN, "Ray's own, together": VERMILION}
BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@dataclass
class Seen:
    """What was noted while a search ran.

    begun: trials begun, by look. seconds: since the start, by look. megabytes: by kind of process, by look.
    """

    begun: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    megabytes: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def mean(self, kind: str, first: int, last: int) -> float:
        """Mean of a kind's memory over the looks while trials `first` to `last` began, MB."""
        return statistics.fmean(self.megabytes[kind][bisect.bisect_left(self.begun, first) : bisect.bisect_right(self.begun, last)])

    def moment(self, trial: int) -> float:
        """When so many trials had begun, s."""
        return self.seconds[min(bisect.bisect_left(self.begun, trial), len(self.seconds) - 1)]


def descendants(pid: int) -> dict[int, str]:
    """The processes that descend from one, with their command lines."""
    parents, commands = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
    found, grown = {pid}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in found} - found
        found, grown = found | more, bool(more)
    return {child: commands[child] for child in found - {pid}}


def look(pid: int, name: str, seen: Seen, cell: Path, started: float) -> None:
    """Note one look at the search's processes."""
    trials, rest = [], 0.0
    for child, command in descendants(pid).items():
        size = anonymous(child) or 0.0
        if command.startswith(f"ray::{name}"):
            trials.append(size)
        else:
            rest += size
    driver = anonymous(pid)
    if driver is None or not trials or not (cell / "trials").is_dir():
        return
    seen.begun.append(len(os.listdir(cell / "trials")))
    seen.seconds.append(time.monotonic() - started)
    for kind, size in zip(KINDS, (driver, max(trials), rest), strict=True):
        seen.megabytes[kind].append(size)


def search(work: Path, trials: int) -> tuple[Seen, Path]:
    """Run the main job and look at it until it ends; what was seen, and the run's directory."""
    command = [
        sys.executable, str(HERE.parent / "experiments" / "tune_backbones.py"), "--tasks", "breastmnist", "--backbones", "mobilenet_v2",
        "--weights", str(WEIGHTS), "--set", "unfreeze=head", "--set", "augment=none",
        "--trials", str(trials), "--epochs", "4", "--concurrent", "2",
        "--data", str(SHARED / "data"), "--offline", "--storage", str(work), "--name", "many",
    ]  # fmt: skip
    run, seen, started = work / "many", Seen(), time.monotonic()
    with open(work / "log", "w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TLRAY_CACHE": str(work / "cache")})
        while job.poll() is None:
            look(job.pid, "many-", seen, run / "breastmnist-mobilenet_v2", started)
            try:
                job.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    if job.returncode:
        sys.exit((work / "log").read_text())
    return seen, run


def rows_of(seen: Seen, run: Path, trials: int, window: int) -> list[Row]:
    """Memory, time and files of the last trials against those of the first."""
    early, late = (window, 2 * window), (trials - window, trials)
    rows = []
    for kind, most in zip(KINDS, (1.1, 1.05, 1.1), strict=True):
        first, last = seen.mean(kind, *early), seen.mean(kind, *late)
        rows.append(Row(f"memory: {kind}, last over first trials", [last / first], at_most=most, detail=f"{first:.0f} and {last:.0f} MB"))
    first, last = (seen.moment(end) - seen.moment(begin) for begin, end in (early, late))
    rows.append(Row("time of as many trials, last over first", [last / first], at_most=1.5, detail=f"{first:.0f} and {last:.0f} s"))
    files = [sum(path.is_file() for path in folder.rglob("*")) for folder in run.glob("breastmnist-mobilenet_v2/trials/*")]
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file()) / 1e6
    detail = f"{len(files)} trials; the whole run directory {size:.1f} MB"
    return [*rows, Row("files of the trial that has most", [float(max(files))], at_most=4, detail=detail)]


def page_rows(run: Path) -> list[Row]:
    """How long the report takes to build and to open."""
    rows = [Row("building the report", [seconds_of(lambda: write_report(run))], unit=" s")]
    page, browser = run / "report.html", shutil.which("chromium")
    if browser is None:
        print("chromium is not installed: how long the report takes to open is not measured", file=sys.stderr)
        return rows
    times = [seconds_of(lambda: _screenshot(browser, f"file://{page}", run.parent)) for _ in range(3)]
    detail = f"{page.stat().st_size / 1e6:.2f} MB, with the start of the browser"
    return [*rows, Row("opening the report in Chromium", times, at_most=3, unit=" s", detail=detail)]


def _screenshot(browser: str, address: str, work: Path) -> None:
    command = [browser, *BROWSER_FLAGS, f"--user-data-dir={work}/browser", f"--screenshot={work}/page.png", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def picture(seen: Seen) -> str:
    """Memory of each kind of process against the trials begun; SVG of a file of its own."""
    with Picture("Memory over five hundred trials", width=6.6, height=3.0) as drawn:
        for kind, colour in KINDS.items():
            drawn.axes.plot(seen.begun, seen.megabytes[kind], color=colour, lw=1.2, label=kind)
        drawn.axes.set(xlabel="trials begun", ylabel="anonymous memory, MB", ylim=(0, None), xlim=(0, max(seen.begun)))
        drawn.axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(KINDS), frameon=False)
    return standalone(drawn.svg)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six trials, and nothing is written: to see that it works")
    quick = parser.parse_args(argv).quick
    if not WEIGHTS.is_file():
        sys.exit(f"{WEIGHTS} is missing: this benchmark needs it")
    if not Path("/proc/self/smaps_rollup").is_file():
        sys.exit("this system does not say how much anonymous memory a process has: /proc/self/smaps_rollup is missing")
    trials, window = (6, 2) if quick else (TRIALS, WINDOW)
    with tempfile.TemporaryDirectory() as folder:
        seen, run = search(Path(folder), trials)
        rows, drawing = [*rows_of(seen, run, trials, window), *page_rows(run)], picture(seen)
    pace = float(np.polyfit(seen.begun, seen.seconds, 1)[0])
    notes = [f"{len(seen.begun)} looks; {pace:.2f} s a trial."]
    if quick:
        show(Benchmark("many_trials", "Many trials", rows, notes))
        return 0
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "many_trials.svg").write_text(drawing)
    record(Benchmark("many_trials", "Five hundred trials", rows, notes, ["many_trials.svg"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

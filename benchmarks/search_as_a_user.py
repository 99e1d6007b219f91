"""Each side as a user would run it: how long until tlray has a network as good as the best that the documented Ray way ever finds?

    python benchmarks/search_as_a_user.py [--seeds 5] [--work FOLDER]

16 trials of up to 8 epochs, ResNet-50 at 32 px on 1,200 images of pneumonia, from CIFAR-10 weights; the same space on both sides, which is
the whole of tlray's own (`tlray.runs.planning.SPACE`, augmentations included), and the same images drawn by the seed. The lists of trials
are each side's own:

- tlray: `experiments/tune_backbones.py` with its defaults (known recipes first, TPE, its ASHA), a fresh process with an empty cache
- the documented Ray way: random search and Tune's ASHAScheduler with the settings of Ray's PyTorch example (grace period 1, reduction
  factor 2), a TorchTrainer of one worker of one thread per trial, as many at a time as there are cores, its health-check interval tuned
  (`baselines/documented_ray.py`); its images are decoded and resized before

Each side computes in the precision that it has by default, which its row names: the documented Ray way in float32, tlray in what it
chooses for the machine, for ResNet-50 bfloat16 on CPUs with AVX512-BF16 (1.36 times as fast there, docs/decisions/0012) and else float32.

A figure is tlray's time from the start of its process to the end of the first epoch with at least Ray's best validation AUROC (infinite
when there is none), over Ray's own time until then. Both are read from the rows of the epochs, which say when they ended.

What is measured is kept in the folder --work, so that an interrupted benchmark goes on where it was, at the same commit; delete it to
measure anew.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from baselines.sides import Found, search
from measure import HERE, SHARED, Benchmark, Row, commit, record, show
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from tlray.cache import Places, write_json
from tlray.config import Config
from tlray.results import read_trials
from tlray.runs.planning import Cell, plan_cells

DATA, WEIGHTS = SHARED / "data" / "npz" / "pneumonia_28.npz", SHARED / "weights" / "resnet50-cifar10.safetensors"
SIZE, TARGET = 32, 1 / 3


@dataclass(frozen=True)
class Scale:
    """How much is searched."""

    trials: int
    epochs: int
    samples: int


FULL, QUICK = Scale(16, 8, 1200), Scale(4, 2, 64)


def cell_of(scale: Scale, seed: int, places: Places) -> Cell:
    """The search as tlray plans it: its base and its space."""
    base = Config(size=SIZE, epochs=scale.epochs, seed=seed, threads=1)
    cells, _ = plan_cells([f"npz:{DATA}"], ["resnet50"], str(WEIGHTS), base, {"samples": scale.samples}, places)
    return cells[0]


def described(domain: BaseDistribution) -> dict[str, Any]:
    """A domain of the space as JSON."""
    if isinstance(domain, CategoricalDistribution):
        return {"choices": list(domain.choices)}
    assert isinstance(domain, FloatDistribution)
    return {"low": domain.low, "high": domain.high, "log": domain.log}


def with_tlray(scale: Scale, seed: int, folder: Path) -> Found:
    """The main job in a process of its own, with an empty cache. Raises SystemExit with what it said when it fails."""
    cache = folder / "cache"
    cell = cell_of(scale, seed, Places(cache=str(folder / "prepared"), offline=True))
    arguments = [
        "--tasks", f"npz:{DATA}", "--backbones", "resnet50", "--weights", str(WEIGHTS), "--size", str(SIZE), "--offline",
        "--trials", str(scale.trials), "--epochs", str(scale.epochs), "--set", f"samples={scale.samples}", "--seed", str(seed),
        "--storage", str(folder), "--name", "run",
    ]  # fmt: skip
    command = [sys.executable, str(HERE.parent / "experiments" / "tune_backbones.py"), *arguments]
    started = time.time()
    ended = subprocess.run(command, env={**os.environ, "TLRAY_CACHE": str(cache)}, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"tune_backbones.py ended with status {ended.returncode}; the last that it printed:\n{ended.stderr[-3000:]}")
    finished = time.time()
    trials = read_trials(folder / "run" / cell.name)
    kept = ("epoch", "val_auroc", "time")
    rows = [
        {"trial": trial.number, "precision": trial.config["precision"], **{name: row[name] for name in kept}}
        for trial in trials for row in trial.history
    ]  # fmt: skip
    return Found(started, finished, rows, len(trials))


def with_ray(scale: Scale, seed: int, folder: Path) -> Found:
    """The documented Ray way in a process of its own."""
    cell = cell_of(scale, seed, Places(cache=str(folder / "prepared"), offline=True))
    space = {name: described(domain) for name, domain in cell.space.items()}
    request = {"configs": [cell.base.to_dict()], "space": space, "trials": scale.trials, "seed": seed, "data": str(SHARED / "data")}
    found = search("documented_ray.py", request, folder / "ray", folder / "prepared")
    return replace(found, rows=[{**row, "precision": cell.base.precision} for row in found.rows])


SIDES: dict[str, Callable[[Scale, int, Path], Found]] = {"ray": with_ray, "tlray": with_tlray}


def measured(side: str, scale: Scale, seed: int, work: Path) -> Found:
    """What a side finds under a seed: as an earlier call wrote it, else measured now.

    Raises SystemExit for a file of another scale or commit.
    """
    file, here = work / f"seed-{seed}-{side}.json", {"scale": asdict(scale), "commit": commit(HERE.parent)}
    if not file.is_file():
        with tempfile.TemporaryDirectory(prefix=f"{side}-") as folder:
            found = SIDES[side](scale, seed, Path(folder))
        write_json(file, {**here, "found": asdict(found)})
    known = json.loads(file.read_text())
    was = {name: known.get(name) for name in here}
    if was != here:
        raise SystemExit(f"{file} was measured otherwise ({was}, now {here}): delete it, or name another --work")
    return Found(**known["found"])


def rows_of(pairs: dict[int, tuple[Found, Found]]) -> list[Row]:
    """The rows of (Ray, tlray) by seed."""
    arithmetic = [{row["precision"] for pair in pairs.values() for row in pair[side].rows} for side in (1, 0)]
    values, said = [], ["tlray in {}, Ray in {}".format(*(", ".join(sorted(each)) for each in arithmetic))]
    for seed, (ray, ours) in pairs.items():
        theirs, mine = ray.seconds_until(ray.best), ours.seconds_until(ray.best)
        values.append(mine / theirs)
        when = "never" if math.isinf(mine) else f"after {mine:.0f} s"
        said.append(f"seed {seed}: {ray.best:.4f} by Ray after {theirs:.0f} s, by tlray {when}")
    better = [ours.best - ray.best for ray, ours in pairs.values()]
    whole = [ours.seconds / ray.seconds for ray, ours in pairs.values()]
    took = " and ".join(f"{statistics.median(pair[side].seconds for pair in pairs.values()):.0f} s" for side in (1, 0))
    epochs = " and ".join(f"{statistics.median(len(pair[side].rows) for pair in pairs.values()):g}" for side in (1, 0))
    return [
        Row("time until Ray's best validation AUROC, tlray / Ray", values, at_most=TARGET, detail="; ".join(said)),
        Row("best validation AUROC at the end, tlray less Ray", better),
        Row("time of the whole, tlray / Ray", whole, detail=f"{took}, {epochs} epochs; tlray's with test split, report and model"),
    ]


def main() -> int:
    """Measure seed by seed, and write the result unless it was only a quick look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 (5)")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "search_as_a_user", help="folder of what is measured")
    parser.add_argument("--quick", action="store_true", help="one seed of a tiny search, to see that it works; writes nothing")
    asked = parser.parse_args()
    for path in (DATA, WEIGHTS):
        if not path.is_file():
            raise SystemExit(f"{path} is missing: this benchmark needs the real data and weights")
    scale, seeds = (QUICK, 1) if asked.quick else (FULL, asked.seeds)
    with tempfile.TemporaryDirectory() as passing:
        work = Path(passing) if asked.quick else asked.work
        work.mkdir(parents=True, exist_ok=True)
        pairs = {seed: (measured("ray", scale, seed, work), measured("tlray", scale, seed, work)) for seed in range(seeds)}
    title = f"A search as a user would run it: {scale.trials} trials of up to {scale.epochs} epochs"
    (show if asked.quick else record)(Benchmark("search_as_a_user", title, rows_of(pairs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The same list of trials, three ways: how much longer do the documented Ray way and plain PyTorch take than tlray?

    python benchmarks/searches.py head                        (16 head-only trials of 8 epochs on all images)
    python benchmarks/searches.py mixed                       (16 trials of 4 epochs on 1,200 images, a quarter of them full training)
    python benchmarks/searches.py mixed --precision bfloat16

ResNet-50 at 32 px on pneumonia from CIFAR-10 weights, batches of 64, no augmentation. Each side is a fresh process whose clock runs from
its start to the moment at which it knows its winner. All have the same trials in the same order, the same images, every metric of the
validation images in every epoch, and checkpoints of the best and the last epoch. The baselines' checkpoints hold the whole network (94 MB),
as is usual; tlray's hold what has trained, which in a head-only trial is the head.

- tlray, its cache empty, so that it also decodes and resizes the images; two trials at a time, of one thread (`baselines/with_tlray.py`)
- the documented Ray way: a Tuner over a driver function that runs a TorchTrainer per trial; two at a time (`baselines/documented_ray.py`)
- plain PyTorch: one trial after the other on all cores, DataLoader with the faster one of 0 and 2 workers (`baselines/plain_pytorch.py`)

The baselines find the images decoded and resized, the clock not running, and compute a frozen prefix without gradients. A mixed list
cannot be faster than its training steps of the whole network: that floor is measured too, as bare steps on all cores at once.
"""

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from baselines.sides import Found, ask, extractions, most_per_key, search, start, wait_for
from measure import SHARED, Benchmark, Row, record, show

from tlray.cache import Places
from tlray.config import Config
from tlray.data.subsets import select
from tlray.data.task import open_task
from tlray.models.backbones import build_backbone
from tlray.training.phases import phases
from tlray.training.setup import available_threads

DATA = SHARED / "data" / "npz" / "pneumonia_28.npz"
VARIED = ("unfreeze", "lr", "dropout", "weight_decay")
MIXED = ("head",) * 4 + ("last_1",) * 4 + ("head_then_full",) * 2 + ("gradual",) * 2 + ("full",) * 4
TARGETS = {"head": (1 / 25, 1 / 12), "mixed": (1 / 1.3, 1 / 1.15)}
FLOOR_STEPS = 30


def weights_of(backbone: str) -> Path:
    """A backbone's file of CIFAR-10 weights."""
    return SHARED / "weights" / f"{backbone}-cifar10.safetensors"


def trial_list(which: str, precision: str, quick: bool) -> list[Config]:
    """The configurations of a list, drawn with a fixed seed; a quick one has fewer trials of a smaller network on fewer images."""
    epochs, samples = {"head": (8, None), "mixed": (4, 1200)}[which]
    backbone = "mobilenet_v2" if quick else "resnet50"
    base = Config(
        task=f"npz:{DATA}", size=32, samples=samples, backbone=backbone, weights=str(weights_of(backbone)), batch_size=64,
        epochs=epochs, precision=precision, threads=1, unfreeze="head",
    )  # fmt: skip
    schedules = MIXED if which == "mixed" else ("head",) * 16
    if quick:
        base, schedules = replace(base, epochs=2, samples=600), (*dict.fromkeys(schedules), "head")
    random, configs = np.random.default_rng(0), []
    for unfreeze in schedules:
        lr, decay, dropout = 10 ** random.uniform(-4, -2.5), 10 ** random.uniform(-6, -2), random.uniform(0, 0.6)
        configs.append(replace(base, unfreeze=unfreeze, lr=float(lr), weight_decay=float(decay), dropout=float(dropout)))
    return configs


@dataclass(frozen=True)
class Plan:
    """A measurement: what is asked of every side, and where.

    work: folder of its own. prepared: a cache in which the images are decoded and resized, for the baselines.
    """

    configs: list[Config]
    work: Path
    prepared: Path
    steps: int

    def request(self, **more: Any) -> dict[str, Any]:
        """What a side is asked."""
        return {"configs": [config.to_dict() for config in self.configs], "varied": VARIED, "data": str(SHARED / "data"), **more}

    def tlray(self, repeat: int) -> tuple[Found, list[dict[str, Any]]]:
        """tlray's search with an empty cache, and the extractions of frozen features that it needed."""
        cache = self.work / f"cache-{repeat}"
        found = search("with_tlray.py", self.request(), self.work / f"tlray-{repeat}", cache)
        return found, extractions(cache)

    def ray(self) -> Found:
        """The documented Ray way."""
        return search("documented_ray.py", self.request(), self.work / "ray", self.prepared)

    def pytorch(self, workers: int) -> Found:
        """Plain PyTorch."""
        return search("plain_pytorch.py", self.request(workers=workers), self.work / "pytorch", self.prepared)

    def workers(self) -> int:
        """The number of DataLoader workers with which an epoch of the last configuration is faster, on this machine."""
        return ask("plain_pytorch.py", self.request(probe=True), self.work / "probe", self.prepared)[1]["workers"]

    def full_steps(self) -> int:
        """Training steps of the whole network in the list."""
        total = 0
        for config in self.configs:
            task = open_task(config.task, config.size, Places(cache=str(self.prepared), offline=True))
            stages = build_backbone(config.backbone, task.channels, 0.0).stage_names
            steps = -(-len(select(task, config)[0]) // config.batch_size)
            total += sum(phase.epochs * steps for phase in phases(config, stages) if phase.trainable == stages)
        return total

    def floor(self) -> float:
        """Seconds that these steps alone take: bare ones of one thread, in as many processes at once as there are cores."""
        cores = available_threads()
        asked = [start("bare_steps.py", self.request(steps=self.steps), self.work / f"bare-{each}", self.prepared) for each in range(cores)]
        return self.full_steps() * statistics.mean(wait_for(each)[1]["seconds"] for each in asked) / cores


def measure(plan: Plan, which: str, repeats: int, workers: int) -> list[Row]:
    """All sides in turn: the baselines once, tlray between them."""
    ours, baselines = [plan.tlray(0)], {"the documented Ray way": plan.ray()}
    ours += [plan.tlray(1)] if repeats > 1 else []
    baselines["plain PyTorch"] = plan.pytorch(workers)
    ours += [plan.tlray(repeat) for repeat in range(2, repeats)]
    seconds = [found.seconds for found, _ in ours]
    mine = f"tlray {statistics.median(seconds):.1f} s ({ours[0][0].quality()})"
    rows = []
    for (name, found), target in zip(baselines.items(), TARGETS[which], strict=True):
        detail = f"{mine}; {name} {found.seconds:.0f} s ({found.quality()})"
        rows.append(Row(f"time of tlray / {name}", [each / found.seconds for each in seconds], at_most=target, detail=detail))
    if which == "mixed":
        floor = plan.floor()
        detail = f"{mine}; {plan.full_steps()} training steps of the whole network alone {floor:.1f} s"
        rows.append(Row("time of tlray / time of the whole network's steps alone", [each / floor for each in seconds], detail=detail))
    return [*rows, extraction_row([record for _, record in ours])]


def extraction_row(records: list[list[dict[str, Any]]]) -> Row:
    """How often the same features were extracted within a search, which should be once."""
    count, spent = len(records[0]), sum(line["seconds"] for line in records[0])
    detail = f"{count} extractions in the first search, {len({line['key'] for line in records[0]})} different ones, {spent:.1f} s in all"
    return Row(
        "most extractions of the same features in a search", [float(most_per_key(each)) for each in records], at_most=1, detail=detail
    )


def main() -> int:
    """Measure, and write the result unless it was only a quick look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=list(TARGETS), help="the list of trials")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="arithmetic on all sides (float32)")
    parser.add_argument("--repeats", type=int, default=3, help="of tlray's side (3)")
    parser.add_argument("--workers", type=int, choices=(0, 2), help="DataLoader workers of plain PyTorch (the faster one, measured before)")
    parser.add_argument("--quick", action="store_true", help="tiny trials, to see that it works; writes nothing")
    asked = parser.parse_args()
    for path in (DATA, weights_of("resnet50")):
        if not path.is_file():
            raise SystemExit(f"{path} is missing: this benchmark needs the real data and weights")
    configs = trial_list(asked.which, asked.precision, asked.quick)
    with tempfile.TemporaryDirectory(prefix="searches-") as work:
        prepared = Path(work) / "prepared"
        open_task(configs[0].task, configs[0].size, Places(cache=str(prepared), offline=True))
        plan = Plan(configs, Path(work), prepared, 2 if asked.quick else FLOOR_STEPS)
        workers = asked.workers if asked.workers is not None else 0 if asked.quick else plan.workers()
        rows = measure(plan, asked.which, 1 if asked.quick else asked.repeats, workers)
    notes = [
        f"Plain PyTorch had {workers} DataLoader workers. The baselines ran once, between tlray's repeats.",
        "The baselines' checkpoints hold the whole network, as is usual, tlray's what has trained.",
        "The documented Ray way has no DataLoader workers, with 2 was not tried: its trials fill the cores.",
    ]
    suffix = "" if asked.precision == "float32" else f"_{asked.precision}"
    title = f"A search over the same {len(configs)} trials ({asked.which}, {asked.precision})"
    (show if asked.quick else record)(Benchmark(f"searches_{asked.which}{suffix}", title, rows, notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

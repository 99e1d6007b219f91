"""Pre-flight arithmetic: what trials ask for against what the machine or the cluster has."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tlray.errors import RunError
from tlray.training.setup import available_threads


@dataclass(frozen=True)
class Resources:
    """What one trial gets and how many run at once.

    workers: 0: `fit` inside the trial's process; N: a TorchTrainer of N workers. cpus, gpus: per process that trains. why: so.
    elastic: whether a TorchTrainer goes on with fewer workers, down to one, while there is no room for all.
    """

    workers: int
    concurrent: int
    cpus: int
    gpus: float
    why: str = field(default="as named", compare=False)
    elastic: bool = False

    @property
    def processes(self) -> int:
        """Processes of one trial that train."""
        return max(1, self.workers)

    def describe(self) -> str:
        """One line for the plan."""
        where = (
            "inside the trial's process" if self.workers == 0 else f"in a TorchTrainer of {self.workers} worker{'s' * (self.workers > 1)}"
        )
        where += ", or of as few as one while machines are missing," if self.elastic else ""
        gpu = f" and {self.gpus:g} GPU{' (its memory limited to that share)' * (self.gpus < 1)}" if self.gpus else ""
        return f"{self.concurrent} at a time, each {where} with {self.cpus} CPU thread{'s' * (self.cpus > 1)}{gpu} per process ({self.why})"


def machine() -> dict[str, float]:
    """CPUs that this process may use and GPUs that torch sees, as Ray names them."""
    import torch

    return {"CPU": float(available_threads()), "GPU": float(torch.cuda.device_count())}


BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""The cluster file as `ray up` leaves it on the head."""


def cluster() -> dict[str, float]:
    """What the joined cluster has, or may grow to where it declares a maximum (to Ray, or in the head's cluster file)."""
    import ray

    from tlray.cluster.ray_private import declared_maximum

    live, declared = ray.cluster_resources(), declared_maximum() or declared_by_file(BOOTSTRAP.expanduser())
    return {name: max(live.get(name, 0.0), float(declared.get(name, 0.0))) for name in ("CPU", "GPU")}


def declared_by_file(path: Path) -> dict[str, float]:
    """CPUs and GPUs of the most nodes that a cluster file allows, the head's among them; nothing where there is no file.

    Types with the most of a resource are counted first, up to the file's `max_workers` nodes.
    """
    if not path.is_file():
        return {}
    file = yaml.safe_load(path.read_text(encoding="utf-8"))
    types, head = file.get("available_node_types", {}), file.get("head_node_type")
    most = {}
    for name in ("CPU", "GPU"):
        have = {key: float(each.get("resources", {}).get(name, 0)) for key, each in types.items()}
        nodes = [have[key] for key, each in types.items() if key != head for _ in range(each.get("max_workers", 0))]
        most[name] = have.get(head, 0.0) + sum(sorted(nodes, reverse=True)[: file.get("max_workers", 0)])
    return most


def divide(
    has: dict[str, float], workers: int, concurrent: int | None, cpus: int | None, gpus: float | None, elastic: bool = False
) -> Resources:
    """Fill in what the user left open, and refuse what does not fit.

    Left open: a whole GPU per process where there is one, else none; as many trials at once as there are GPUs, or, without GPUs, one
    per core up to eight in process, and as many as fit with TorchTrainer; the cores shared out among them.

    Raises RunError with the arithmetic.
    """
    processes = max(1, workers)
    for name, value in (("concurrent", concurrent), ("cpus-per-trial", cpus)):
        if value is not None and value < 1:
            raise RunError(f"--{name} {value} is out of range: at least 1")
    if elastic and workers < 2:
        raise RunError(f"--elastic with --workers-per-trial {workers}: there is nothing to shrink, name at least two workers")
    if workers < 0 or (gpus is not None and not gpus >= 0):
        raise RunError("--workers-per-trial and --gpus-per-trial cannot be negative")
    total_cpus, total_gpus = int(has["CPU"]), has["GPU"]
    gpus = gpus if gpus is not None else (1.0 if total_gpus >= processes else 0.0)
    if workers > 1 and 0 < gpus < 1:
        raise RunError(f"--gpus-per-trial {gpus:g} with {workers} workers: several workers cannot share a GPU, give each a whole one")
    _refuse(processes * (cpus or 1), total_cpus, "CPU", processes, cpus or 1)
    _refuse(processes * gpus, total_gpus, "GPU", processes, gpus)
    by_gpu = int(total_gpus / (processes * gpus) + 1e-9) if gpus else None
    by_cpu = total_cpus // (processes * (cpus or 1))
    fits = max(1, min(by_cpu, by_gpu) if by_gpu is not None else by_cpu)
    if concurrent is not None and concurrent > fits:
        raise RunError(
            f"--concurrent {concurrent} needs {concurrent * processes * (cpus or 1)} CPUs and {concurrent * processes * gpus:g} GPUs, but "
            f"{total_cpus} and {total_gpus:g} are there: at most {fits}"
        )
    why = _why(concurrent, fits, gpus, workers)
    concurrent = concurrent or (fits if gpus else min(8, fits))
    return Resources(workers, concurrent, cpus or max(1, total_cpus // (concurrent * processes)), gpus, why, elastic)


def _why(concurrent: int | None, fits: int, gpus: float, workers: int) -> str:
    """Why so many trials run at once, for the plan."""
    if concurrent is not None:
        return "as many as named; the cores are shared out among them"
    if gpus:
        return "as many as the GPUs hold; the cores are shared out among them"
    if fits > 8:
        return "eight, so that the search still learns from ended trials; the cores are shared out among them"
    return "as many as there are cores for" if workers else "one for each core"


def _refuse(asked: float, has: float, name: str, processes: int, each: float) -> None:
    if asked > has:
        place = "the cluster" if os.environ.get("RAY_ADDRESS") else "this machine"
        raise RunError(
            f"one trial needs {asked:g} {name}s ({processes} worker{'s' * (processes > 1)} x {each:g}), but {place} has {has:g}: "
            f"lower --workers-per-trial or --{name.lower()}s-per-trial"
        )

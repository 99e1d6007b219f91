"""Pre-flight arithmetic: what trials ask for against what the machine or the cluster has."""

import os
import sys
from collections.abc import Sequence
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


Node = dict[str, float]
"""What one machine has, as Ray names it: {"CPU": ..., "GPU": ...}."""


def machine() -> Node:
    """CPUs that this process may use and GPUs that torch sees."""
    import torch

    return {"CPU": float(available_threads()), "GPU": float(torch.cuda.device_count())}


BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""The cluster file as `ray up` leaves it on the head."""


def cluster() -> list[Node]:
    """The machines of the joined cluster, or those it may grow to where it declares them (to Ray, or in the head's cluster file)."""
    import ray

    from tlray.cluster.ray_private import declared_nodes

    live = [_node(each["Resources"]) for each in ray.nodes() if each["Alive"]]
    declared = [_node(each) for each in declared_nodes()] or declared_by_file(BOOTSTRAP.expanduser())
    return max(live, declared, key=lambda nodes: (total(nodes, "GPU"), total(nodes, "CPU")))


def _node(resources: dict[str, float]) -> Node:
    return {name: float(resources.get(name, 0.0)) for name in ("CPU", "GPU")}


def total(nodes: Sequence[Node], name: str) -> float:
    """All the CPUs or GPUs of these machines."""
    return sum(node[name] for node in nodes)


def declared_by_file(path: Path) -> list[Node]:
    """The most machines that a cluster file allows, its head the first; none where there is no file.

    Types with the most GPUs, then CPUs, are counted first, up to the file's `max_workers`.
    """
    if not path.is_file():
        return []
    file = yaml.safe_load(path.read_text(encoding="utf-8"))
    types, head = file.get("available_node_types", {}), file.get("head_node_type")
    workers = [_node(each.get("resources", {})) for key, each in types.items() if key != head for _ in range(each.get("max_workers", 0))]
    workers.sort(key=lambda node: (node["GPU"], node["CPU"]), reverse=True)
    return [_node(types.get(head, {}).get("resources", {})), *workers[: file.get("max_workers", 0)]]


def places_for(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """How many processes of that size these machines hold; none is split over two machines, no share of a GPU over two cards."""
    return sum(min(_whole(node["CPU"] / cpus), _on_gpus(node["GPU"], gpus) if gpus else sys.maxsize) for node in nodes)


def _on_gpus(cards: float, gpus: float) -> int:
    """How many processes with so many GPUs each these cards hold."""
    return _whole(cards) * _whole(1 / gpus) if gpus < 1 else _whole(cards / gpus)


def _whole(number: float) -> int:
    """A quotient rounded down, 1 / (1 / 3) being 3."""
    return int(number + 1e-9)


def divide(
    nodes: Sequence[Node], workers: int, concurrent: int | None, cpus: int | None, gpus: float | None, elastic: bool = False
) -> Resources:
    """Fill in what the user left open, and refuse what does not fit.

    Left open: a whole GPU per process where there are as many, else none; as many trials at once as the GPUs hold or, without GPUs, as
    there are cores for, up to eight; the cores shared out among them.

    Raises RunError with the arithmetic.
    """
    processes = max(1, workers)
    for name, value in (("concurrent", concurrent), ("cpus-per-trial", cpus)):
        if value is not None and value < 1:
            raise RunError(f"--{name} {value} is out of range: at least 1")
    if elastic and workers < 2:
        raise RunError(f"--elastic with --workers-per-trial {workers}: there is nothing to shrink, name at least two workers")
    for name, number in (("workers-per-trial", workers), ("gpus-per-trial", 0 if gpus is None else gpus)):
        if not number >= 0:  # nan is not either
            raise RunError(f"--{name} {number:g} is out of range: at least 0")
    if gpus and (gpus < 1e-4 or (gpus > 1 and gpus % 1 != 0)):  # Ray counts in ten-thousandths
        raise RunError(f"--gpus-per-trial {gpus:g} is out of range: a share of one GPU, from .0001 to 1, or a whole number of them")
    total_cpus, total_gpus = int(total(nodes, "CPU")), total(nodes, "GPU")
    gpus = gpus if gpus is not None else (1.0 if total_gpus >= processes else 0.0)
    if workers > 1 and 0 < gpus < 1:
        raise RunError(f"--gpus-per-trial {gpus:g} with {workers} workers: several workers cannot share a GPU, give each a whole one")
    _refuse(processes * (cpus or 1), total_cpus, "CPU", processes, cpus or 1)
    _refuse(processes * gpus, total_gpus, "GPU", processes, gpus)
    room = places_for(nodes, cpus or 1, gpus)
    if room < processes:
        raise RunError(
            f"one trial needs {processes} worker{'s' * (processes > 1)} with {cpus or 1} CPUs and {gpus:g} GPUs each on one machine, but "
            f"{_place()} has room for {room}: lower --cpus-per-trial or --gpus-per-trial"
        )
    fits = room // processes
    if concurrent is not None and concurrent > fits:
        raise RunError(
            f"--concurrent {concurrent} needs {concurrent * processes * (cpus or 1)} CPUs and {concurrent * processes * gpus:g} GPUs, but "
            f"{total_cpus} and {total_gpus:g} are there: at most {fits}{', each on one card' * (0 < gpus < 1)}"
        )
    by_cards = gpus > 0 and fits == places_for([{**node, "CPU": 1e6} for node in nodes], cpus or 1, gpus) // processes
    why = _why(concurrent, fits, cpus, gpus, by_cards, workers)
    concurrent = concurrent or (fits if gpus else min(8, fits))
    return Resources(workers, concurrent, cpus or _cpus_each(nodes, concurrent * processes, gpus), gpus, why, elastic)


def _cpus_each(nodes: Sequence[Node], processes: int, gpus: float) -> int:
    """The most CPUs that so many processes can have each, when every one has its place on a machine."""
    most = int(max(node["CPU"] for node in nodes))
    return next((cpus for cpus in range(most, 1, -1) if places_for(nodes, cpus, gpus) >= processes), 1)


def _place() -> str:
    return "the cluster" if os.environ.get("RAY_ADDRESS") else "this machine"


def _why(concurrent: int | None, fits: int, cpus: int | None, gpus: float, by_cards: bool, workers: int) -> str:
    """Why so many trials run at once, for the plan. by_cards: more cores would make room for no more of them."""
    shared = "" if cpus else "; the cores are shared out among them"
    if concurrent is not None:
        return f"as many as named{shared}"
    if by_cards:
        return f"as many as the GPUs hold{shared}"
    if fits > 8 and not gpus:
        return f"eight, so that the search still learns from ended trials{shared}"
    return "as many as there are cores for" if workers or gpus or cpus not in (None, 1) else "one for each core"


def _refuse(asked: float, has: float, name: str, processes: int, each: float) -> None:
    if asked > has:
        raise RunError(
            f"one trial needs {asked:g} {name}s ({processes} worker{'s' * (processes > 1)} x {each:g}), but {_place()} has {has:g}: "
            f"lower --workers-per-trial or --{name.lower()}s-per-trial"
        )

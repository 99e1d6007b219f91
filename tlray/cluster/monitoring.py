"""Gauges on Ray's metrics port, with the tags run, cell (<task>-<backbone>) and trial; docs/grafana-tlray.json draws them."""

from typing import TYPE_CHECKING, Any

from tlray.training.fit import Epoch

if TYPE_CHECKING:
    from tlray.cluster.trial import Job

TAGS = ("run", "cell", "trial")
OF_TRIALS = {
    "epoch": "Epochs that a trial has done",
    "monitor": "Validation metric that decides, of the last epoch",
    "train_loss": "Training loss of the last epoch",
    "epoch_seconds": "Wall time of the last epoch, s",
    "images_per_second": "Training images of the last epoch over its wall time (validation included), 1/s",
    "cache_hits": "Epochs of a trial that read the frozen prefix's features from the cache",
}
OF_CELLS = {
    "trials_done": "Trials that have ended",
    "trials_running": "Trials that have begun and not ended",
    "best": "Best validation score of the cell so far",
}
GAUGES = OF_TRIALS | OF_CELLS
"""Name -> what it says. Ray exports `ray_tlray_<name>`, about ten seconds after it was set."""

_gauges: dict[str, Any] = {}


def gauge(name: str, tags: dict[str, str], value: float) -> None:
    """Set one of GAUGES; made at its first use in this process."""
    from ray.util.metrics import Gauge

    if name not in _gauges:
        _gauges[name] = Gauge(f"tlray_{name}", GAUGES[name], tag_keys=TAGS)
    _gauges[name].set(value, {**dict.fromkeys(TAGS, ""), **tags})


class TrialGauges:
    """What one trial shows while it trains."""

    def __init__(self, job: "Job", number: int):
        self.tags = {"run": job.run, "cell": job.cell.name, "trial": f"{number:04d}"}

    def epoch(self, epoch: Epoch) -> None:
        """Show an epoch that has ended."""
        seconds = epoch.metrics["seconds"]
        values = {
            "epoch": epoch.number, "monitor": epoch.metrics["monitor"], "train_loss": epoch.metrics["train_loss"], "epoch_seconds": seconds,
            "images_per_second": epoch.images / max(seconds, 1e-9), "cache_hits": sum(row["cached"] for row in epoch.history),
        }  # fmt: skip
        for name in OF_TRIALS:
            gauge(name, self.tags, values[name])


def cell_gauges(run: str, cell: str, done: int, running: int, best: float | None) -> None:
    """Show how far the trials of a cell are."""
    tags = {"run": run, "cell": cell}
    gauge("trials_done", tags, done)
    gauge("trials_running", tags, running)
    if best is not None:
        gauge("best", tags, best)

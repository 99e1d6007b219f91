"""Gauges `tlray_*` on Ray's metrics port, with the tags run, task, backbone and trial."""

from typing import TYPE_CHECKING, Any

from tlray.training.fit import Epoch

if TYPE_CHECKING:
    from tlray.cluster.trial import Job

TAGS = ("run", "cell", "trial")
_gauges: dict[str, Any] = {}


def gauge(name: str, description: str, tags: dict[str, str], value: float) -> None:
    """Set the gauge `tlray_<name>`; made at its first use in this process (Ray exports it as `ray_tlray_<name>`)."""
    from ray.util.metrics import Gauge

    if name not in _gauges:
        _gauges[name] = Gauge(f"tlray_{name}", description, tag_keys=TAGS)
    _gauges[name].set(value, {**dict.fromkeys(TAGS, ""), **tags})


class TrialGauges:
    """What one trial shows while it trains."""

    def __init__(self, job: "Job", number: int):
        self.tags = {"run": job.run, "cell": job.cell.name, "trial": f"{number:04d}"}

    def epoch(self, epoch: Epoch) -> None:
        """Show an epoch that has ended."""
        gauge("epoch", "Epochs that a trial has done", self.tags, epoch.number)
        gauge("monitor", "Validation metric that decides, of the last epoch", self.tags, epoch.metrics["monitor"])
        gauge("train_loss", "Training loss of the last epoch", self.tags, epoch.metrics["train_loss"])
        gauge("epoch_seconds", "Wall time of the last epoch, s", self.tags, epoch.metrics["seconds"])


def cell_gauges(run: str, cell: str, done: int, running: int, best: float | None) -> None:
    """Show how far the trials of a cell are."""
    tags = {"run": run, "cell": cell}
    gauge("trials_done", "Trials that have ended", tags, done)
    gauge("trials_running", "Trials that are training", tags, running)
    if best is not None:
        gauge("best", "Best validation score of the cell so far", tags, best)

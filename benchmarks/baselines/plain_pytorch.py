"""A list of trials as a plain PyTorch script runs it: one after the other in one process on all cores; no Ray, no tuner.

Asked with `probe`, it only says which number of DataLoader workers is the faster one here: 0 or 2.
"""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loop import train
from sides import read_request, write_answer

from tlray.cache import Places
from tlray.config import Config
from tlray.training.setup import available_threads

CHOICES = (0, 2)


def search(configs: list[Config], places: Places, workers: int, folder: Path) -> list[dict[str, Any]]:
    """Train every configuration with checkpoints of its best and its last epoch; the rows of all epochs."""
    rows = []
    for number, config in enumerate(configs):
        checkpoints, best = folder / f"trial-{number:02d}", -1.0
        checkpoints.mkdir()
        for row, state in train(config, places, workers):
            torch.save(state, checkpoints / "last.pt")
            if row["val_auroc"] > best:
                best = row["val_auroc"]
                shutil.copyfile(checkpoints / "last.pt", checkpoints / "best.pt")
            rows.append({"trial": number, **row})
            print(f"trial {number} epoch {row['epoch']}: validation AUROC {row['val_auroc']:.4f}", flush=True)
    return rows


def faster_workers(config: Config, places: Places) -> dict[int, float]:
    """Seconds of an epoch with each number of workers: the fastest of the second and third."""
    seconds = {}
    for workers in CHOICES:
        ends = [row["time"] for row, _ in train(replace(config, epochs=3), places, workers)]
        seconds[workers] = min(ends[1] - ends[0], ends[2] - ends[1])
    return seconds


def main() -> None:
    """Answer what is asked."""
    request = read_request()
    torch.set_num_threads(available_threads())
    configs, places = [Config(**each) for each in request["configs"]], Places(request["data"], offline=True)
    if request.get("probe"):
        seconds = faster_workers(configs[-1], places)
        write_answer(workers=min(CHOICES, key=lambda each: seconds[each]), seconds=seconds)
        return
    rows = search(configs, places, request["workers"], Path(request["folder"]))
    winner = max(rows, key=lambda row: row["val_auroc"])
    finished = time.time()
    write_answer(finished=finished, rows=rows, trials=len(configs), winner=winner["trial"])


if __name__ == "__main__":
    main()

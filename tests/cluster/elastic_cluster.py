"""Trains in two workers on two nodes, loses a node, and prints what became of the training; run by test_elastic.py."""

import json
import os
import sys
import threading
from pathlib import Path

from cluster_toys import hurry_marker, toy_config, toy_job
from ray.cluster_utils import Cluster
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.distributed import train_distributed
from tlray.cluster.resources import Resources
from tlray.cluster.session import started
from tlray.results import Trial, trial_folder
from tlray.training.checkpoint import newest_checkpoint


def main(npz: Path, cell: Path) -> None:
    """Print the rows of the checkpoint when the node was lost, and the trial as it ended, as JSON."""
    places = Places(None, os.environ["TLRAY_CACHE"], offline=True)
    job = toy_job(cell, places)
    job = type(job)(job.run, job.cell, job.label, places, Resources(2, 1, 1, 0.0, elastic=True))
    config = toy_config(npz, augment="toy_slow", epochs=6)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    ended: list[Trial] = []
    with started():
        training = threading.Thread(target=lambda: ended.append(train_distributed(job, config)), daemon=True)
        training.start()
        before = wait_until(lambda: newest_checkpoint(trial_folder(cell, 0) / "checkpoints"), 120)
        cluster.remove_node(second, allow_graceful=False)
        hurry_marker().touch()
        training.join(timeout=150)
    (trial,) = ended
    print(json.dumps({"before": before.meta["history"], "trial": vars(trial)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

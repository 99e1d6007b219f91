"""A joined cluster of two nodes with a CPU each: trials go to both, and a TorchTrainer trial spans them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlray.cluster.session import own_token

SCRIPT = """
import json, os, socket, sys
from pathlib import Path
from ray.cluster_utils import Cluster

import ray
from cluster_toys import Scripted, all_cpus_free, toy_config, toy_job
from waiting import wait_until
from tlray.cache import Places
from tlray.cluster.resources import cluster, divide
from tlray.cluster.session import started
from tlray.cluster.tuning import Book, search

with socket.socket() as free:  # another Ray on this machine may have the dashboard's usual port
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
file, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_port": port})
nodes.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = nodes.address
with started() as session:
    wait_until(lambda: len([node for node in ray.nodes() if node["Alive"]]) == 2)
    resources = divide(cluster(), workers, None, None, None)
    job = toy_job(folder / "cell", Places(), workers, concurrent=resources.concurrent)
    configs = [toy_config(file, augment="toy_where", epochs=2)] * (1 if workers else 4)
    trials = search(Book(job, minimise=False), Scripted(configs))
    wait_until(all_cpus_free)
    seen = [path.name.removeprefix("toy-where-") for path in Path(os.environ["TLRAY_CACHE"]).glob("toy-where-*")]
    print(json.dumps({
        "joined": session.joined, "concurrent": resources.concurrent, "statuses": [trial.status for trial in trials],
        "nodes": sorted(seen) == sorted(node["NodeID"] for node in ray.nodes()),
    }))
nodes.shutdown()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_trials_go_to_both_nodes(workers: int, toy_npz, tmp_path: Path, session_cache: Path):
    own_token()
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "TLRAY_CACHE": str(cache)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment["PYTHONPATH"]])
    file = toy_npz(tmp_path / "toy.npz")
    command = [sys.executable, "-c", SCRIPT, str(file), str(tmp_path), str(workers)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert answer.returncode == 0, answer.stderr[-3000:]
    said = json.loads(answer.stdout.strip().splitlines()[-1])
    trials = 1 if workers else 4
    assert said == {"joined": True, "concurrent": 1 if workers else 2, "statuses": ["finished"] * trials, "nodes": True}

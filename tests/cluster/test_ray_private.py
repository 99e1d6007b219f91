"""Private names of Ray: each does what tlray needs of it, or a test here fails."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import wait_until

from tlray.cluster.ray_private import dashboard_url, declared_maximum
from tlray.cluster.resources import cluster
from tlray.cluster.session import Session

ASK = """
import json
from tlray.cluster.ray_private import declared_maximum
from tlray.cluster.resources import cluster
from tlray.cluster.session import started
with started() as session:
    import ray
    print(json.dumps([session.joined, ray.cluster_resources().get("CPU", 0), declared_maximum(), cluster()]))
"""
PROVIDER = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}


def test_the_dashboards_address_is_the_one_that_ray_gives(ray_session: Session):
    import ray

    context = ray.init(ignore_reinit_error=True)
    assert dashboard_url() == context.dashboard_url == ray_session.dashboard  # type: ignore[union-attr]


def test_a_plain_machine_declares_no_maximum(ray_session: Session):
    assert not declared_maximum()
    assert cluster() == {"CPU": 2.0, "GPU": 0.0}


def test_there_is_no_dashboard_where_no_ray_runs():
    code = "from tlray.cluster.ray_private import dashboard_url; print(repr(dashboard_url()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "''"


def autoscaling_config(nodes: int) -> dict[str, Any]:
    """A cluster whose head takes no work and that may grow to so many nodes of 4 CPUs and a GPU; nothing is ever started."""
    gpu = {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": nodes}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake", "provider": PROVIDER, "max_workers": nodes, "available_node_types": {"head": head, "gpu": gpu},
        "head_node_type": "head", "upscaling_speed": 1.0, "idle_timeout_minutes": 5, "auth": {}, "docker": {}, "file_mounts": {},
        "cluster_synced_files": [], "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip


@pytest.mark.slow
def test_an_autoscaling_cluster_counts_with_its_declared_maximum():
    """`ray.cluster_utils.AutoscalingCluster` is no use: its template is not in the wheel, and it would stop every Ray of the machine."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray's sockets need a short path
    (folder / "config.yaml").write_text(json.dumps(autoscaling_config(3)))
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_TMPDIR": str(folder)}
    environment = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}",
               "--num-cpus=0", f"--autoscaling-config={folder / 'config.yaml'}", "--include-dashboard=false"]  # fmt: skip
    with open(folder / "log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        asking = {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}

        def ask() -> list[Any] | None:
            answer = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=asking, timeout=60)
            said = json.loads(answer.stdout.strip().splitlines()[-1]) if answer.returncode == 0 else None
            assert head.poll() is None, (folder / "log").read_text()
            return said if said and said[2] else None

        assert wait_until(ask, 90) == [True, 0, {"CPU": 12, "GPU": 3}, {"CPU": 12.0, "GPU": 3.0}]
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)

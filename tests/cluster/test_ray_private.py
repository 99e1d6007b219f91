"""Private names of Ray: each does what tlray needs of it, or a test here fails."""

import os
import subprocess
import sys

import pytest

from tlray.cluster.ray_private import dashboard_url, declared_maximum
from tlray.cluster.resources import cluster
from tlray.cluster.session import Session

AUTOSCALING = """
import json
import ray
from ray.cluster_utils import AutoscalingCluster

from tlray.cluster.ray_private import declared_maximum
from tlray.cluster.resources import cluster

node = {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3}
scaling = AutoscalingCluster(head_resources={"CPU": 0}, worker_node_types={"gpu": node})
scaling.start()
try:
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    print(json.dumps([ray.cluster_resources().get("CPU", 0), declared_maximum(), cluster()]))
finally:
    ray.shutdown()
    scaling.shutdown()
"""


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


@pytest.mark.slow
def test_an_autoscaling_cluster_counts_with_its_declared_maximum():
    answer = subprocess.run([sys.executable, "-c", AUTOSCALING], capture_output=True, text=True, env=os.environ, timeout=200)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip().splitlines()[-1] == '[0, {"CPU": 12, "GPU": 3}, {"CPU": 12.0, "GPU": 3.0}]'

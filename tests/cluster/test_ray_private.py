"""Private names of Ray: each does what tlray needs of it, or a test here fails."""

import subprocess
import sys

from tlray.cluster.ray_private import TUNE_LOGGER, dashboard_url, declared_nodes
from tlray.cluster.resources import cluster
from tlray.cluster.session import Session


def test_the_dashboards_address_is_the_one_that_ray_gives(ray_session: Session):
    import ray

    context = ray.init(ignore_reinit_error=True)
    assert dashboard_url() == context.dashboard_url == ray_session.dashboard  # type: ignore[union-attr]


def test_tune_speaks_of_failed_processes_through_its_controllers_logger():
    from ray.tune.execution import tune_controller

    assert tune_controller.logger is TUNE_LOGGER


def test_a_plain_machine_declares_nothing(ray_session: Session):
    assert not declared_nodes()
    assert cluster() == [{"CPU": 2.0, "GPU": 0.0}]


def test_there_is_no_dashboard_where_no_ray_runs():
    code = "from tlray.cluster.ray_private import dashboard_url; print(repr(dashboard_url()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "''"


def test_declared_nodes_count_beside_what_is_there(ray_session: Session):
    """As a cluster's manager reports it to Ray: up to three nodes of 4 CPUs and a GPU, of which none is there.

    `ray.cluster_utils.AutoscalingCluster` is no use here: its template is not in the wheel, and it stops every Ray of the machine.
    """
    from ray import _raylet
    from ray.core.generated import autoscaler_pb2
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    config = autoscaler_pb2.ClusterConfig()  # type: ignore[attr-defined]
    config.node_group_configs.add(name="gpu", max_count=3, resources={"CPU": 4, "GPU": 1})
    key, namespace = _raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, _raylet.GCS_AUTOSCALER_STATE_NAMESPACE  # type: ignore[attr-defined]
    _internal_kv_put(key, config.SerializeToString(), namespace=namespace)
    try:
        assert declared_nodes() == [{"CPU": 4, "GPU": 1}] * 3
        assert cluster() == [{"CPU": 4.0, "GPU": 1.0}] * 3
    finally:
        _internal_kv_del(key, namespace=namespace)
    assert not declared_nodes()

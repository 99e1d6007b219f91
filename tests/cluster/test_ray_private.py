"""Private names of Ray: each does what tlray needs of it, or a test here fails."""

import subprocess
import sys
from typing import Any

from cluster_toys import all_cpus_free
from waiting import wait_until

from tlray.cluster.ray_private import TUNE_LOGGER, dashboard_url, declared_nodes, free_orphans
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


def test_what_a_dead_actor_had_reserved_is_given_back_and_nothing_else(ray_session: Session):
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    class Holder:
        def reserve(self) -> None:
            ray.get(placement_group([{"CPU": 1}]).ready())

    def free() -> float:
        return ray.available_resources().get("CPU", 0.0)

    holders: list[Any] = [ray.remote(num_cpus=0)(Holder).remote() for _ in range(2)]
    ray.get([each.reserve.remote() for each in holders])
    assert free_orphans() == 0
    ray.kill(holders[0])
    wait_until(free_orphans)
    wait_until(lambda: free() == 1)
    assert free_orphans() == 0
    own = placement_group([{"CPU": 1}])
    ray.get(own.ready())
    ray.kill(holders[1])
    wait_until(free_orphans)
    wait_until(lambda: free() == 1)
    remove_placement_group(own)
    wait_until(all_cpus_free)

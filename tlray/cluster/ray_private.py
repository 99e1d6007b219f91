"""The only place that imports private names of Ray; each is tested, so that a change in Ray is noticed (tests/cluster)."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

TUNE_LOGGER = logging.getLogger("ray.tune.execution.tune_controller")
"""Where Tune says, with a traceback, that the process of a trial has failed."""


def dashboard_url() -> str:
    """host:port of the dashboard of the Ray that this process has joined; "" where there is none."""
    from ray._private.worker import _global_node

    return (_global_node.webui_url or "") if _global_node else ""


def declared_nodes() -> list[dict[str, float]]:
    """Resources of every machine that an autoscaling cluster declares it may grow to; none where it declares nothing.

    A group of machines without a limit counts with one.
    """
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [dict(group.resources) for group in groups for _ in range(group.max_count if group.max_count >= 0 else 1)]


def free_orphans() -> int:
    """Give back what actors of this job that are dead had reserved for others; how many reservations that were.

    Ray keeps a placement group until its job ends when the actor that made it dies. The controller of a TorchTrainer has a helper that
    removes its group, but the helper learns of it once the workers are up: of one that is killed earlier all stays taken.
    """
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    found, job = 0, ray.get_runtime_context().get_job_id()
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        by_actor = ray.ActorID(group.creator_actor_id) != ray.ActorID.nil()
        theirs = group.creator_job_id.hex() != job or group.is_detached
        if by_actor and group.creator_actor_dead and not theirs and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
            found += 1
    return found


@contextlib.contextmanager
def starting_processes_come_up() -> Iterator[None]:
    """While this lasts, Tune leaves a trial with the process that is being started for it.

    By itself it gives the trial to the first process that is free and ends the one that is starting, again and again: where trials are
    shorter than the start of a process, one process does all the work, however many may.
    """
    from ray.tune.execution.tune_controller import TuneController

    reuse = TuneController._maybe_reuse_cached_actor

    def reuse_unless_starting(controller: Any, trial: Any) -> bool:
        own = controller._trial_to_actor.get(trial)
        starting = own is not None and controller._actor_manager.is_actor_started(own) and own not in controller._started_actors
        return False if starting else reuse(controller, trial)

    TuneController._maybe_reuse_cached_actor = reuse_unless_starting  # type: ignore[method-assign]
    try:
        yield
    finally:
        TuneController._maybe_reuse_cached_actor = reuse  # type: ignore[method-assign]

"""The only place that imports private names of Ray; each is tested, so that a change in Ray is noticed (tests/cluster)."""

import logging

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

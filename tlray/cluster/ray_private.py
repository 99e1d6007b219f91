"""The only place that imports private names of Ray; each is tested, so that a change in Ray is noticed (tests/cluster)."""


def dashboard_url() -> str:
    """host:port of the dashboard of the Ray that this process has joined; "" where there is none."""
    from ray._private.worker import _global_node

    return (_global_node.webui_url or "") if _global_node else ""


def declared_maximum() -> dict[str, int] | None:
    """Resources that an autoscaling cluster may grow to, by its own configuration; None where nothing is declared."""
    from ray._private.state import state

    return state.get_max_resources_from_cluster_config()

"""One Ray per process: started with the settings that tlray needs, or joined where RAY_ADDRESS names a cluster."""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tlray.cluster import interrupts
from tlray.errors import RunError

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # every ray.train.report waits for the controller's poll, 2 s by default
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # else Ray Train lists no runs
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # else a trial without a GPU sees them all, and takes the first
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # else relative paths of the user break in the trials
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours counts, and knows SIGTERM too
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the histories in the checkpoints are the log
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a trial that still writes when it is stopped must stay reusable
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""Environment of the driver and, on an existing cluster, of its workers. Read by Ray when it is imported."""
ALIKE = ("TLRAY_FEATURES_GIB",)
"""What the workers of an existing cluster take over where the driver's environment has it: they must decide as it does."""


@dataclass(frozen=True)
class Session:
    """A running Ray.

    dashboard: its address, "" where there is none. token: the file that logs in to it, None where it is open. joined: whether it is
    somebody's cluster and not one that was started here.
    """

    dashboard: str
    token: Path | None
    joined: bool


def apply_settings() -> None:
    """Set what Ray reads from the environment, unless the user has."""
    for key, value in SETTINGS.items():
        os.environ.setdefault(key, value)


def token_file() -> Path:
    """Where Ray keeps the token that logs in to the dashboard."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def own_token() -> Path | None:
    """The token file, made when missing and readable by its owner alone (Ray's own is 0644); None where authentication is off."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and not path.stat().st_size:  # nobody writes one: left by a full disk
        path.unlink(missing_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", prefix=".token-", dir=path.parent) as file:
            file.write(secrets.token_hex(32))
            file.flush()
            with contextlib.suppress(FileExistsError):  # somebody else was first
                os.link(file.name, path)
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def _own_address() -> Iterator[None]:
    """Let a Ray that starts in the block know its address, and all its processes with it.

    Without it they look for Ray on the machine and give up where there are several. Train's cleaner is one of them: then a
    TorchTrainer trial that is stopped keeps its CPUs, and the next one waits for ever.
    """
    from ray.util import get_node_ip_address

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    own = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{get_node_ip_address()}:{port}"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def running() -> bool:
    """Whether this process has a Ray, started here or joined."""
    import ray

    return ray.is_initialized()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ray takes SIGTERM for itself while it starts, and keeps it: let it mean what it means elsewhere in a command."""
    try:
        yield
    except SystemExit:
        if not interrupts.install():
            raise
        interrupts.asked.set()
        raise KeyboardInterrupt from None
    interrupts.install()


@contextlib.contextmanager
def started(cpus: int | None = None) -> Iterator[Session]:
    """Ray for the length of the block: joined where RAY_ADDRESS is set or Ray already runs in this process, else started here.

    Args:
        cpus: CPUs that a Ray started here hands out; None: as many as the process may use.

    Raises RunError when the cluster cannot be joined.
    """
    apply_settings()
    import ray

    from tlray.cluster.ray_private import dashboard_url

    token = token_file() if os.environ.get("RAY_AUTH_MODE") == "token" else None
    if ray.is_initialized():
        yield Session(dashboard_url(), token, joined=True)
        return
    joined = bool(os.environ.get("RAY_ADDRESS"))
    if joined:
        alike = {name: os.environ[name] for name in ALIKE if name in os.environ}
        try:
            with _interruptible():
                ray.init(runtime_env={"env_vars": SETTINGS | alike}, logging_level=logging.ERROR, log_to_driver=False)
        except ConnectionError as error:
            raise RunError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be joined ({error}): check that it runs, or unset RAY_ADDRESS to use this "
                f"machine; a cluster behind a token wants RAY_AUTH_MODE=token and its token in {token_file()}"
            ) from error
        except RuntimeError as error:
            if "Version mismatch" not in str(error):
                raise
            raise RunError(
                f"RAY_ADDRESS={os.environ['RAY_ADDRESS']} cannot be joined ({' '.join(str(error).split())}): use the cluster's versions, "
                "or unset RAY_ADDRESS to use this machine"
            ) from error
    else:
        from tlray.training.setup import available_threads

        token = own_token()
        with _own_address(), _interruptible():
            ray.init(
                address="local",  # not somebody's whose `ray start` has left a note of itself
                num_cpus=cpus or available_threads(), include_dashboard=True, logging_level=logging.ERROR, log_to_driver=False,
            )  # fmt: skip
    try:
        yield Session(dashboard_url(), token, joined)
    finally:
        ray.shutdown()

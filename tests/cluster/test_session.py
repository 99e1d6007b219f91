"""Ray as tlray starts it: behind a token that only its owner reads, on loopback, showing runs and trials by their names."""

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from cluster_toys import Scripted, get, hurry_marker, toy_config, toy_job
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.monitoring import OF_CELLS, OF_TRIALS
from tlray.cluster.session import SETTINGS, Session, own_token, started, token_file
from tlray.cluster.tuning import Book, search


def api(session: Session, path: str) -> Any:
    assert session.token is not None
    status, body = get(f"http://{session.dashboard}{path}", session.token.read_text().strip())
    assert status == 200, body
    return json.loads(body)


def metrics_page() -> str:
    import ray

    node = ray.nodes()[0]
    return get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")[1].decode()


def test_the_token_is_its_owners_alone(ray_session: Session):
    assert ray_session.token == token_file()
    assert stat.S_IMODE(token_file().stat().st_mode) == 0o600


def test_a_missing_token_is_made_and_an_open_one_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "folder" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert own_token() == path
    text = path.read_text()
    assert len(text) == 64
    path.chmod(0o644)
    assert own_token() == path
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("")  # as a full disk leaves it
    assert own_token() == path
    assert len(path.read_text()) == 64
    assert [each.name for each in path.parent.iterdir()] == ["token"]
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert own_token() is None


def test_the_dashboard_is_on_loopback_behind_the_token(ray_session: Session):
    assert ray_session.dashboard.startswith("127.0.0.1:")
    assert get(f"http://{ray_session.dashboard}/api/jobs/")[0] == 401
    assert get(f"http://{ray_session.dashboard}/api/jobs/", "0" * 64)[0] in (401, 403)
    assert isinstance(api(ray_session, "/api/jobs/"), list)


def test_what_ray_reads_is_set_for_the_workers_too(ray_session: Session):
    import ray

    @ray.remote
    def environment() -> dict[str, str]:
        return dict(os.environ)

    there = ray.get(environment.remote())
    assert {name: there.get(name) for name in SETTINGS} == {name: os.environ[name] for name in SETTINGS}


@pytest.mark.slow
def test_a_process_that_asked_for_no_gpu_sees_none(ray_session: Session):
    """Tune's trials and Train's workers are actors like this one; on a cluster that was there already the setting comes with the job."""
    import ray

    @ray.remote(num_cpus=1)
    class Trial:
        def sees(self) -> str | None:
            return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(Trial.remote().sees.remote()) == ""
    off = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "CUDA_VISIBLE_DEVICES": "0,1"}}
    assert ray.get(Trial.options(runtime_env=off).remote().sees.remote()) == "0,1"  # what it would see else
    off["env_vars"] |= SETTINGS
    assert ray.get(Trial.options(runtime_env=off).remote().sees.remote()) == ""


def test_a_second_start_joins_the_first_and_leaves_it_running(ray_session: Session):
    import ray

    with started() as second:
        assert second.joined
        assert (second.dashboard, second.token) == (ray_session.dashboard, ray_session.token)
    assert ray.is_initialized()
    assert ray.cluster_resources()["CPU"] == 2


SECOND_RAY = """
from tlray.cluster.session import started
with started(cpus=1) as session:
    print(session.dashboard, flush=True)
    input()
"""


@pytest.mark.slow
def test_processes_find_their_own_ray_where_several_run_on_a_machine(ray_session: Session):
    """Else Train's cleaner dies, and a TorchTrainer trial that is stopped keeps its CPUs for ever."""
    import ray

    @ray.remote
    def own_job_is_listed(job: str) -> bool:
        from ray.util.state import list_jobs

        return job in [each.job_id for each in list_jobs()]

    other = subprocess.Popen([sys.executable, "-c", SECOND_RAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline().strip() not in ("", ray_session.dashboard)
        assert ray.get(own_job_is_listed.remote(ray.get_runtime_context().get_job_id()))
    finally:
        other.stdin.close()
        other.wait(timeout=30)


JOIN = "from tlray.arguments import run_command as run; from tlray.cluster.session import started; run(lambda: started().__enter__())"


def refused(code: str, environment: dict[str, str]) -> str:
    """The one sentence of a process that cannot join a cluster."""
    answer = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in answer.stderr
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("tlray: ")]
    return line


@pytest.mark.slow
def test_a_cluster_that_cannot_be_joined_is_one_sentence(ray_session: Session):
    """Here for want of the token, which a client sends only when told to; on an idle machine Ray tries for half a minute."""
    import ray

    address = ray.get_runtime_context().gcs_address
    line = refused(JOIN, {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": address})
    assert address in line
    assert "RAY_AUTH_MODE=token" in line


def test_a_cluster_of_another_version_is_one_sentence(ray_session: Session):
    import ray

    address = ray.get_runtime_context().gcs_address
    line = refused(f"import ray; ray.__version__ = '0.0.1'; {JOIN}", {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": address})
    assert line.startswith(f"tlray: RAY_ADDRESS={address} cannot be joined (Version mismatch: ")
    assert "Ray: 0.0.1" in line
    assert "use the cluster's versions" in line


def in_background(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_running_trial_shows_by_its_name_and_its_gauges(workers: int, toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    """In process: under Actors as <run>-<task>-<backbone>. TorchTrainer: in Ray Train's list as that and the trial's number."""
    import ray
    from ray.util.state import list_actors

    config = toy_config(toy_npz(tmp_path / "toy.npz"), augment="toy_slow", epochs=60)
    job = toy_job(tmp_path / "toy-small_cnn", places, workers, run=f"watched{workers}")
    assert job.label == f"watched{workers}-toy-small_cnn"
    token = token_file().read_text().strip()
    search_ = in_background(search, Book(job, minimise=False), Scripted([config]))

    def shown() -> bool:
        if workers:
            status, body = get(f"http://{ray_session.dashboard}/api/train/v2/runs/v1", token)  # 500 before the first run
            return status == 200 and f"{job.label}-0000" in [each["name"] for each in json.loads(body)["train_runs"]]
        actors = list_actors(ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")], detail=True)
        return any(job.label in f"{actor.repr_name} {actor.class_name}" for actor in actors)  # type: ignore[attr-defined]

    def gauges(*names: str) -> bool:
        lines = [line for line in metrics_page().splitlines() if f'run="watched{workers}"' in line]
        return all(any(line.startswith(f"ray_tlray_{name}{{") for line in lines) for name in names)

    try:
        wait_until(shown)
        wait_until(lambda: gauges(*OF_TRIALS, "trials_running"))
    finally:
        hurry_marker().touch()
        search_.join(timeout=90)
        hurry_marker().unlink()
    assert not search_.is_alive()
    wait_until(lambda: gauges(*OF_CELLS))

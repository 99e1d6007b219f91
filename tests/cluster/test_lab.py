"""The whole road of docs/cluster.md on hosts of our own: up, watch, search, lose a host, span two, fetch, down.

With our cluster.yaml, changed by `cluster-lab yaml` alone, and our main job. `pytest -s` shows how long each step takes.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_lab import HOME, REPLACED, ROOT, WORKERS, ClusterLab, lab_setup, why_not
from waiting import wait_until

from tlray.results import read_results, read_summary, read_trials, trial_folder
from tlray.training.checkpoint import newest_checkpoint

pytestmark = pytest.mark.slow
SEARCH = "python experiments/tune_backbones.py --backbones small_cnn --weights none --size 28 --offline --storage $TLRAY_STORAGE"


@pytest.fixture(scope="module")
def lab(shared: Path, tmp_path_factory: pytest.TempPathFactory, toy_npz) -> Iterator[ClusterLab]:
    """A running cluster of three hosts, its dashboard brought to the laptop."""
    if reason := why_not(shared):
        pytest.skip(reason)
    lab = ClusterLab(shared, tmp_path_factory.mktemp("lab"))
    tunnel = None
    try:
        lab.up()
        toy_npz(lab.shared / "small.npz", train=600, val=200)
        toy_npz(lab.shared / "long.npz", train=20000, val=400)
        lab.step("lab up: three hosts and a client")
        lab.client("ray", "get-auth-token", "--generate")
        lab.client("ray", "up", "-y", "--disable-usage-stats", str(lab.yaml), seconds=300)
        lab.step("ray up")
        wait_until(lambda: lab.nodes() == 3)
        lab.step("three nodes in `ray exec cluster.yaml 'ray status'`")
        tunnel = lab.background("ray", "dashboard", str(lab.yaml), log="dashboard.log")
        wait_until(lambda: lab.ask("/", token=False)[0] == 200)
        lab.step("ray dashboard answers")
        yield lab
    finally:
        if tunnel:
            tunnel.kill()
            tunnel.wait()
        lab.down()


def test_only_what_is_listed_was_replaced(lab: ClusterLab):
    """Nothing of our file is left untried unseen: what the lab's differs in, is named here."""
    ours, theirs = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "cluster.yaml", lab.yaml))
    setup = [*ours["setup_commands"], *ours["head_setup_commands"], *ours["worker_setup_commands"]]
    assert [command for command in setup if command not in theirs["setup_commands"]] == list(REPLACED)
    assert theirs["setup_commands"] == lab_setup(ours)
    assert [command for command in theirs["setup_commands"] if command not in setup] == [each for each in REPLACED.values() if each]
    different = {key for key in ours if ours[key] != theirs[key]}
    of_the_cloud = {"provider", "auth", "docker", "initialization_commands", "head_node_type", "available_node_types", "max_workers"}
    assert different <= of_the_cloud | {key for key in ours if key.endswith(("setup_commands", "start_ray_commands"))}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        uncapped = [re.sub(r" --(num-cpus|memory|object-store-memory)=\S+", "", command) for command in theirs[key]]
        assert [command for command in uncapped if "record_local_head_state" not in command] == ours[key]


def test_without_the_token_every_api_answers_401(lab: ClusterLab):
    for path in ("/api/jobs/", "/api/v0/actors", "/logical/actors", "/nodes?view=summary", "/api/train/v2/runs/v1", "/api/cluster_status"):
        assert lab.ask(path, token=False)[0] == 401, path
    assert lab.ask("/api/jobs/")[0] == 200
    refused = lab.client("env", "RAY_AUTH_MODE=disabled", "ray", "job", "list", "--address", "http://127.0.0.1:8265", check=False)
    assert "401" in refused or "nauth" in refused, refused
    assert lab.on("worker1", f"stat -c %a {HOME}/.ray/auth_token").strip() == "600"


def test_threads_dashboard_and_statistics_are_as_the_file_says(lab: ClusterLab):
    for host in ("head", *WORKERS):
        environment = lab.on(host, "tr '\\0' '\\n' < /proc/$(pgrep -o raylet)/environ").splitlines()
        assert not [line for line in environment if line.startswith("OMP_NUM_THREADS=")]
        assert {"RAY_AUTH_MODE=token", "RAY_USAGE_STATS_ENABLED=0", "TLRAY_STORAGE=/shared/results"} <= set(environment)
    listening = lab.on("head", "awk '$4 == \"0A\" && $2 ~ /:2049$/ {print $2}' /proc/net/tcp /proc/net/tcp6")  # 0A: listens; 2049: 8265
    assert listening.split() == ["0100007F:2049"]  # 127.0.0.1 alone


def cell_of(run: Path) -> Path | None:
    return next((path.parent for path in run.glob("*/trials")), None)


def saved(cell: Path) -> dict[int, list[dict[str, Any]]]:
    """What running trials have in their newest checkpoints: number -> history."""
    running = [trial.number for trial in read_trials(cell) if not trial.ended]
    newest = {number: newest_checkpoint(trial_folder(cell, number) / "checkpoints") for number in running}
    return {number: each.meta["history"] for number, each in newest.items() if each}


def test_a_search_over_two_hosts_outlives_one_of_them(lab: ClusterLab):
    """One trial takes longer than a host to come back: Tune gives a waiting trial the process that is free first, wherever it is."""
    job = lab.submit("lost-host", f"{SEARCH} --tasks npz:/shared/long.npz --trials 5 --epochs 10 --name lost-host")
    run = lab.shared / "results" / "lost-host"
    cell = wait_until(lambda: cell_of(run))
    label = f"lost-host-{cell.name}"
    hosts = wait_until(lambda: set(found := lab.trial_hosts(label)) == set(WORKERS.values()) and found)
    lab.step("ray job submit: in-process trials on both hosts")
    before = wait_until(lambda: len(found := saved(cell)) == 2 and found)
    lab.run("kill", "worker2")
    lab.step("first epochs done; worker2 lost")
    lab.run("start", "worker2")
    wait_until(lambda: hosts[WORKERS["worker2"]] != lab.trial_hosts(label).get(WORKERS["worker2"], hosts[WORKERS["worker2"]]))
    lab.step("worker2 replaced by an empty host, which trains")
    assert job.wait(timeout=300) == 0, lab.log("lost-host")[-3000:]
    lab.step("search done")

    trials = read_trials(cell)
    assert [trial.number for trial in trials] == list(range(5))
    assert {trial.status for trial in trials} <= {"finished", "stopped"}
    assert all([row["epoch"] for row in trial.history] == list(range(1, len(trial.history) + 1)) for trial in trials)
    for number, history in before.items():
        assert trials[number].history[: len(history)] == history, "an epoch was trained again"
    summary = read_summary(run)
    assert not summary["partial"]
    assert sum(summary["cells"][0]["trials"].values()) == 5
    assert set(read_results(run)["trial"]) == set(range(5))
    for host in WORKERS:
        assert lab.on(host, f"ls {HOME}/.cache/tlray").strip(), "each node fills a cache of its own"
    assert lab.nodes() == 3
    said = lab.log("lost-host")
    assert "Dashboard: http://127.0.0.1:8265" in said
    assert f"cat {HOME}/.ray/auth_token" in said


def test_a_trial_of_two_workers_spans_both_hosts(lab: ClusterLab):
    job = lab.submit("across", f"{SEARCH} --tasks npz:/shared/small.npz --workers-per-trial 2 --trials 4 --epochs 4 --name across")
    assert job.wait(timeout=400) == 0, lab.log("across")[-3000:]
    lab.step("four trials of two workers each done")
    run = lab.shared / "results" / "across"
    trials = read_trials(cell_of(run) or run)
    assert [trial.number for trial in trials] == list(range(4))
    assert {trial.status for trial in trials} <= {"finished", "stopped"}
    status, body = lab.ask("/api/train/v2/runs/v1")
    assert status == 200, body
    shown = {each["name"]: each for each in json.loads(body)["train_runs"] if each["name"].startswith("across-")}
    assert sorted(shown) == [f"across-{summary_cell(run)['cell']}-{number:04d}" for number in range(4)]
    for each in shown.values():
        assert {worker["node_ip"] for attempt in each["attempts"] for worker in attempt["workers"]} == set(WORKERS.values())


def summary_cell(run: Path) -> dict[str, Any]:
    return read_summary(run)["cells"][0]


def test_the_report_is_fetched_and_everything_goes_down(lab: ClusterLab):
    there = lab.shared / "results" / "lost-host"
    if not (there / "report.html").is_file():
        pytest.skip("the search of this file has not run")
    lab.client("ray", "rsync-down", str(lab.yaml), "/shared/results/lost-host/", f"{lab.folder}/fetched/")
    assert (lab.folder / "fetched" / "report.html").read_bytes() == (there / "report.html").read_bytes()
    lab.step("report fetched to the laptop")
    raylets = "pgrep 'raylet|gcs_serv'"  # of the names' first fifteen characters, and no longer itself
    assert lab.on("head", raylets, check=False).split()
    lab.client("ray", "down", "-y", str(lab.yaml), seconds=180)
    lab.step("ray down")
    assert not lab.on("head", raylets, check=False).split()
    lab.down()
    lab.step("lab down")
    assert f"{lab.name}-" not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not lab.state.exists()

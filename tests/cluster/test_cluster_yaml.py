"""cluster.yaml passes Ray's own validator, and keeps each promise of its header."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tlray.cluster.resources import declared_by_file, total

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
PAGE = ROOT / "docs" / "cluster.md"


@pytest.fixture
def raw() -> dict[str, Any]:
    """The file as written."""
    return yaml.safe_load(TEXT)


@pytest.fixture
def prepared(raw) -> dict[str, Any]:
    """What the launcher makes of it: defaults filled in."""
    return prepare_config(raw)


def pinned(package: str) -> str:
    """The version of a package in constraints.txt."""
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def commands(raw: dict[str, Any]) -> str:
    """Every command that the file runs on a node, one per line."""
    keys = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return "\n".join(command for key in keys for command in raw[f"{key}_commands"])


def workers(raw: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in raw["available_node_types"].items() if name != raw["head_node_type"]}


def test_rays_validator_accepts_it(prepared):
    validate_config(prepared)


@pytest.mark.parametrize(("key", "value"), [("max_workers", "four"), ("head_node_type", "nobody"), ("idle_timeout", 5)])
def test_rays_validator_refuses_a_spoilt_one(raw, key, value):
    """So the test above can fail: a wrong type, a type that is not there, an unknown key."""
    with pytest.raises(Exception, match=key if key != "head_node_type" else "nobody|head_node_type"):
        validate_config(prepare_config(raw | {key: value}))


def test_no_default_of_ray_slips_in(raw, prepared):
    """Ray fills what is missing from its own AWS example, dashboard on 0.0.0.0 and a nightly wheel among it."""
    assert {key for key in prepared if key not in raw} <= {"cluster_synced_files", "file_mounts_sync_continuously"}
    for key in ("initialization_commands", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == raw[key]
    assert prepared["head_setup_commands"] == raw["setup_commands"] + raw["head_setup_commands"]
    assert prepared["worker_setup_commands"] == raw["setup_commands"] + raw["worker_setup_commands"]


def test_the_head_takes_no_work_and_is_on_demand(raw):
    head = raw["available_node_types"][raw["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]


def test_workers_are_on_spot_and_scale_from_zero(raw):
    for worker in workers(raw).values():
        assert worker["min_workers"] == 0
        assert worker["max_workers"] <= raw["max_workers"]
        assert worker["resources"]["CPU"] >= 1
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["node_config"]["ImageId"] == raw["available_node_types"]["head"]["node_config"]["ImageId"]
    assert len({worker["node_config"]["InstanceType"] for worker in workers(raw).values()}) == len(workers(raw))


def test_there_are_machines_with_one_gpu_and_with_four(raw):
    gpus = {name: worker["resources"].get("GPU", 0) for name, worker in workers(raw).items() if worker["max_workers"]}
    assert gpus == {"gpu_1": 1, "gpu_4": 4}
    assert sum(worker["max_workers"] for worker in workers(raw).values()) == raw["max_workers"]


def test_the_line_of_the_page_makes_it_a_cluster_without_gpus(raw, tmp_path):
    """The page's own command, run as it stands there."""
    (line,) = re.findall(r"^(sed .* cluster\.yaml > cpu\.yaml)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    (tmp_path / "cluster.yaml").write_text(TEXT)
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    without = yaml.safe_load((tmp_path / "cpu.yaml").read_text())
    validate_config(prepare_config(without))
    assert {name: each["max_workers"] for name, each in workers(without).items()} == {"gpu_1": 0, "gpu_4": 0, "cpu": 4}
    assert total(declared_by_file(tmp_path / "cpu.yaml"), "GPU") == 0
    assert total(declared_by_file(tmp_path / "cpu.yaml"), "CPU") == 32
    cpu = without["available_node_types"]["cpu"]
    assert "--gpus all" in raw["docker"]["worker_run_options"]
    assert cpu["docker"]["worker_run_options"] == []
    assert without | {"available_node_types": None} == raw | {"available_node_types": None}


def test_idle_workers_are_given_back_and_nothing_stays_on_the_bill(raw):
    assert 1 <= raw["idle_timeout_minutes"] <= 30
    assert raw["provider"]["cache_stopped_nodes"] is False


def test_only_ssh_is_open(raw, prepared):
    assert raw["provider"]["security_group"]["IpPermissions"] == []
    assert "0.0.0.0" not in yaml.safe_dump(prepared)
    assert not any("-p " in option or "--publish" in option for option in raw["docker"]["run_options"])


def test_the_dashboard_stays_on_loopback(prepared):
    head = [command for command in prepared["head_start_ray_commands"] if "ray start" in command]
    assert len(head) == 1
    assert re.findall(r"--dashboard-host[= ](\S+)", head[0]) == ["127.0.0.1"]


def test_the_token_is_there_before_ray_starts(prepared):
    assert prepared["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    setup = "\n".join(prepared["setup_commands"])
    assert "chmod 600 ~/.ray/auth_token" in setup
    assert re.search(r"echo 'export .*RAY_AUTH_MODE=token.*' >> ~/\.bashrc", setup)


def test_usage_statistics_are_off(prepared):
    assert re.search(r"echo 'export .*RAY_USAGE_STATS_ENABLED=0.*' >> ~/\.bashrc", "\n".join(prepared["setup_commands"]))
    assert "--disable-usage-stats" in "\n".join(prepared["head_start_ray_commands"])


def test_threads_are_not_left_at_one(prepared):
    """The launcher exports OMP_NUM_THREADS=1 into each command, and `ray start` would hand it down to all workers."""
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = [command for command in prepared[key] if "ray start" in command]
        assert start
        for command in start:
            assert command.index("unset OMP_NUM_THREADS") < command.index("ray start")


def test_nodes_may_open_many_files(raw):
    """The container's limit, taken up in full: `ulimit -n NUMBER; ray start` goes on silently when it may not."""
    assert "--ulimit nofile=65536:65536" in raw["docker"]["run_options"]
    assert commands(raw).count('ulimit -n "$(ulimit -Hn)" && ray start') == 2


def test_the_image_has_the_pinned_ray_and_python(raw):
    image = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)-gpu", raw["docker"]["image"])
    assert image, raw["docker"]["image"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert image[1] == pinned("ray") == ray.__version__
    assert f">={image[2]}.{image[3]}," in project["requires-python"]
    assert any(each.startswith("ray[") and each.endswith(f"=={image[1].rpartition('.')[0]}.*") for each in project["dependencies"])


def test_the_page_makes_it_one_of_machines_of_ones_own():
    """As the page says it: its block in the place of the file's from `cluster_name` to `file_mounts`, and three lines further down."""
    page = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(cluster_name: .*?)^```", page, re.MULTILINE | re.DOTALL)
    whole = re.sub(r"^cluster_name:.*?(?=^rsync_exclude)", lambda _: block, TEXT, flags=re.MULTILINE | re.DOTALL)
    assert "`head_setup_commands: []` takes the place of `pip install boto3`" in page
    own = re.sub(r"^head_setup_commands:\n  - .*\n", "head_setup_commands: []\n", whole, flags=re.MULTILINE)
    prepared = prepare_config(yaml.safe_load(own))
    validate_config(prepared)
    assert prepared["provider"]["type"] == "local"
    assert prepared["max_workers"] == 2
    assert "boto3" not in commands(prepared)
    assert "pip install --quiet -c ~/tlray/constraints.txt ~/tlray" in commands(prepared)


def test_packages_are_installed_in_one_command_under_the_constraints(raw):
    installs = [line for line in commands(raw).splitlines() if "pip install" in line and "boto3" not in line]
    assert installs == ["pip install --quiet -c ~/tlray/constraints.txt ~/tlray"]


def test_neither_history_nor_environment_nor_ignored_files_are_sent(raw):
    assert {"**/.git", "**/.venv"} <= set(raw["rsync_exclude"])
    assert ".gitignore" in raw["rsync_filter"]


def test_there_are_three_places_to_edit():
    marks = {number: [line for line in TEXT.splitlines() if f"EDIT {number}" in line] for number in (1, 2, 3)}
    assert len(marks[1]) == 1
    assert "region:" in marks[1][0]
    assert marks[2][0].startswith("  # EDIT 2")
    assert len(marks[2]) == 5
    assert all("InstanceType" in line or "resources" in line for line in marks[2][1:])
    first, last = (TEXT.index(marks[2][index]) for index in (0, -1))
    assert TEXT[first:last].count("\n") < 25, "one place"
    assert len(marks[3]) == 1
    assert re.search(r"TLRAY_STORAGE=s3://\S+/\S+", marks[3][0])
    assert "EDIT 4" not in TEXT


def test_the_region_is_written_once(raw):
    """Neither an availability zone nor a machine image ties the file to another region."""
    assert TEXT.count(raw["provider"]["region"]) == 1
    assert not re.search(r"\bami-[0-9a-f]{8}", TEXT)


def test_every_role_of_the_file_is_explained_in_the_page(raw):
    page = PAGE.read_text(encoding="utf-8")
    for each in raw["available_node_types"].values():
        assert each["node_config"]["IamInstanceProfile"]["Name"] in page
    assert "not been tried on AWS" in page

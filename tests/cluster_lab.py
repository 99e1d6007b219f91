"""Hosts made of network namespaces, on which our cluster.yaml runs as it would in a cloud: what the tests of the road share.

The tool is `tools/cluster-lab` of the shared folder; its README says what a host is.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
HOME = "/home/ray"
WORKERS = {"worker1": "10.77.0.11", "worker2": "10.77.0.12"}
PROGRAMS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
"""What the lab needs -> the Debian package that has it."""

REPLACED = {
    "echo 'export TLRAY_STORAGE=s3://my-bucket/tlray' >> ~/.bashrc": "echo 'export TLRAY_STORAGE=/shared/results' >> ~/.bashrc",
    "pip install --quiet -c ~/tlray/constraints.txt ~/tlray": None,
    "pip install --quiet boto3": None,
}
"""Setup commands that the lab cannot run, as it has neither an uplink nor a bucket -> what it runs in their place.

The environment that the hosts see already has what the two installations would bring.
"""

ASK = """
import os, sys, urllib.error, urllib.request
token = open(os.path.expanduser("~/.ray/auth_token")).read().strip() if sys.argv[2] == "token" else ""
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {token}"} if token else {})
try:
    with urllib.request.urlopen(request, timeout=20) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(0, error)
"""


def why_not(shared: Path) -> str | None:
    """Why the lab cannot run on this machine, None where it can."""
    if not (shared / "tools" / "cluster-lab" / "cluster-lab").is_file():
        return f"there is no tools/cluster-lab in {shared}"
    if os.geteuid():
        return "network namespaces need root"
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    if lacking := [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]:
        return f"these packages are missing: apt-get install {' '.join(lacking)}"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    return f"namespaces may not be made here: {tried.stderr.strip()}" if tried.returncode else None


def lab_setup(ours: dict[str, Any]) -> list[str]:
    """The setup commands of our cluster.yaml as the lab runs them."""
    commands = [*ours["setup_commands"], *ours["head_setup_commands"], *ours["worker_setup_commands"]]
    return [now for command in commands if (now := REPLACED.get(command, command)) is not None]


class ClusterLab:
    """A head, two workers of one CPU each and a client (the laptop) on which the launcher runs, from the repository's root."""

    def __init__(self, shared: Path, folder: Path):
        self.program, self.folder = shared / "tools" / "cluster-lab" / "cluster-lab", folder
        self.name = f"tlray{os.getpid()}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TLRAY_", "TUNE_", "PYTHON"))}
        told = {
            "CLUSTER_LAB_NAME": self.name,
            "CLUSTER_LAB_VENV": sys.prefix,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
        }
        self.environment = {**kept, **told}
        self.state = Path(os.path.realpath(os.environ.get("TMPDIR", "/tmp"))) / f"cluster-lab-{self.name}"
        self.yaml = folder / "local.yaml"
        self.began = self.last = time.monotonic()
        self.steps: list[str] = []

    @property
    def shared(self) -> Path:
        """The folder that every host sees as /shared."""
        return self.state / "shared"

    def step(self, what: str) -> None:
        """Note how long it took since the last step."""
        now = time.monotonic()
        self.steps.append(f"{now - self.began:6.1f} s (+{now - self.last:5.1f})  {what}")
        print(self.steps[-1], flush=True)
        self.last = now

    def run(self, *arguments: str, seconds: float = 60.0, check: bool = True) -> str:
        """A command of the lab; what it said. Fails with that when it fails."""
        done = subprocess.run(
            [sys.executable, str(self.program), *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=seconds
        )
        assert not (check and done.returncode), f"{' '.join(arguments)} -> {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    def up(self) -> None:
        """Make the hosts and our cluster's file for them; whatever lies on another file system than / is shared with them."""
        venv, besides = Path(sys.prefix), [Path(sys.base_prefix), ROOT]
        foreign = [path for path in (venv, *besides) if path.stat().st_dev != Path("/").stat().st_dev]
        shares = [text for path in foreign for text in ("--share", str(path))]
        self.run("up", "--hosts", "3", "--live", str(ROOT), "--live", str(self.folder), *shares)
        ours = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
        setup = [text for command in lab_setup(ours) for text in ("--setup", command)]
        size = ["--min-workers", "2", "--num-cpus", "1", "--memory", "2000000000", "--object-store", "200000000"]
        made = subprocess.run(
            [sys.executable, str(self.program), "yaml", "cluster.yaml", *setup, *size],
            cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True,
        )  # fmt: skip
        self.yaml.write_text(made.stdout)

    def client(self, *command: str, seconds: float = 120.0, check: bool = True) -> str:
        """A command on the laptop, in the repository's root."""
        return self.run("exec", "client", "--", *command, seconds=seconds, check=check)

    def on(self, host: str, command: str, check: bool = True) -> str:
        """A shell command on a host."""
        return self.run("exec", host, "--", "bash", "-c", command, check=check)

    def background(self, *command: str, log: str) -> subprocess.Popen:
        """A command on the laptop that goes on beside the test; it dies with its Popen."""
        with open(self.folder / log, "w") as file:
            full = [sys.executable, str(self.program), "exec", "client", "--", *command]
            return subprocess.Popen(full, cwd=ROOT, env=self.environment, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def submit(self, name: str, command: str) -> subprocess.Popen:
        """`ray job submit` of a shell command, as docs/cluster.md has it; its output goes to NAME.log."""
        job = ["ray", "job", "submit", "--address", "http://127.0.0.1:8265", "--submission-id", name, "--working-dir", "."]
        return self.background(*job, "--", "bash", "-c", command, log=f"{name}.log")

    def log(self, name: str) -> str:
        """What a job in the background has said so far."""
        return (self.folder / f"{name}.log").read_text()

    def ask(self, path: str, token: bool = True) -> tuple[int, str]:
        """Status and text of a page of the dashboard, asked by the laptop through its tunnel; status 0 where nobody answers."""
        url = f"http://127.0.0.1:8265{path}"
        status, _, body = self.client("python", "-c", ASK, url, "token" if token else "none", seconds=60).partition(" ")
        return int(status), body

    def trial_hosts(self, label: str) -> dict[str, str]:
        """Address of a host -> id of the process of trials that is alive there, for a search's in-process trials."""
        status, body = self.ask("/logical/actors")
        assert status == 200, body
        actors = json.loads(body)["data"]["actors"].values()
        shown = [each for each in actors if label in f"{each['actorClass']} {each.get('reprName', '')}"]
        return {each["address"]["ipAddress"]: each["actorId"] for each in shown if each["state"] == "ALIVE"}

    def nodes(self) -> int:
        """How many nodes `ray status` shows, asked as the page says."""
        said = self.client("ray", "exec", str(self.yaml), "ray status", check=False)
        shown = re.search(r"^Active:\n(.*?)^Pending:", said, re.MULTILINE | re.DOTALL)
        return sum(int(number) for number in re.findall(r"^ (\d+) ", shown[1], re.MULTILINE)) if shown else 0

    def down(self) -> None:
        """Remove everything."""
        self.run("down", seconds=120)

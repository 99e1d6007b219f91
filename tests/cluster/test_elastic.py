"""A node is lost and no other comes: with `--elastic` the training goes on from its checkpoint on the worker that is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tlray.results import FINISHED


@pytest.mark.slow
def test_a_training_that_lost_a_node_goes_on_with_one_worker(toy_npz, tmp_path: Path):
    """In a Ray of two nodes of its own; one CPU is left, so there cannot be two workers."""
    script, npz = Path(__file__).with_name("elastic_cluster.py"), toy_npz(tmp_path / "toy.npz")
    environment = {**os.environ, "TLRAY_CACHE": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    argv = [sys.executable, str(script), str(npz), str(tmp_path / "cell")]
    answer = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=400)
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout.splitlines()[-1])
    trial, before = said["trial"], said["before"]
    assert (trial["status"], len(trial["history"])) == (FINISHED, 6)
    assert trial["lost"] >= 1
    assert trial["history"][: len(before)] == before  # with their times: they were not trained again

"""One trial as its process runs it, without Ray round it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from cluster_toys import toy_config, toy_job

from tlray.cache import Places
from tlray.cluster import trial
from tlray.cluster.resources import Resources
from tlray.results import FINISHED, Trial, read_trial, write_trial


def test_a_torch_trainers_worker_is_held_to_its_share_of_a_gpus_memory(toy_npz, tmp_path: Path, places: Places, monkeypatch):
    limits, reports = [], []
    monkeypatch.setattr(trial, "_limit_gpu_memory", limits.append)
    monkeypatch.setattr("ray.train.get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr("ray.train.report", reports.append)
    job = replace(toy_job(tmp_path / "cell", places, 1), resources=Resources(1, 4, 1, 0.25))
    config = toy_config(toy_npz(tmp_path / "toy.npz"), epochs=1)
    write_trial(job.cell, Trial(0, config.to_dict()))
    trial.worker({"job": job, "number": 0})
    assert limits == [0.25]
    assert len(reports) == 1
    assert read_trial(job.cell, 0).status == FINISHED

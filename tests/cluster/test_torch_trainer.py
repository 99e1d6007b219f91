"""A TorchTrainer round `fit` changes nothing: one worker gives the numbers of this process, and its faults have their reasons."""

import threading
from pathlib import Path

import pytest
import torch
from cluster_toys import all_cpus_free, kill_controllers, toy_config, toy_job, without_clock
from waiting import wait_until

from tlray.cache import Places
from tlray.cluster.distributed import train_distributed
from tlray.cluster.session import Session
from tlray.errors import RunError
from tlray.results import FINISHED, NONFINITE, RUNNING, Trial, read_trial, trial_folder, write_trial
from tlray.training.checkpoint import Checkpoint, found, load_checkpoint, newest_checkpoint, save_checkpoint
from tlray.training.fit import fit


@pytest.mark.slow
def test_one_worker_gives_the_numbers_of_this_process_bit_for_bit(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    config = toy_config(toy_npz(tmp_path / "toy.npz", train=70), augment="flip_shift", dropout=0.3, scheduler="cosine")
    threads = torch.get_num_threads()
    try:
        here: dict[int, Checkpoint] = {epoch.number: epoch.state() for epoch in fit(config, places)}
    finally:
        torch.set_num_threads(threads)
    trial = train_distributed(toy_job(tmp_path / "cell", places, workers=1), config)
    assert trial.status == FINISHED
    assert without_clock(trial.history) == without_clock(here[3].meta["history"])
    kept = found(trial_folder(tmp_path / "cell", 0) / "checkpoints")
    assert kept
    for number, path in kept:
        there = load_checkpoint(path)
        assert there.tensors.keys() == here[number].tensors.keys()
        assert [key for key, tensor in there.tensors.items() if not torch.equal(tensor, here[number].tensors[key])] == []


@pytest.mark.slow
def test_a_distributed_training_is_taken_up_where_it_stands(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    config = toy_config(toy_npz(tmp_path / "toy.npz"))
    job = toy_job(tmp_path / "cell", places, workers=1)
    write_trial(job.cell, Trial(0, config.to_dict()))
    whole = list(fit(config, places))
    checkpoints = trial_folder(job.cell, 0) / "checkpoints"
    save_checkpoint(checkpoints, next(fit(config, places)).state())
    first = newest_checkpoint(checkpoints)
    assert first is not None
    trial = train_distributed(job, config)
    assert trial.history[0] == first.meta["history"][0]
    assert without_clock(trial.history) == without_clock(whole[-1].history)
    assert train_distributed(job, config) == trial  # which has ended: nothing is trained


@pytest.mark.slow
def test_a_training_whose_controller_is_killed_breaks_off_in_one_sentence(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    config = toy_config(toy_npz(tmp_path / "toy.npz"), augment="toy_slow", epochs=100)
    job = toy_job(tmp_path / "cell", places, workers=1)

    def kill() -> None:
        wait_until(lambda: found(trial_folder(job.cell, 0) / "checkpoints"))
        kill_controllers()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(RunError, match=r"broke off, the same call goes on with it: ActorDiedError"):
        train_distributed(job, config)
    killer.join()
    assert read_trial(job.cell, 0).status == RUNNING
    wait_until(all_cpus_free, 90)


def test_a_training_that_has_failed_raises_its_reason(toy_npz, tmp_path: Path, places: Places, ray_session: Session):
    config = toy_config(toy_npz(tmp_path / "toy.npz"))
    job = toy_job(tmp_path / "cell", places, workers=1)
    write_trial(job.cell, Trial(0, config.to_dict(), NONFINITE, reason="the training loss is not finite in epoch 1"))
    with pytest.raises(RunError, match="nonfinite: the training loss is not finite in epoch 1"):
        train_distributed(job, config)

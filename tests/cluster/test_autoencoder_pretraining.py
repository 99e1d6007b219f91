"""An autoencoder is pretrained by the TorchTrainer that pretrains everything else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cluster_toys import toy_config

from tlray.cache import Places
from tlray.cluster.distributed import pretrain_all
from tlray.cluster.resources import Resources
from tlray.cluster.session import Session
from tlray.models.weights import read_tensors
from tlray.training.fit import fit
from tlray.training.pretrain import autoencoder_file, encoder_file, pretrain, pretraining_config


@pytest.mark.slow
def test_two_workers_make_what_one_process_makes(toy_npz, tmp_path: Path, ray_session: Session):
    npz = toy_npz(tmp_path / "toy.npz", train=65)
    target = toy_config(npz, weights=f"npz:{npz}/autoencoder?epochs=2", unfreeze="head")
    source = pretraining_config(target)
    assert source is not None
    there, here = (Places(None, str(tmp_path / name), True) for name in ("there", "here"))
    pretrain_all([source], there, Resources(2, 1, 1, 0.0), "toy", tmp_path / "ray")
    threads = torch.get_num_threads()
    try:
        pretrain(source, here)
        saved = [read_tensors(file(source, places))[0] for file in (encoder_file, autoencoder_file) for places in (there, here)]
        assert next(fit(replace(target, epochs=1), there)).last
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(saved[0], saved[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(saved[2], saved[3], atol=1e-4, rtol=1e-3)

"""What one node has, another one takes from the storage of their run: arrays, files of weights, weights that tlray has made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cluster_toys import toy_config
from s3_server import Store

from tlray.cache import Places
from tlray.cluster.resources import Resources
from tlray.data.task import open_task
from tlray.errors import DataError, RunError, WeightsError
from tlray.lending import shelf_beside
from tlray.models.classifier import build_classifier
from tlray.models.weights import open_weights, save_weights
from tlray.runs.folder import Run, prepare_weights
from tlray.storage import AnyPath, place, remove_tree
from tlray.training.pretrain import encoder_file, missing_pretraining, pretrain, pretraining_config


@pytest.fixture(params=["folder", "store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A run in a folder that all nodes see, and one in an object store."""
    if request.param == "folder":
        return tmp_path / "shared" / "run"
    store: Store = request.getfixturevalue("object_store")
    return place(store.uri(f"lending/{request.node.name}/run"))


@pytest.fixture
def nodes(run: AnyPath, tmp_path: Path) -> list[Places]:
    """What two nodes know: each has a cache of its own, both the same shelf."""
    shelf = str(run.parent / ".cache")
    return [Places(data=None, cache=str(tmp_path / name), offline=True, run=str(run), shelf=shelf) for name in ("one", "two")]


def lent(run: AnyPath, places: Places, *configs) -> None:
    """What a driver does before its trials."""
    run.mkdir(parents=True, exist_ok=True)
    prepare_weights(configs, Run(run, places, Resources(0, 1, 1, 0.0)))


def test_a_run_in_a_store_has_a_shelf_and_one_on_this_machine_has_none(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert shelf_beside(tmp_path / "run") is None
    assert shelf_beside(place("s3://bucket/runs/run?scheme=http")) == "s3://bucket/runs/.cache?scheme=http"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert shelf_beside(tmp_path / "run") == str(tmp_path / ".cache")


def test_a_node_without_the_file_reads_what_the_driver_read(run: AnyPath, nodes: list[Places], toy_npz, tmp_path: Path):
    config = toy_config(toy_npz(tmp_path / "toy.npz"))
    lent(run, nodes[0], config)
    Path(config.task.removeprefix("npz:")).unlink()
    with pytest.raises(DataError, match="there is no file"):
        open_task(config.task, config.size, replace(nodes[1], shelf=None))
    here, there = (open_task(config.task, config.size, each) for each in nodes)
    assert there.fingerprint == here.fingerprint
    assert there.folder.is_relative_to(tmp_path / "two")
    assert np.array_equal(there.train.images, here.train.images)
    remove_tree(run.parent / ".cache")
    assert open_task(config.task, config.size, nodes[1]).folder == there.folder


def test_another_file_of_that_name_is_not_read_in_its_place(run: AnyPath, nodes: list[Places], toy_npz, tmp_path: Path):
    config = toy_config(toy_npz(tmp_path / "toy.npz"))
    lent(run, nodes[0], config)
    toy_npz(tmp_path / "toy.npz", seed=9)
    here, there = (open_task(config.task, config.size, each) for each in nodes)
    assert there.fingerprint == here.fingerprint


def test_a_file_of_weights_is_lent(run: AnyPath, nodes: list[Places], toy_npz, tmp_path: Path):
    weights = tmp_path / "encoder.safetensors"
    save_weights(weights, build_classifier("small_cnn", "binary", 2, 1, 0.0, (0.5,), (0.5,)), {})
    config = toy_config(toy_npz(tmp_path / "toy.npz"), weights=str(weights))
    lent(run, nodes[0], config)
    here = open_weights(config.weights, "small_cnn", 1, nodes[0])
    weights.unlink()
    with pytest.raises(WeightsError, match="cannot be opened"):
        open_weights(config.weights, "small_cnn", 1, replace(nodes[1], shelf=None))
    there = open_weights(config.weights, "small_cnn", 1, nodes[1])
    assert here is not None
    assert there is not None
    assert there.key == here.key


def test_weights_that_one_node_has_made_are_there_for_the_other(run: AnyPath, nodes: list[Places], toy_npz, tmp_path: Path):
    source = toy_npz(tmp_path / "source.npz", seed=1)
    config = toy_config(toy_npz(tmp_path / "toy.npz"), weights=f"npz:{source}?epochs=2")
    made = pretraining_config(config)
    assert made is not None
    for each in nodes:
        assert missing_pretraining(config, each) == made
    seen = []
    stopped = pretrain_until(made, nodes[0], 1)
    assert stopped == 1
    pretrain(made, nodes[1], report=lambda epoch: seen.append(epoch.number))
    assert seen == [2]  # the other node had done the first
    assert missing_pretraining(config, nodes[0]) is None
    assert encoder_file(made, nodes[0]).read_bytes() == encoder_file(made, nodes[1]).read_bytes()
    assert not list((place(nodes[0].shelf or "") / "pretraining").iterdir())


def pretrain_until(config, places: Places, epochs: int) -> int:
    """Pretrain and be lost after so many epochs; how many there were."""

    def lost(epoch) -> None:
        if epoch.number == epochs:
            raise KeyboardInterrupt

    try:
        pretrain(config, places, report=lost)
    except KeyboardInterrupt:
        return epochs
    return 0


def test_what_was_damaged_on_the_shelf_is_named_and_not_taken(run: AnyPath, nodes: list[Places], toy_npz, tmp_path: Path):
    config = toy_config(toy_npz(tmp_path / "toy.npz"))
    lent(run, nodes[0], config)
    files = list((run.parent / ".cache" / "files").iterdir())
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunError, match="is damaged"):
        open_task(config.task, config.size, nodes[1])
    assert not list((tmp_path / "two" / "tasks").glob("[!.]*"))
    for file in files:
        file.unlink()
    with pytest.raises(RunError, match="is gone"):
        open_task(config.task, config.size, nodes[1])


def test_nothing_outside_the_cache_is_written_by_a_forged_note(run: AnyPath, nodes: list[Places], toy_npz, tmp_path: Path):
    config = toy_config(toy_npz(tmp_path / "toy.npz"))
    lent(run, nodes[0], config)
    (note,) = (run.parent / ".cache" / "tasks").iterdir()
    note.write_bytes(note.read_bytes().replace(b"meta.json", b"../../../evil"))
    with pytest.raises(RunError, match="names no files"):
        open_task(config.task, config.size, nodes[1])
    assert not list(tmp_path.rglob("evil"))

"""Cached features of the frozen prefix: equal to computing them anew, made once, named by all they depend on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from trainings import config_of, numbers, same, train

from tlray.cache import Places
from tlray.config import Config
from tlray.errors import ConfigError, DataError
from tlray.training import features
from tlray.training.feature_files import evict, readers, sizes
from tlray.training.features import Frozen, extract, extraction_batch, feature_key, needed_rows, prefix_of, prefixes
from tlray.training.fit import Epoch, fit
from tlray.training.loop import PhaseRunner
from tlray.training.setup import prepare
from tlray.training.world import World


def files(places: Places) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in places.folder("features").rglob("*.npy")}


def uncached(patch: pytest.MonkeyPatch) -> None:
    """From here on a phase computes its frozen prefix for every batch."""
    before = PhaseRunner._open_rows

    def open_rows(self, places):
        self.cached, self.prefix = False, None
        return before(self, places)

    patch.setattr(PhaseRunner, "_open_rows", open_rows)


def course(config: Config, places: Places, watched: list[PhaseRunner]) -> list[tuple[Epoch, np.ndarray]]:
    """Every epoch of a training, with the probabilities of the validation images after it."""
    found = []
    for epoch in fit(config, places):
        probabilities = torch.from_numpy(watched[-1].validation_rows()).softmax(dim=1).numpy()
        found.append((epoch, probabilities))
    return found


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_a_head_trains_alike_on_cached_and_on_computed_features(head, own, monkeypatch, watched, precision):
    config, near = replace(head, precision=precision, epochs=4), {"abs": 1e-2 if precision == "bfloat16" else 1e-4}
    cached = course(config, own, watched)
    assert len(files(own)) == 2
    uncached(monkeypatch)
    computed = course(config, own, watched)
    assert [epoch.metrics["cached"] for epoch, _ in cached + computed] == [True] * 4 + [False] * 4
    for (one, found), (two, expected) in zip(cached, computed, strict=True):
        assert found == pytest.approx(expected, **near)
        for name in ("train_loss", "val_loss"):
            assert one.metrics[name] == pytest.approx(two.metrics[name], **near)
    state, other = cached[-1][0].state(), computed[-1][0].state()
    for name, tensor in state.tensors.items():
        torch.testing.assert_close(tensor, other.tensors[name], atol=near["abs"], rtol=1e-2)


@pytest.mark.parametrize("unfreeze", ["last_1", "last_2", "head_then_full", "gradual"])
def test_the_first_epoch_of_a_phase_is_alike_on_cached_and_on_computed_maps(head, own, monkeypatch, watched, unfreeze):
    """In float32; later ones grow apart, as what trains above the prefix multiplies its last digits."""
    config = replace(head, unfreeze=unfreeze, epochs=4, dropout=0.0, lr=1e-4)
    cached = course(config, own, watched)
    uncached(monkeypatch)
    computed = course(config, own, watched)
    phases = set()
    for (one, found), (two, expected) in zip(cached, computed, strict=True):
        if one.metrics["cached"] and one.phase not in phases:
            assert not two.metrics["cached"]
            assert found == pytest.approx(expected, abs=1e-4)
            for name in ("train_loss", "val_loss"):
                assert one.metrics[name] == pytest.approx(two.metrics[name], abs=1e-4)
            phases.add(one.phase)
    assert len(phases) == (3 if unfreeze == "gradual" else 1)  # of gradual's four the last has nothing frozen


def test_cached_features_are_those_of_the_network_in_eval_mode(head, own):
    prepared = prepare(head, own)
    runner = PhaseRunner(prepared, 0, World(0, 1, torch.device("cpu")), own)
    assert runner.cached
    model = prepared.model.eval()
    for rows, split in ((runner._train_rows.array, prepared.task.train), (runner._val_rows.array, prepared.task.val)):
        with torch.no_grad():
            one_by_one = torch.cat([model.backbone(model.normalise(torch.from_numpy(image[None].copy()))) for image in split.images])
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, one_by_one.numpy(), atol=1e-5)


@pytest.mark.parametrize("augment", ["flip", "shift"])
def test_augmented_images_are_never_cached(head, own, augment):
    epochs, _ = train(replace(head, augment=augment, epochs=1), own)
    assert epochs[0].metrics["cached"] is False
    assert files(own) == {}


def test_trainings_share_one_extraction(head, own):
    train(head, own)
    before = files(own)
    assert len(before) == 2
    changed = replace(head, lr=0.1, seed=3, dropout=0.0, samples=10, batch_size=4, label_smoothing=0.1, class_weights="balanced")
    train(changed, own)
    train(replace(head, unfreeze="head_then_full"), own)
    folds = replace(head, folds=2, fold=1)
    train(folds, own)
    assert files(own) == before


@pytest.mark.parametrize("change", ["weights", "pixels", "size", "precision"])
def test_other_features_are_extracted_for_other(head, own, toy, encoder, change):
    train(replace(head, epochs=1), own)
    values = {"weights": encoder("resnet18", seed=1), "task": toy(seed=1), "size": 20, "precision": "float64"}
    name = "task" if change == "pixels" else change
    train(replace(head, epochs=1, **{name: values[name]}), own)
    assert len(files(own)) == 4


CPU = torch.device("cpu")


def test_the_key_holds_all_that_features_depend_on(head, places):
    frozen = Frozen(prepare(head, places).model, prefix_of("resnet18", 1, 5, 28), "a", 28, "float32", CPU)
    other = prepare(head, places).model
    other.mean += 0.1
    deeper = prepare(replace(head, backbone="resnet50", weights="none", unfreeze="full"), places).model
    keys = [
        feature_key(frozen, "b"),
        feature_key(frozen, "c"),
        feature_key(replace(frozen, encoder="c"), "b"),
        feature_key(replace(frozen, model=deeper), "b"),
        feature_key(replace(frozen, prefix=prefix_of("resnet18", 1, 4, 28)), "b"),
        feature_key(replace(frozen, model=other), "b"),
        feature_key(replace(frozen, size=32), "b"),
        feature_key(replace(frozen, precision="float64"), "b"),
        feature_key(replace(frozen, device=torch.device("cuda")), "b"),
        feature_key(frozen, "b", np.array([1, 2])),
        feature_key(frozen, "b", np.array([1, 3])),
    ]
    assert len(set(keys)) == 11
    assert feature_key(frozen, "b") == keys[0]


def test_train_and_validation_features_stand_apart_also_under_folds(head, places):
    plain, folded = prepare(head, places), prepare(replace(head, folds=2, fold=0), places)
    assert len(set(plain.split_keys)) == 2
    assert folded.split_keys == (plain.split_keys[0], plain.split_keys[0])


def test_a_training_is_the_same_whether_it_extracts_or_finds_the_features(head, own):
    first, state = train(head, own)
    second, again = train(head, own)
    assert same(state.tensors, again.tensors)
    assert numbers(first[-1].history) == numbers(second[-1].history)


def test_batches_of_an_extraction_fit_a_cpus_caches_and_fill_a_gpu():
    assert [extraction_batch(size, CPU) for size in (28, 64, 128, 1024)] == [256, 64, 32, 32]
    assert [extraction_batch(size, torch.device("cuda")) for size in (28, 128, 224, 1024)] == [512, 512, 167, 32]


@pytest.mark.parametrize("stages", [5, 4])
def test_features_do_not_depend_on_the_batches_of_the_extraction(head, places, toy, stages, tmp_path):
    prepared = prepare(replace(head, task=toy(train=40)), places)
    prefix, found = prefix_of("resnet18", 1, stages, 28), []
    for size in (1024, 28):
        extract(Frozen(prepared.model, prefix, "", size, "float32", CPU), prepared.task.train, None, tmp_path / f"{size}.npy")
        found.append(np.load(tmp_path / f"{size}.npy", allow_pickle=False))
    np.testing.assert_allclose(*found, atol=1e-5 * abs(found[0]).max())


@pytest.mark.parametrize("stages", [5, 4])
def test_features_are_the_same_bits_however_many_cores_take_part(head, places, toy, stages, tmp_path, monkeypatch):
    prepared = prepare(replace(head, task=toy(train=200)), places)
    frozen, found, took = Frozen(prepared.model, prefix_of("resnet18", 1, stages, 28), "", 1024, "float32", CPU), [], []
    torch.set_num_threads(2)
    for cores in (1, 4):
        monkeypatch.setattr("tlray.training.features.available_threads", lambda cores=cores: cores)
        monkeypatch.setattr("tlray.training.lanes.FreeCores.count", lambda self: self._cores)
        took.append(extract(frozen, prepared.task.train, None, tmp_path / f"{cores}.npy"))
        found.append(np.load(tmp_path / f"{cores}.npy", allow_pickle=False))
    assert np.array_equal(*found)
    assert took[0] == 1 < took[1]
    assert torch.get_num_threads() == 2


def test_a_small_draw_has_its_own_images_extracted_alone(head, own, toy):
    config = replace(head, task=toy(train=40), samples=6)
    first, _ = train(config, own)
    train(replace(config, seed=1), own)
    train(replace(config, lr=0.1), own)
    train(replace(config, unfreeze="head_then_full"), own)
    lines = [json.loads(line) for line in (own.folder("features") / "extractions.jsonl").read_text().splitlines()]
    assert sorted(line["images"] for line in lines) == [6, 6, 12]  # two draws, and the validation split once
    assert len({line["key"] for line in lines}) == 3
    again, _ = train(replace(config, samples=40), own)
    assert first[-1].metrics["cached"]
    assert again[-1].metrics["cached"]


def test_a_small_draw_trains_alike_with_and_without_the_cache(head, own, toy, monkeypatch):
    config = replace(head, task=toy(train=40), samples=6, folds=2, fold=1, **EXACT)
    cached, _ = train(config, own)
    uncached(monkeypatch)
    computed, _ = train(config, own)
    for one, two in zip(cached, computed, strict=True):
        assert one.metrics["train_loss"] == pytest.approx(two.metrics["train_loss"], abs=1e-6)
        assert one.metrics["val_loss"] == pytest.approx(two.metrics["val_loss"], abs=1e-6)
    assert [epoch.metrics["cached"] for epoch in (cached[0], computed[0])] == [True, False]


@pytest.mark.parametrize(
    ("images", "indices", "needed"),
    [
        (10, [[1, 2, 3, 4, 5]], None),
        (10, [[4, 1, 4]], [1, 4]),
        (10, [[4, 1], [7, 1]], [1, 4, 7]),
        (4, [[0], [3]], None),
        (10, [[]], []),
    ],
)
def test_half_a_split_is_extracted_as_a_whole(images, indices, needed):
    found = needed_rows(images, *(np.array(each, dtype=np.int64) for each in indices))
    assert (found if found is None else found.tolist()) == needed


EXACT = {"precision": "float64", "epochs": 6, "lr": 0.01}


@pytest.mark.parametrize(
    ("backbone", "unfreeze"),
    [("small_cnn", each) for each in ("head", "last_1", "head_then_full", "gradual")]
    + [("resnet18", each) for each in ("head", "last_1", "last_2", "head_then_full", "gradual")],
)
def test_every_schedule_trains_alike_with_and_without_the_cache(toy, encoder, own, monkeypatch, backbone, unfreeze):
    """In float64, in every epoch; cached wherever a phase has a frozen prefix that is worth it."""
    config = config_of(toy(), backbone=backbone, weights=encoder(backbone), unfreeze=unfreeze, **EXACT)
    cached, _ = train(config, own)
    uncached(monkeypatch)
    computed, _ = train(config, own)
    stages = {"small_cnn": 2, "resnet18": 5}[backbone]
    for one, two in zip(cached, computed, strict=True):
        frozen = stages - len(prepare(config, own).plan[one.phase].trainable)
        worth = frozen > 0 and prefix_of(backbone, 1, frozen, 28).affordable(32)
        assert (one.metrics["cached"], two.metrics["cached"]) == (worth, False)
        for name in ("train_loss", "val_loss", "val_auroc"):
            assert one.metrics[name] == pytest.approx(two.metrics[name], abs=1e-6)
    assert any(epoch.metrics["cached"] for epoch in cached)


def test_a_boundary_is_cached_where_it_saves_enough_and_has_room(monkeypatch):
    """The example of the design: ResNet-50 at 224 px for PneumoniaMNIST (5,232 images)."""
    deep, pooled, low = (prefix_of("resnet50", 1, stages, 224) for stages in (3, 5, 1))
    assert deep.shape == (512, 28, 28)
    assert deep.size * 5232 == pytest.approx(8.4e9, rel=0.01)
    assert not deep.affordable(5232)
    assert pooled.shape == (2048,)
    assert pooled.operations == pytest.approx(2 * 4.09e9, rel=0.01)
    assert pooled.affordable(5232)
    assert deep.affordable(500)
    assert low.operations / low.size == pytest.approx(2 * 112**2 * 64 * 147 / (4 * 56**2 * 64), rel=0.01)
    assert not prefix_of("mobilenet_v2", 1, 1, 32).affordable(10), "a stem of few operations and large maps"
    monkeypatch.setenv("TLRAY_FEATURES_GIB", "20")
    assert deep.affordable(5232)
    assert not deep.affordable(5232, "float64"), "which is stored in twice the bytes"
    monkeypatch.setenv("TLRAY_FEATURES_GIB", "0.01")
    assert not pooled.affordable(5232)
    monkeypatch.setenv("TLRAY_FEATURES_GIB", "much")
    with pytest.raises(ConfigError, match="TLRAY_FEATURES_GIB='much' is not a number"):
        pooled.affordable(1)


def test_measuring_a_prefix_draws_nothing():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    prefixes.__wrapped__("small_cnn", 1, 28)
    assert torch.equal(torch.random.get_rng_state(), before)


def stored(folder: Path, name: str, used: float, run: Path | None = None) -> None:
    """Features of 1,000 bytes that were last used at a time."""
    (folder / name).mkdir(parents=True)
    (folder / name / "features.npy").write_bytes(b"0" * 1000)
    if run is not None:
        (folder / name / "pins").mkdir()
        (folder / name / "pins" / "a").write_text(str(run))
    os.utime(folder / name, (used, used))


def test_the_least_recently_used_make_room_but_not_what_an_unfinished_run_reads(tmp_path):
    for name, partial in (("done", False), ("open", True)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"partial": partial}))
    (tmp_path / "young").mkdir()  # has no summary yet
    features = tmp_path / "features"
    stored(features, "first", 1, tmp_path / "open")
    stored(features, "second", 2, tmp_path / "done")
    stored(features, "third", 3, tmp_path / "young")
    stored(features, "fourth", 4, tmp_path / "deleted")
    stored(features, "fifth", 5)
    assert list(sizes(features)) == ["first", "second", "third", "fourth", "fifth"]
    assert evict(features, 5000) == []
    assert evict(features, 3500) == ["second", "fourth"]
    assert evict(features, 0, keep="fifth") == []
    assert sorted(path.name for path in features.iterdir()) == ["fifth", "first", "third"]


def test_features_that_another_process_evicts_while_their_readers_are_asked_for_are_read_by_nobody(tmp_path):
    stored(tmp_path, "key", 1)
    (tmp_path / "key" / "pins").mkdir()
    (tmp_path / "key" / "pins" / "a").symlink_to(tmp_path / "gone")  # as a pin is between two looks at it
    assert readers(tmp_path / "key") == set()


@pytest.mark.parametrize("wrong", [lambda a: a[:-1], lambda a: a[:, :-1], lambda a: a.astype(np.float64)])
def test_features_of_another_shape_or_type_are_named(head, own, wrong):
    config = replace(head, epochs=1)
    train(config, own)
    for file in files(own):
        np.save(file, wrong(np.load(file)))
    with pytest.raises(DataError, match=r"are damaged \(float.* in place of float32 \["):
        train(config, own)
    for file in files(own):
        Path(file).unlink()
        Path(file).mkdir()
    with pytest.raises(DataError, match="are damaged"):
        train(config, own)


def test_features_that_are_cut_to_nothing_are_named_and_missing_ones_made_anew(head, own):
    config = replace(head, epochs=1)
    first, made = numbers(train(config, own)[0][-1].history), files(own)
    for file in made:
        Path(file).unlink()
    assert numbers(train(config, own)[0][-1].history) == first
    assert files(own).keys() == made.keys()
    for file in made:
        Path(file).write_bytes(b"")
    with pytest.raises(DataError, match="are damaged"):
        train(config, own)


def test_extracting_beyond_the_budget_makes_room(head, own, toy, monkeypatch):
    train(replace(head, epochs=1), own)
    first = {path.parent.name for path in own.folder("features").rglob("*.npy")}
    used = sum(sizes(own.folder("features")).values())
    monkeypatch.setenv("TLRAY_FEATURES_GIB", str(2.1 * used / 2**30))
    before, wanted = features.extract, []

    def extracting(frozen, split, rows, out):
        there = sum(sizes(own.folder("features")).values())
        wanted.append(there + frozen.prefix.stored(len(split if rows is None else rows), frozen.precision))
        return before(frozen, split, rows, out)

    monkeypatch.setattr(features, "extract", extracting)
    for seed in (1, 2):
        train(replace(head, epochs=1, task=toy(seed=seed)), own)
    left = sizes(own.folder("features"))
    assert sum(left.values()) <= 2.1 * used
    assert len(left) == 4
    assert not first & left.keys()
    assert max(wanted) <= 2.1 * used, "room is made before an extraction, not after it"


def test_a_run_pins_what_it_reads(head, own, tmp_path):
    (tmp_path / "run").mkdir()
    train(replace(head, epochs=1), replace(own, run=str(tmp_path / "run")))
    assert evict(own.folder("features"), 0) == []
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"partial": False}))
    assert len(evict(own.folder("features"), 0)) == 2

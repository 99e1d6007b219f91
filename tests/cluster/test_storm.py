"""A handful of the kill storm's runs (`make storm` is the whole of it)."""

from pathlib import Path

import pytest
import storm
from toy_data import write_toy

SEEDS = {"driver": 0.5, "trial": 0.4, "raylet": 0.6}
"""Whom to kill, and when, as a share of the uninterrupted run."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, storm.Whole]:
    folder = tmp_path_factory.mktemp("storm")
    npz = write_toy(folder / "toy.npz", train=1024, val=64, test=64, seed=3)
    return npz, storm.uninterrupted(npz, folder, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("victim", SEEDS)
def test_a_search_survives_a_kill(victim: str, whole: tuple[Path, storm.Whole]):
    npz, expected = whole
    search = storm.Search(npz, npz.parent, victim, workers=0)
    note = storm.blow(search, victim, SEEDS[victim] * expected.seconds, expected)
    assert "lost" in note

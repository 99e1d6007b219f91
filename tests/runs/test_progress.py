"""What a search shows: it goes on when nobody looks any more."""

import os

import pytest

from tlray.config import Config
from tlray.results import FINISHED, Trial
from tlray.runs.progress import Display, Screen


@pytest.mark.parametrize("opened", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_a_reader_that_goes_away_ends_nothing(opened):
    trial = Trial(0, Config(task="digits", backbone="small_cnn").to_dict(), FINISHED)
    reader, writer = opened()
    with open(writer, "w") as stream:
        console = Screen(file=stream)
        with Display(console, {"cell": 3}, "auroc", minimise=False) as display:
            display.trial_ended("cell", trial)
            assert b"trial 0 finished" in os.read(reader, 1 << 16) or console.is_terminal
            os.close(reader)
            for _ in range(2):
                display.trial_ended("cell", trial)
        assert display.done == {"cell": 3}
        assert console.quiet

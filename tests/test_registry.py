"""Registries know names from source text and import a module only when a name is looked up."""

import subprocess
import sys

import pytest

from tlray import registry
from tlray.errors import ConfigError
from tlray.registry import Registry, did_you_mean

ALL = [each for each in vars(registry).values() if isinstance(each, Registry)]


@pytest.fixture
def toys() -> Registry:
    """A registry without files of its own; `tlray.errors` registers nothing."""
    made = Registry("toy", "TOYS", "tlray.errors")

    @made.register("ball", "sphere")
    def ball() -> int:
        """A toy."""
        return 1

    @made.register("train")
    def train() -> int:
        """Another."""
        return 2

    return made


def test_names_lead_to_things(toys):
    assert toys.names() == ["ball", "sphere", "train"]
    assert toys["ball"]() == 1
    assert toys["ball"] is toys["sphere"]
    assert "train" in toys
    assert "car" not in toys


def test_an_unknown_name_is_one_sentence_with_a_guess_and_the_choices(toys):
    assert toys.problem("ball") is None
    assert toys.problem("bal") == "unknown toy 'bal' (did you mean 'ball'?): choose from ball, sphere, train"
    assert toys.problem("xylophone") == "unknown toy 'xylophone': choose from ball, sphere, train"
    with pytest.raises(ConfigError, match="unknown toy 'bal'"):
        toys["bal"]


def test_did_you_mean_names_the_nearest():
    assert did_you_mean("resnet81", ["resnet18", "resnet50"]) == " (did you mean 'resnet18'?)"
    assert did_you_mean("zzz", ["resnet18"]) == ""


def test_a_scan_reads_text_and_imports_nothing(tmp_path):
    """A package whose modules fail on import still tells its names; looking one up imports just that module."""
    folder = tmp_path / "tlray_toys"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(
        "from tlray_check import TOYS\n@TOYS.register(\n    'one',\n    \"two\",\n)\ndef thing(): return 'made'\n"
    )
    (folder / "bad.py").write_text("raise RuntimeError('imported')\n@TOYS.register('three')\ndef thing(): ...\n")
    (folder / "other.py").write_text("@NOTTOYS.register('four')\ndef thing(): ...\n")
    (tmp_path / "tlray_check.py").write_text(
        "import pathlib, tlray.registry as registry\n"
        "registry.__file__ = str(pathlib.Path(__file__).parent / 'tlray_toys' / 'registry.py')\n"
        "TOYS = registry.Registry('toy', 'TOYS', 'tlray_toys')\n"
    )
    script = (
        "import sys; from tlray_check import TOYS\n"
        "print(TOYS.names(), 'tlray_toys.good' in sys.modules)\n"
        "print(TOYS['two'](), TOYS['one'] is TOYS['two'])\n"
        "print('tlray_toys.bad' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['three', 'one', 'two'] False", "made True", "False"], done.stderr


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.kind)
def test_every_name_can_be_looked_up(each):
    """The registry's own modules really register what their text says, under the same names."""
    assert each.names()
    for name in each.names():
        assert each[name] is not None


@pytest.mark.parametrize("each", ALL, ids=lambda each: each.kind)
def test_names_are_words(each):
    for name in each.names():
        assert name.replace("_", "").isalnum(), name
        assert name[0].islower(), name

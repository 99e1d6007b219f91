"""Which arithmetic a search trains in where nobody named one."""

from dataclasses import replace

import pytest
import torch

from tlray.cluster.resources import Resources
from tlray.config import Config
from tlray.job import _with_precision
from tlray.runs.planning import LAPTOP, Cell, image_seconds
from tlray.training import setup
from tlray.training.setup import BFLOAT16_TRAINS_FASTER, cpu_multiplies_bfloat16, default_precision

CPUS = Resources(0, 1, 1, 0.0)


@pytest.fixture
def able(monkeypatch):
    """`able(True)`: a CPU that multiplies bfloat16; outside of any cluster."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda yes: monkeypatch.setattr(setup, "cpu_multiplies_bfloat16", lambda: yes)


def cell(backbone: str) -> Cell:
    return Cell("cell", Config(backbone=backbone), None, {}, ())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backbone", "there", "precision"),
    [
        ("resnet50", True, "bfloat16"),
        ("resnet18", True, "bfloat16"),
        ("resnet50", False, "float32"),
        ("mobilenet_v2", True, "float32"),
        ("small_cnn", True, "float32"),
    ],
)
def test_a_cpu_trains_in_bfloat16_where_it_is_faster(able, backbone, there, precision):
    able(there)
    assert default_precision(backbone, 0)[0] == precision
    chosen = _with_precision(cell(backbone), {}, LAPTOP, CPUS)
    assert chosen.base.precision == precision
    assert chosen.why == default_precision(backbone, 0)[1]


@pytest.mark.parametrize(("has", "can", "precision"), [(True, True, "bfloat16"), (True, False, "float32"), (False, False, "float32")])
def test_a_gpu_trains_in_bfloat16_where_it_has_it(monkeypatch, has, can, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: can or including_emulation)
    assert default_precision("mobilenet_v2", 0.25)[0] == precision


def test_what_the_user_named_what_the_run_began_with_and_a_cluster_decide_before_the_machine(able, monkeypatch):
    able(True)
    begun = replace(LAPTOP, precisions={"resnet50": "float32"})
    assert _with_precision(cell("resnet50"), {"precision": "float32"}, begun, CPUS).why == "named"
    assert _with_precision(cell("resnet50"), {}, begun, CPUS).base.precision == "float32"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert _with_precision(cell("resnet50"), {}, LAPTOP, CPUS).base.precision == "float32"


def test_float32_is_no_tf32_whatever_ran_before(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    setup.set_up_process(Config())
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_the_processor_is_asked_and_the_estimate_follows():
    assert isinstance(cpu_multiplies_bfloat16(), bool)
    plain, fast = (image_seconds(Config(backbone="resnet50", precision=each), 1) for each in ("float32", "bfloat16"))
    assert plain is not None
    assert plain == pytest.approx(BFLOAT16_TRAINS_FASTER["resnet50"] * (fast or 0))

"""The arithmetic before a run: what is left open is filled in, what does not fit is refused with its numbers."""

from pathlib import Path

import pytest

from tlray.cluster.resources import Resources, declared_by_file, divide, machine, places_for, total
from tlray.errors import RunError

LAPTOP, SERVER = {"CPU": 2.0, "GPU": 0.0}, {"CPU": 32.0, "GPU": 4.0}
BIG, WEAK = {"CPU": 64.0, "GPU": 0.0}, {"CPU": 2.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("has", "asked", "gets"),
    [
        # asked: workers, concurrent, cpus, gpus; gets: workers, concurrent, cpus, gpus
        (LAPTOP, (0, None, None, None), (0, 2, 1, 0.0)),
        (LAPTOP, (0, 1, None, None), (0, 1, 2, 0.0)),
        (LAPTOP, (0, None, 2, None), (0, 1, 2, 0.0)),
        (LAPTOP, (1, None, None, None), (1, 2, 1, 0.0)),
        (LAPTOP, (1, 1, None, None), (1, 1, 2, 0.0)),
        (LAPTOP, (2, None, None, None), (2, 1, 1, 0.0)),
        (BIG, (0, None, None, None), (0, 8, 8, 0.0)),
        (BIG, (0, None, 16, None), (0, 4, 16, 0.0)),
        (SERVER, (0, None, None, None), (0, 4, 8, 1.0)),
        (SERVER, (2, None, None, None), (2, 2, 8, 1.0)),
        (SERVER, (4, None, None, None), (4, 1, 8, 1.0)),
        (SERVER, (8, None, None, None), (8, 4, 1, 0.0)),
        (SERVER, (0, None, None, 0.25), (0, 16, 2, 0.25)),
        (SERVER, (0, None, 4, 0.1), (0, 8, 4, 0.1)),
        (SERVER, (1, 2, None, 2), (1, 2, 16, 2)),
        (SERVER, (0, None, None, 0.6), (0, 4, 8, 0.6)),  # one on each card, and not 4 / .6
        (SERVER, (0, None, None, 1 / 3), (0, 12, 2, 1 / 3)),
        (SERVER, (0, None, None, 3), (0, 1, 32, 3)),
        (SERVER, (0, None, None, 0), (0, 8, 4, 0)),
        (WEAK, (0, None, None, None), (0, 2, 1, 1.0)),
    ],
)
def test_what_is_left_open_is_filled_in_and_fits(has: dict[str, float], asked: tuple, gets: tuple):
    divided = divide([has], *asked)
    assert divided == Resources(*gets)
    assert divided.concurrent * divided.processes * divided.cpus <= has["CPU"]
    assert divided.concurrent * divided.processes * divided.gpus <= has["GPU"]


@pytest.mark.parametrize(
    ("has", "asked", "numbers"),
    [
        (LAPTOP, (64, None, None, None), ("64 CPUs", "64 workers x 1", "has 2", "--workers-per-trial")),
        (SERVER, (64, None, None, None), ("64 CPUs", "64 workers x 1", "has 32")),
        (LAPTOP, (2, None, 2, None), ("4 CPUs", "2 workers x 2", "has 2", "--cpus-per-trial")),
        (LAPTOP, (0, None, 3, None), ("3 CPUs", "has 2")),
        (LAPTOP, (0, None, None, 1), ("1 GPU", "has 0", "--gpus-per-trial")),
        (SERVER, (4, None, None, 2), ("8 GPUs", "4 workers x 2", "has 4")),
        (SERVER, (2, None, None, 0.5), ("--gpus-per-trial 0.5", "2 workers")),
        (LAPTOP, (0, 3, None, None), ("--concurrent 3", "3 CPUs", "2 and 0", "at most 2")),
        (LAPTOP, (2, 2, None, None), ("--concurrent 2", "4 CPUs", "at most 1")),
        (SERVER, (1, 5, None, None), ("--concurrent 5", "5 GPUs", "at most 4")),
        (LAPTOP, (0, 0, None, None), ("--concurrent 0", "at least 1")),
        (LAPTOP, (0, None, 0, None), ("--cpus-per-trial 0", "at least 1")),
        (LAPTOP, (-1, None, None, None), ("--workers-per-trial -1 is out of range",)),
        (LAPTOP, (0, None, None, -1), ("--gpus-per-trial -1 is out of range",)),
        (LAPTOP, (0, None, None, float("nan")), ("--gpus-per-trial nan is out of range",)),
        (SERVER, (0, None, None, 1.5), ("--gpus-per-trial 1.5", "a whole number of them")),
        (SERVER, (0, None, None, float("inf")), ("--gpus-per-trial inf", "a whole number of them")),
        (SERVER, (0, None, None, 1e-320), ("--gpus-per-trial", "from .0001")),
        (SERVER, (0, 5, None, 0.6), ("--concurrent 5", "3 GPUs", "at most 4, each on one card")),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(has: dict[str, float], asked: tuple, numbers: tuple[str, ...]):
    with pytest.raises(RunError) as caught:
        divide([has], *asked)
    assert [number for number in numbers if number not in str(caught.value)] == []


def test_the_refusal_says_whose_resources_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RunError, match="this machine has 2"):
        divide([LAPTOP], 64, None, None, None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(RunError, match="the cluster has 2"):
        divide([LAPTOP], 64, None, None, None)


def test_a_default_division_of_this_machine_fits_it():
    has = machine()
    assert divide([has], 0, None, None, None).cpus <= has["CPU"]


def test_the_plan_says_how_trials_run():
    one = Resources(0, 2, 1, 0.0, "one for each core")
    assert one.describe() == "2 at a time, each inside the trial's process with 1 CPU thread per process (one for each core)"
    assert Resources(2, 1, 4, 1.0, "x").describe() == (
        "1 at a time, each in a TorchTrainer of 2 workers with 4 CPU threads and 1 GPU per process (x)"
    )
    assert "2 workers, or of as few as one while machines are missing, with" in Resources(2, 1, 4, 0.0, "x", elastic=True).describe()
    shared = Resources(0, 4, 2, 0.25, "x").describe()
    assert (
        shared
        == "4 at a time, each inside the trial's process with 2 CPU threads and 0.25 GPU (its memory limited to that share) per process (x)"
    )


@pytest.mark.parametrize(
    ("has", "workers", "concurrent", "cpus", "gpus", "why"),
    [
        ({"CPU": 2, "GPU": 0}, 0, None, None, None, "one for each core"),
        ({"CPU": 2, "GPU": 0}, 0, None, 2, None, "as many as there are cores for"),
        ({"CPU": 2, "GPU": 0}, 1, None, None, None, "as many as there are cores for"),
        ({"CPU": 2, "GPU": 0}, 0, 1, None, None, "as many as named; the cores are shared out among them"),
        ({"CPU": 2, "GPU": 0}, 0, 1, 1, None, "as many as named"),
        (
            {"CPU": 64, "GPU": 0},
            0,
            None,
            None,
            None,
            "eight, so that the search still learns from ended trials; the cores are shared out among them",
        ),
        ({"CPU": 16, "GPU": 1}, 0, None, None, 0.25, "as many as the GPUs hold; the cores are shared out among them"),
        ({"CPU": 2, "GPU": 4}, 0, None, None, None, "as many as there are cores for"),
        ({"CPU": 16, "GPU": 4}, 2, None, None, None, "as many as the GPUs hold; the cores are shared out among them"),
    ],
)
def test_the_plan_says_why_so_many_trials_run_at_once(has, workers, concurrent, cpus, gpus, why):
    assert divide([has], workers, concurrent, cpus, gpus).describe().endswith(f"({why})")


ONE_GPU, FOUR_GPUS, HEAD = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 48.0, "GPU": 4.0}, {"CPU": 0.0, "GPU": 0.0}


@pytest.mark.parametrize(
    ("nodes", "asked", "gets"),
    [
        # asked: workers, concurrent, cpus, gpus; gets: workers, concurrent, cpus, gpus
        ([HEAD, ONE_GPU, ONE_GPU, FOUR_GPUS], (0, None, None, None), (0, 6, 8, 1.0)),  # and not 64 CPUs / 6: ONE_GPU has 8
        ([HEAD, ONE_GPU, ONE_GPU, FOUR_GPUS], (4, None, None, None), (4, 1, 12, 1.0)),
        ([HEAD, ONE_GPU, ONE_GPU, FOUR_GPUS], (0, None, 12, 1), (0, 4, 12, 1)),
        ([LAPTOP, LAPTOP], (0, 1, None, None), (0, 1, 2, 0.0)),  # and not 4, which no machine has
        ([LAPTOP, LAPTOP], (4, None, None, None), (4, 1, 1, 0.0)),
        ([LAPTOP, {"CPU": 1.0, "GPU": 0.0}], (0, None, 2, None), (0, 1, 2, 0.0)),
    ],
)
def test_no_process_is_split_over_two_machines(nodes: list[dict[str, float]], asked: tuple, gets: tuple):
    divided = divide(nodes, *asked)
    assert divided == Resources(*gets)
    assert places_for(nodes, divided.cpus, divided.gpus) >= divided.concurrent * divided.processes


def test_what_fits_in_all_but_on_no_single_machine_is_refused():
    with pytest.raises(RunError, match=r"1 worker with 3 CPUs and 0 GPUs each on one machine, .* has room for 0: lower --cpus-per-trial"):
        divide([LAPTOP, LAPTOP], 0, None, 3, None)
    with pytest.raises(RunError, match=r"3 workers with 12 CPUs .* room for 2"):
        divide([ONE_GPU, ONE_GPU, {"CPU": 24.0, "GPU": 1.0}], 3, None, 12, 0)


def test_a_cluster_file_declares_what_it_may_grow_to(tmp_path: Path):
    """Our own cluster.yaml: six GPU nodes at most, the head without CPUs. No file declares nothing."""
    root = Path(__file__).resolve().parents[2]
    ours = declared_by_file(root / "cluster.yaml")
    assert ours == [HEAD, FOUR_GPUS, FOUR_GPUS, *[ONE_GPU] * 4]
    assert (total(ours, "CPU"), total(ours, "GPU")) == (128, 12)
    assert declared_by_file(tmp_path / "none.yaml") == []
    mixed = tmp_path / "mixed.yaml"
    mixed.write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 2}}\n  one: {max_workers: 4, resources: {CPU: 8, GPU: 1}}\n"
        "  four: {max_workers: 1, resources: {CPU: 48, GPU: 4}}\n"
    )
    assert declared_by_file(mixed) == [LAPTOP, FOUR_GPUS, ONE_GPU, ONE_GPU]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_shrink_cannot_be_elastic(workers: int):
    with pytest.raises(RunError, match="nothing to shrink"):
        divide([LAPTOP], workers, None, None, None, elastic=True)
    assert divide([LAPTOP], 2, None, None, None, elastic=True).elastic

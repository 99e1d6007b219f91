"""benchmarks/: every file is run and answers, the page is made of what was measured, and says what was not."""

import ast
import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
SHARED_PARTS = {"run", "page", "measure"}

ANSWERS = """
import contextlib, io, json, runpy, sys
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
answers = {}
for name in names:
    sys.argv[:] = [f"{folder}/{name}.py", "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(sys.argv[0], run_name="__main__")
        answers[name] = "does not know --help"
    except SystemExit as end:
        answers[name] = "" if end.code == 0 and "--quick" in said.getvalue() else f"--help: {end.code} {said.getvalue()!r}"
    except Exception as error:
        answers[name] = repr(error)
print(json.dumps(answers))
"""


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/page.py, imported as the scripts import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("page")


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/measure.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("measure")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/run.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("run")


def made_up(folder: Path, name: str, command: str, rows: list[dict[str, Any]] | None = None, **changes: Any) -> None:
    """Write a result as `measure.record` does."""
    row = {"what": "ours over theirs", "values": [0.5, 0.25, 0.75], "at_most": 1.0, "at_least": None, "unit": "", "detail": "1 s | 2 s"}
    rows = [{**row, **each} for each in rows or [{}]]
    found = {
        "name": name, "title": f"Title of {name}", "rows": rows, "notes": ["A note."], "pictures": [],
        "hardware": {"cpu": "a processor", "cpus": 2, "gpus": "none"}, "versions": {"torch": "2.15.0", "ray": "2.60.0"},
        "date": "2026-01-02", "command": command,
    }  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps({**found, **changes}))


def test_every_benchmark_is_listed(run: ModuleType):
    files = {path.stem for path in BENCHMARKS.glob("*.py")} - SHARED_PARTS
    assert files == {step.name for step in run.STEPS}


@pytest.mark.slow
def test_every_benchmark_says_what_it_claims_and_answers_help():
    names, problems = sorted({path.stem for path in BENCHMARKS.glob("*.py")} - SHARED_PARTS), []
    for name in names:
        doc = ast.get_docstring(ast.parse((BENCHMARKS / f"{name}.py").read_text(encoding="utf-8"))) or ""
        problems += [] if f"python benchmarks/{name}.py" in doc else [f"{name}: the docstring does not show its command"]
    command = [sys.executable, "-c", ANSWERS, str(BENCHMARKS), *names]  # all in one process, which imports torch and Ray once
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    problems += [f"{name}: {answer}" for name, answer in json.loads(child.stdout).items() if answer]
    assert not problems, "\n".join(["", *problems])


def test_the_committed_page_is_made_of_the_committed_results(page: ModuleType):
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.RESULTS)


def test_page_of_no_results_says_what_was_not_measured(page: ModuleType, run: ModuleType, tmp_path: Path):
    text = page.page(tmp_path)
    assert "- GPU: not measured; `python benchmarks/gpu.py` is ready to run on a machine with one.\n" in text
    assert text.count("not measured") == len(run.STEPS)
    assert "- `python benchmarks/searches.py mixed --precision bfloat16`: not measured.\n" in text


def test_page_shows_figures_targets_and_details(page: ModuleType, tmp_path: Path):
    (tmp_path / "lines.svg").write_text("<svg/>")
    made_up(tmp_path, "growth", "python benchmarks/growth.py", [{"at_most": None, "unit": " s"}], pictures=["lines.svg"])
    made_up(
        tmp_path, "loader", "python benchmarks/loader.py", [{}, {"what": "slow\nthing", "at_most": 0.4}, {"what": "more", "at_most": None}]
    )
    text = page.page(tmp_path)
    assert text == page.page(tmp_path)
    summary, details = text.split("## Title of loader\n")
    assert "| loader | ours over theirs | 0.5 [0.25, 0.75] | at most 1 | yes |" in summary
    assert "| loader | slow thing | 0.5 [0.25, 0.75] | at most 0.4 | **no** |" in summary
    assert "| growth | ours over theirs | 0.5 [0.25, 0.75] s | none |  |" in summary
    assert "| more |" not in summary  # it has no target, others of its benchmark have
    assert "| more | 0.5 [0.25, 0.75] | none |  | 1 s \\| 2 s |" in details
    assert "`python benchmarks/loader.py`, 2026-01-02" in details
    assert "- A note.\n" in details
    assert details.endswith("![Title of growth](results/lines.svg)\n")
    assert "loader.py`: not measured" not in text
    assert "growth.py`: not measured" not in text


def test_page_says_at_which_commit_a_result_was_measured_where_it_does(page: ModuleType, tmp_path: Path):
    made_up(tmp_path, "loader", "python benchmarks/loader.py", commit="1234abc with changes")
    made_up(tmp_path, "memory", "python benchmarks/memory.py")
    text = page.page(tmp_path)
    assert "`python benchmarks/loader.py`, 2026-01-02, commit 1234abc with changes\n" in text
    assert "`python benchmarks/memory.py`, 2026-01-02\n" in text


def test_a_result_knows_its_commit_and_whether_the_sources_are_others(measure: ModuleType, tmp_path: Path):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert measure.commit(tmp_path) == ""
    source, result = tmp_path / "source.py", tmp_path / "benchmarks" / "results" / "loader.json"
    result.parent.mkdir(parents=True)
    source.write_text("1")
    result.write_text("1")
    git("init", "-q")
    git("add", "--all")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "--short", "HEAD")
    result.write_text("2")
    assert measure.commit(tmp_path) == head
    source.write_text("2")
    assert measure.commit(tmp_path) == f"{head} with changes"


def test_page_says_where_hardware_and_versions_differ(page: ModuleType, tmp_path: Path):
    for name in ("loader", "memory", "gpu"):
        other = {"hardware": {"cpu": "another", "cpus": 16, "gpus": "a card"}, "versions": {"torch": "2.11.0"}} if name == "gpu" else {}
        made_up(tmp_path, name, f"python benchmarks/{name}.py", **other)
    text = page.page(tmp_path)
    assert "| cpu | a processor | gpu: another |" in text
    assert "| ray | 2.60.0 | gpu: not there |" in text
    assert "GPU: not measured" not in text


def test_variants_are_told_apart_by_their_arguments(page: ModuleType, tmp_path: Path):
    made_up(tmp_path, "b", "python benchmarks/searches.py --repeats 5 mixed")
    made_up(tmp_path, "a", "python benchmarks/searches.py mixed --precision bfloat16")
    text = page.page(tmp_path)
    assert text.index("## Title of b") < text.index("## Title of a")
    assert "searches.py head`: not measured" in text
    assert "mixed`: not measured" not in text
    assert "bfloat16`: not measured" not in text


def test_what_never_came_to_its_end_is_no_target_met(page: ModuleType, tmp_path: Path):
    made_up(tmp_path, "loader", "python benchmarks/loader.py", [{"values": [0.2, None, None]}])
    assert "| inf [0.2, inf] | at most 1 | **no** |" in page.page(tmp_path)
    made_up(tmp_path, "loader", "python benchmarks/loader.py", [{"values": [None], "at_most": None, "at_least": 1.0}])
    with pytest.raises(page.PageError, match="no number for 'ours over theirs'"):
        page.page(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pictures": ["gone.svg"]}, r"shows gone\.svg, which is not in"),
        ({"command": "python benchmarks/unheard_of.py"}, "which run.py does not list"),
        ({"hardware": None}, "is not as a benchmark writes it"),
    ],
)
def test_a_result_that_the_page_cannot_show_is_named(page: ModuleType, tmp_path: Path, changes: dict[str, Any], said: str):
    made_up(tmp_path, "loader", **{"command": "python benchmarks/loader.py", **changes})
    with pytest.raises(page.PageError, match=said):
        page.page(tmp_path)


def test_run_tells_done_from_failed_and_from_no_gpu(run: ModuleType, tmp_path: Path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "good.py").write_text("import sys\nassert sys.argv[1:] == ['variant', '--quick'], sys.argv\n")
    (folder / "without.py").write_text(f"raise SystemExit({run.NOT_HERE})\n")
    done = run.run(run.Step("good", 1, ("variant",)), folder, quick=True)
    assert (done.failed, done.words) == (False, "done")
    failed = run.run(run.Step("good", 1), folder, quick=False)
    assert (failed.failed, failed.words) == (True, "FAILED (exit status 1)")
    assert run.run(run.Step("without", 1), folder, quick=False).failed
    assert run.run(run.Step("without", 1, gpu=True), folder, quick=False).words == "not measured: no GPU here"


def test_measurements_of_another_commit_are_not_taken_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    user = importlib.import_module("search_as_a_user")
    known = {"scale": asdict(user.FULL), "commit": user.commit(ROOT), "found": {"started": 1.0, "finished": 3.0, "rows": [], "trials": 1}}
    file = tmp_path / "seed-0-ray.json"
    file.write_text(json.dumps(known))
    assert user.measured("ray", user.FULL, 0, tmp_path).seconds == 2.0
    file.write_text(json.dumps({**known, "commit": "another"}))
    with pytest.raises(SystemExit, match=r"seed-0-ray\.json was measured otherwise .*'another'.* delete it, or name another --work"):
        user.measured("ray", user.FULL, 0, tmp_path)


def test_a_search_as_a_user_names_the_precision_of_both_sides(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    user = importlib.import_module("search_as_a_user")
    ray, ours = (user.Found(0.0, 3.0, [{"trial": 0, "epoch": 1, "val_auroc": 0.75, "time": at, "precision": precision}], 1)
                 for at, precision in ((2.0, "float32"), (1.0, "bfloat16")))  # fmt: skip
    first = user.rows_of({0: (ray, ours)})[0]
    assert first.values == [0.5]
    assert first.detail == "tlray in bfloat16, Ray in float32; seed 0: 0.7500 by Ray after 2 s, by tlray after 1 s"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_benchmark_says_that_there_is_no_gpu(run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert importlib.import_module("gpu").main() == run.NOT_HERE
    assert capsys.readouterr().err == "This machine has no GPU that torch can use, so there is nothing to measure.\n"

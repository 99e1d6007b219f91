"""The report of a made-up run: whole, offline, escaped, and one clear sentence when the run directory is damaged."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tlray.cache import append_line
from tlray.errors import RunError
from tlray.report.cells import audit_lines
from tlray.report.page import duration, read_ledger, write_report

BINARY = (("pneumonia", "mobilenet_v2", "binary", ["normal", "sick"]),)
VOID = {"meta", "br", "link", "img", "hr", "input"}


class Checker(HTMLParser):
    """Collects tags and attributes and checks that every tag is closed."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(finished_run: Path) -> str:
    return write_report(finished_run).read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, finished_run: Path) -> Path:
    """A copy to damage, without its page."""
    return Path(shutil.copytree(finished_run, tmp_path / "demo", ignore=shutil.ignore_patterns("report.html")))


def edit(run: Path, **changes) -> dict:
    summary = json.loads((run / "summary.json").read_text()) | changes
    (run / "summary.json").write_text(json.dumps(summary))
    return summary


def test_the_page_is_one_wellformed_file_that_needs_no_network_and_no_script(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert not checker.tags & {"script", "img", "iframe", "link", "object"}
    assert all(address.startswith("#") for address in checker.addresses)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_names_of_users_are_escaped_everywhere(page):
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page
    assert "out of memory: &lt;b&gt;1 GB&lt;/b&gt;" in page


def test_banner_figures_ledger_and_commands_stand_on_the_page(page, finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    main = page.index("<main>")
    assert page.index('class="banner"') < page.index("<h2>Results</h2>")
    assert "drawn by a seeded generator &amp; shows no patient" in page[main:]
    for cell in summary["cells"]:
        for name in ("auroc", "accuracy"):
            test = cell["test"][name]
            assert f"{test['value']:.3f}" in page
            assert f"{test['low']:.3f} to {test['high']:.3f}" in page
        assert f"tlray predict {finished_run / cell['cell'] / 'model'} IMAGE.png" in page
        assert f"winner of {cell['cell']}" in page
    assert "95 % stratified bootstrap over test images" in page
    assert "95 % t-interval over 3 seeds" in page
    assert "3 images of train stand again, pixel by pixel, in test" in page
    assert "The test split was opened 4 times" in page


def test_every_cell_has_its_pictures_and_every_trial_its_row(page):
    titles = re.findall(r'aria-label="([^"]+)"', page)
    assert len(titles) == len(set(titles)) == 4 * 8
    assert page.count('class="tag failed"') == page.count('class="tag nonfinite"') == 4


def test_ids_that_pictures_refer_to_are_unique(page):
    wanted = set(re.findall(r'(?:url\(#|xlink:href="#)([\w-]+)', page))
    ids = re.findall(r'\bid="([\w-]+)"', page)
    assert wanted
    assert all(ids.count(name) == 1 for name in wanted)


def test_colours_of_pictures_follow_the_page(page):
    assert "var(--blue)" in page
    style, body = page.split("</style>", 1)
    assert all(f"--{name}:" in style for name in set(re.findall(r"var\(--([\w-]+)\)", body)))


def test_the_same_directory_gives_the_same_bytes(tmp_path, make_run):
    run = make_run(tmp_path / "demo", cells=BINARY)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_partial_run_says_so_and_does_without_predictions(tmp_path, make_run):
    run = make_run(tmp_path / "demo", cells=BINARY, partial=True)
    (run / "pneumonia-mobilenet_v2" / "predictions.npz").unlink()
    (run / "test_ledger.jsonl").unlink()
    summary = edit(run, banner=[])
    summary["cells"][0].update(test=None, seeds=None, validation=None, temperature=None, threshold=None, threshold_rule=None)
    edit(run, cells=summary["cells"])
    text = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Partial</h2>" in text
    assert "the run ended before the test split was opened" in text
    assert "The test split was opened 0 times" in text
    assert "Read this first" not in text


def test_a_cell_without_a_winner_says_so(tmp_path, make_run):
    run = make_run(tmp_path / "demo", cells=BINARY)
    table = pd.read_parquet(run / "results.parquet").drop_duplicates("trial")
    table = table[["cell", "task", "backbone", "arm", "trial", "config/lr"]].assign(epoch=0, status="failed", reason="no memory")
    table.to_parquet(run / "results.parquet")
    summary = edit(run)
    summary["cells"][0].update(winner=None, test=None, seeds=None, validation=None, temperature=None, threshold=None, model=None)
    edit(run, cells=summary["cells"])
    text = write_report(run).read_text(encoding="utf-8")
    assert "No trial reached a finite AUROC" in text
    assert "Importance needs at least 4 finished trials, and this search has 0." in text


def test_every_picture_is_left_as_a_file_of_its_own(page, finished_run):
    files = list((finished_run / "pictures").iterdir())
    assert len(files) == 4 * 8
    assert (finished_run / "pictures" / "report-chestmnist-resnet18-roc.svg") in files
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in files)


@pytest.mark.parametrize("name", ["summary.json", "results.parquet", "phantom_pneumonia-mobilenet_v2/predictions.npz"])
@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_missing_and_damaged_files_are_named_in_one_sentence(run, name, damage):
    path = run / name
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"[1, 2]")
    with pytest.raises(RunError, match=re.escape(path.name)) as raised:
        write_report(run)
    assert "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


def test_pickled_predictions_are_refused(run):
    path = run / "phantom_pneumonia-mobilenet_v2" / "predictions.npz"
    arrays = dict.fromkeys(("val_probabilities", "val_labels", "test_probabilities", "test_labels"), np.array([object()]))
    np.savez(path, **arrays)
    with pytest.raises(RunError, match=r"predictions\.npz cannot be read"):
        write_report(run)


def test_a_summary_that_lacks_something_says_what(run):
    summary = edit(run)
    del summary["cells"][1]["winner"]["epoch"]
    edit(run, cells=summary["cells"])
    with pytest.raises(RunError, match=r"it has no usable cells\[1\]\.winner\.epoch"):
        write_report(run)


def test_predictions_of_another_task_are_refused(run):
    path = run / "phantom_pneumonia-mobilenet_v2" / "predictions.npz"
    shutil.copy(run / "bloodmnist-small_cnn" / "predictions.npz", path)
    with pytest.raises(RunError, match="does not fit 2 classes"):
        write_report(run)


def test_a_damaged_line_of_the_ledger_is_one_on_the_page(run):
    before = len(read_ledger(run / "test_ledger.jsonl"))
    with open(run / "test_ledger.jsonl", "ab") as file:
        file.write(b'{"task": "x"}\n\xff\n[' + b"[" * 100_000 + b'\n{"task": "x"')
    append_line(run / "test_ledger.jsonl", json.dumps({"task": "y", "purpose": "after the cut", "time": 0, "images": 3}))
    page = write_report(run).read_text()
    assert f"was opened {before + 5} times" in page
    assert page.count("this line of the ledger is damaged") == 4
    assert "after the cut" in page


def test_a_ledger_that_is_no_file_is_named(run):
    (run / "test_ledger.jsonl").unlink()
    (run / "test_ledger.jsonl").mkdir()
    with pytest.raises(RunError, match=r"test_ledger\.jsonl cannot be read"):
        write_report(run)


def test_groups_in_two_splits_are_a_warning():
    assert ("warn", "2 groups are in both splits of train-test.") in audit_lines({"groups": {"train": 9, "across": {"train-test": 2}}})
    assert ("ok", "No group is in two splits.") in audit_lines({"groups": {"train": 9, "across": {"train-test": 0}}})


def test_durations_read_well():
    assert [duration(each) for each in (4.25, 42, 312.4, 7500, None)] == ["4.2 s", "42 s", "5 min 12 s", "2 h 05 min", "–"]


def test_reporting_loads_neither_ray_nor_pyplot():
    script = "import sys, tlray.report.page; print({'ray', 'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "set()"

"""The report of a made-up comparison: whole, escaped, honest when partial, and one clear sentence when it is damaged."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tlray.errors import RunError
from tlray.report.arms import labels
from tlray.report.page import write_report

VOID = {"meta", "br", "wbr", "img", "hr"}


class Outline(HTMLParser):
    """Checks that every tag is closed and collects tags and addresses."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_comparison) -> Path:
    return make_comparison(tmp_path_factory.mktemp("compared") / "demo")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """The page's text, without places where names may break."""
    return page.replace("<wbr>", "")


def comparison(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())["comparison"]


def edit(run: Path, change) -> Path:
    summary = json.loads((run / "summary.json").read_text())
    change(summary)
    (run / "summary.json").write_text(json.dumps(summary))
    return run


def test_the_page_is_wellformed_offline_and_without_scripts(page):
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert not outline.tags & {"script", "img", "iframe", "link", "object"}
    assert all(address.startswith("#") for address in outline.addresses)
    ids, wanted = re.findall(r'\bid="([\w-]+)"', page), set(re.findall(r'(?:url\(#|xlink:href="#)([\w-]+)', page))
    assert wanted
    assert all(ids.count(name) == 1 for name in wanted)


def test_sections_stand_in_the_order_of_reading(page):
    headings = re.findall(r"<h2>([^<]+)", page)
    assert headings == [
        "What may be concluded", "Chosen on validation", "Claims", "Pictures", "Arms", "Told apart, or not",
        "Test figures and learning curves", "Time and cost", "The data", "The test split was opened 1 time", "Made with",
    ]  # fmt: skip
    assert "<h1>Does &lt;dropout&gt; help?</h1>" in page
    assert "Is more dropout better at 300 images &amp; five seeds?" in page


def test_every_figure_stands_with_both_intervals(page, run):
    about = comparison(run)
    for arm in about["arms"]:
        for name in about["metrics"]:
            test, noise = arm["test"][name], arm["test_noise"][name]
            assert f'{test["mean"]:.3f}</span><span class="interval">{test["low"]:.3f} to {test["high"]:.3f}' in page
            assert f'<span class="interval images">{noise["low"]:.3f} to {noise["high"]:.3f}' in page
    assert "95 % stratified bootstrap over test images, of the mean over 5 trainings; 95 % t-interval over 5 seeds" in page
    assert about["conclusion"].replace("<b>", "&lt;b&gt;") in page
    assert page.count(">chosen</span>") == 1


def test_comparisons_costs_claims_and_the_ledger_stand_on_the_page(page, run):
    about = comparison(run)
    assert page.count('<span class="tag apart">higher</span>') == sum(each["verdict"] == "higher" for each in about["comparisons"]) > 0
    assert all(f"{each['difference']:+.3f}" in page for each in about["comparisons"])
    assert "Holm over the 2 pairs of this metric" in page
    assert "94,410" in page
    assert "1.23" in page
    assert '<span class="tag good">holds</span>' in page
    assert '<span class="tag bad">does not hold</span>' in page
    assert "comparison: all trainings" in page
    assert "3 images of train stand again, pixel by pixel, in test" in page
    assert "Every training (15)" in page


def test_pictures_are_drawn_named_and_left_as_files_of_their_own(page, run):
    titles = re.findall(r'aria-label="([^"]+)"', page)
    assert titles == ["lines", "pneumonia: test AUROC of every arm", "pneumonia: curves of every arm", "pneumonia: class balance"]
    assert "test-image noise: 95 % stratified bootstrap" in page
    files = sorted(path.name for path in (run / "pictures").iterdir())
    assert files == ["lines.svg", "report-pneumonia-balance.svg", "report-pneumonia-curves.svg", "report-pneumonia-forest.svg"]
    alone = (run / "pictures" / "report-pneumonia-forest.svg").read_text()
    assert alone.startswith("<?xml")
    assert "var(--" not in alone


def test_names_of_arms_classes_and_claims_are_escaped(page):
    assert "<b>" not in re.sub(r"<b style|</b>", "", page)
    assert "<script" not in page
    assert "dropout=0.1 &lt;b&gt;" in text_of(page)
    assert "results are sensitive to &lt;dropout&gt;" in page
    assert "Accuracy &lt;line&gt;" in page


def test_the_same_directory_gives_the_same_bytes(run, page):
    assert write_report(run).read_text(encoding="utf-8") == page


def test_before_the_test_split_is_opened_nothing_is_concluded(tmp_path, make_comparison):
    page = write_report(make_comparison(tmp_path / "demo", partial=True)).read_text(encoding="utf-8")
    assert "<h2>Partial</h2>" in page
    assert "Nothing yet: the test split has not been compared." in page
    assert "<h2>Learning curves</h2>" in page
    assert "<h2>Told apart, or not</h2>" not in page
    assert page.count(">chosen</span>") == 1
    assert "The test split was opened 0 times" in page


def test_interrupted_before_every_arm_was_trained(tmp_path, make_comparison):
    run = make_comparison(tmp_path / "demo", partial=True)
    page = write_report(edit(run, lambda summary: summary.pop("comparison"))).read_text(encoding="utf-8")
    assert "<h1>demo</h1>" in page
    assert "No arm is chosen yet" in page
    assert "Every training (15)" in page


def test_several_tasks_each_have_their_pictures_and_choice(tmp_path, make_comparison):
    arms = (("a", "pneumonia"), ("b", "breast"), ("c", "pneumonia"), ("d", "breast"))
    run = make_comparison(tmp_path / "demo", arms=arms, epochs=3)
    page = write_report(run).read_text(encoding="utf-8")
    for task in ("pneumonia", "breast"):
        assert f"<h2>{task}: Test figures and learning curves</h2>" in page
        assert f"<h2>The data: {task}</h2>" in page
        assert f'aria-label="{task}: test AUROC of every arm"' in page
    assert page.count(">chosen</span>") == 2
    order = re.findall(r'<td class="name">([abcd])', page[page.index("<h2>Arms</h2>") : page.index("Every figure")])
    assert order == ["a", "c", "b", "d"]


@pytest.mark.slow
def test_twenty_arms_have_panels_of_their_own(tmp_path, make_comparison):
    arms = tuple((f"unfreeze=last_{k} lr=0.001", "pneumonia") for k in range(20))
    page = write_report(make_comparison(tmp_path / "demo", arms=arms, seeds=2, epochs=3)).read_text(encoding="utf-8")
    titles = re.findall(r'aria-label="([^"]+)"', page)
    assert titles[1:4] == ["pneumonia: test AUROC of every arm", "pneumonia: loss of every arm", "pneumonia: accuracy of every arm"]
    panels = page[page.index('aria-label="pneumonia: loss') : page.index('aria-label="pneumonia: accuracy')]
    assert all(f">unfreeze=last_{k}</text>" in panels for k in range(20))


def test_one_seed_has_no_interval_of_training(tmp_path, make_comparison):
    page = write_report(make_comparison(tmp_path / "demo", seeds=1, epochs=3)).read_text(encoding="utf-8")
    assert "With one seed nothing is known of the noise of training" in page
    assert "training noise: no interval from one training" in page
    assert "no interval from fewer than two pairs" in page
    assert '<span class="interval images">' in page


def test_folds_name_their_correction(tmp_path, make_comparison):
    page = write_report(make_comparison(tmp_path / "demo", seeds=2, folds=3, epochs=3)).read_text(encoding="utf-8")
    assert "2 seeds · 3 folds" in page
    assert "95 % t-interval over 6 trainings (3 folds x 2 seeds), Nadeau-Bengio corrected" in page
    assert "95 % paired t-interval over 6 pairs, Nadeau-Bengio corrected" in page


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda summary: summary.pop("comparison"), "comparison"),
        (lambda summary: summary["comparison"].pop("metrics"), "comparison.metrics"),
        (lambda summary: summary["comparison"].update(conclusion=3), "comparison.conclusion"),
        (lambda summary: summary["comparison"]["tasks"]["pneumonia"].pop("kind"), "comparison.tasks[pneumonia].kind"),
        (lambda summary: summary["comparison"]["arms"][1].update(test=[1]), "comparison.arms[1].test"),
        (lambda summary: summary["comparison"]["arms"][1]["test"]["auroc"].pop("low"), "comparison.arms[1].test.auroc.low"),
        (lambda summary: summary["comparison"]["arms"][0].update(gap={"x": 1}), "comparison.arms[0].gap.mean"),
        (lambda summary: summary["comparison"]["comparisons"][0].pop("verdict"), "comparison.comparisons[0].verdict"),
        (lambda summary: summary["comparison"]["claims"].append("R1"), "comparison.claims[2].id"),
        (lambda summary: summary["pictures"][0].pop("caption"), "pictures[0].caption"),
    ],
)
def test_a_damaged_summary_is_named_in_one_sentence(tmp_path, make_comparison, change, place):
    run = edit(make_comparison(tmp_path / "demo", epochs=2, seeds=2), change)
    with pytest.raises(RunError, match=re.escape(f"it has no usable {place}:")) as raised:
        write_report(run)
    assert "\n" not in str(raised.value)
    assert not (run / "report.html").exists()


def test_two_arms_of_one_name_are_refused(tmp_path, make_comparison):
    run = make_comparison(tmp_path / "demo", epochs=2, seeds=2)
    edit(run, lambda summary: summary["comparison"]["arms"][1].update(arm="dropout=0.0"))
    with pytest.raises(RunError, match=r"two arms are called 'dropout=0\.0'"):
        write_report(run)


@pytest.mark.parametrize("content", [None, "no picture", "<svg><script>alert(1)</script></svg>"])
def test_pictures_that_are_none_are_refused(tmp_path, make_comparison, content):
    run = make_comparison(tmp_path / "demo", epochs=2, seeds=2)
    path = run / "pictures" / "lines.svg"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(RunError, match=r"lines\.svg"):
        write_report(run)


def test_pictures_outside_the_run_are_refused(tmp_path, make_comparison):
    run = make_comparison(tmp_path / "demo", epochs=2, seeds=2)
    (tmp_path / "other.svg").write_text("<svg></svg>")
    edit(run, lambda summary: summary["pictures"][0].update(file="../other.svg"))
    with pytest.raises(RunError, match="no picture of this run"):
        write_report(run)


def test_curves_do_without_what_was_not_measured(tmp_path, make_comparison):
    run = make_comparison(tmp_path / "demo", epochs=3, seeds=2)
    table = pd.read_parquet(run / "results.parquet").drop(columns="train_accuracy")
    table.to_parquet(run / "results.parquet")
    assert 'aria-label="pneumonia: curves of every arm"' in write_report(run).read_text(encoding="utf-8")


def test_labels_drop_what_all_share_and_stay_distinct():
    assert labels(["a=1 b=2", "a=1 b=3"]) == ["b=2", "b=3"]
    assert labels(["only one"]) == ["only one"]
    assert labels(["x y", "x"]) == ["x y", "x"]
    assert labels(["unfreeze=head_then_full lr=0.001", "unfreeze=full lr=0.01"])[0] == "unfreeze=head_then_full\nlr=0.001"
    long = labels([f"{'a' * 40}{k}{'b' * 40}" for k in range(3)])
    assert len(set(long)) == 3
    assert all(len(each) <= 60 for each in long)

"""docs/grafana-tlray.json draws what tlray exports, and all of it."""

import json
import re
from pathlib import Path

from tlray.cluster.monitoring import GAUGES, OF_TRIALS, TAGS

DOCS = Path(__file__).resolve().parents[2] / "docs"
BOARD = json.loads((DOCS / "grafana-tlray.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]


def named(text: str) -> set[str]:
    """Gauges of tlray that a text names; `tests/cluster/test_session.py` sees each of GAUGES on the metrics page of a real run."""
    return set(re.findall(r"\bray_tlray_(\w+)", text))


def test_every_gauge_has_a_panel_and_every_panel_a_gauge():
    assert set().union(*map(named, EXPRESSIONS)) == set(GAUGES)
    assert all(len(named(expression)) == 1 for expression in EXPRESSIONS)
    assert named(json.dumps(BOARD["templating"])) <= set(GAUGES)


def test_panels_keep_apart_what_the_tags_tell_apart():
    for expression in EXPRESSIONS:
        (name,) = named(expression)
        (by,) = re.findall(r"max by \((.*?)\)", expression)
        assert tuple(by.split(", ")) == (TAGS if name in OF_TRIALS else TAGS[:2])
        assert set(re.findall(r"(\w+)=~", expression)) <= set(TAGS)


def test_panels_do_not_overlap():
    taken = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_the_page_says_what_each_gauge_is():
    text = (DOCS / "monitoring.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `ray_tlray_(\w+)` \| a (trial|cell) \| (.*) \|$", text, re.MULTILINE)
    assert {name: what for name, _, what in rows} == GAUGES
    assert {name for name, of, _ in rows if of == "trial"} == set(OF_TRIALS)
    for picture in re.findall(r"\]\((\S+\.png)\)", text):
        assert (DOCS / picture).is_file(), picture

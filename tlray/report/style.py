"""The one look of every picture: inline SVG, colours that the colour-blind can tell apart, light and dark by the page's variables.

matplotlib is used without pyplot, so nothing global is drawn on.
Palette: Okabe & Ito 2008, Color Universal Design.
"""

import io
import re
from typing import Any

import matplotlib
from matplotlib.figure import Figure

Table = Any
"""A pandas DataFrame (or one of its columns): the types that pandas declares lead pyright astray."""
INK, MUTED, GRID, PAPER = "#1b1f24", "#6a737d", "#d9dee3", "#fefefe"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BLUE: "blue", VERMILION: "vermilion", GREEN: "green",
    PURPLE: "purple", ORANGE: "orange", SKY: "sky",
}  # fmt: skip
"""Colour -> the page's CSS variable that takes its place in the SVG."""
STYLE: Any = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "font.family": "sans-serif",
    "text.color": INK, "axes.edgecolor": MUTED, "axes.labelcolor": INK, "axes.titlecolor": INK, "axes.titlesize": 10,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.labelsize": 9, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "axes.linewidth": 0.8,
    "grid.color": GRID, "grid.linewidth": 0.7, "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.frameon": False, "legend.fontsize": 8,
    "figure.facecolor": "none", "savefig.facecolor": "none", "lines.linewidth": 1.6, "lines.solid_capstyle": "round",
}  # fmt: skip
NAMES = {
    "auroc": "AUROC", "average_precision": "average precision", "ece": "calibration error (ECE)", "f1": "F1", "mae": "MAE",
    "medmnist_acc": "ACC (MedMNIST)", "medmnist_auc": "AUC (MedMNIST)", "mse": "MSE", "psnr": "PSNR", "ssim": "SSIM",
}  # fmt: skip
SHORT = 24
"""Letters of a class name that fit beside an axis."""


def nice(name: str) -> str:
    """`balanced_accuracy` -> "balanced accuracy"; a monitor `auroc+f1` -> "AUROC + F1"."""
    return " + ".join(NAMES.get(each, each.replace("_", " ")) for each in name.split("+"))


def short(name: str) -> str:
    """A class name cut to fit beside an axis."""
    return name if len(name) <= SHORT else name[: SHORT - 1] + "…"


class Picture:
    """`with Picture(title) as picture: picture.axes.plot(...)`; afterwards `picture.svg` is the SVG text for the page."""

    def __init__(self, title: str, width: float = 5.2, height: float = 3.4, rows: int = 1, columns: int = 1, **options: Any):
        self.title, self._shape, self._options = title, (width, height, rows, columns), options
        self.svg = ""

    def __enter__(self) -> "Picture":
        width, height, rows, columns = self._shape
        self._style = matplotlib.rc_context({**STYLE, "svg.hashsalt": self.title})
        self._style.__enter__()
        self.figure = Figure(figsize=(width, height), layout="constrained", dpi=72)
        self.axes: Any = self.figure.subplots(rows, columns, **self._options)
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                if engine := self.figure.get_layout_engine():
                    engine.execute(self.figure)
                self.figure.set_layout_engine("none")  # laid out once: savefig would draw everything twice
                buffer = io.StringIO()
                self.figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
                self.svg = _inline(buffer.getvalue(), self.title)
        finally:
            self._style.__exit__(None, None, None)


def legend_below(picture: Picture, columns: int = 2) -> None:
    """A legend under the axes, where it hides no curve."""
    picture.figure.legend(loc="outside lower center", ncols=columns, handlelength=1.8, columnspacing=1.4)


def _inline(svg: str, title: str) -> str:
    """SVG for the middle of an HTML page: no prologue, scales with the column, colours from the page, a name for readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    safe = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])  # type: ignore[index]
    head, rest = svg.split(">", 1)
    svg = f'{head} role="img" aria-label="{safe}" style="max-width:{1.9 * width:.0f}px">{rest}'

    def variable(found: re.Match) -> str:
        return f"{found[1]}var(--{VARIABLES[found[2]]})" if found[2] in VARIABLES else found[0]

    return re.sub(r"((?:fill|stroke|stop-color): )(#[0-9a-f]{6})", variable, svg)


def standalone(svg: str) -> str:
    """A picture's SVG as a file of its own for browsers and image viewers: its colours written out, on white, with a size in points.

    Raises ValueError when `svg` has no viewBox.
    """
    names = {name: colour for colour, name in VARIABLES.items()}
    svg = re.sub(r"var\(--(\w+)\)", lambda found: names.get(found[1], found[0]), svg[svg.index("<svg") :])
    opening = re.match(r'<svg(?:[^>"]|"[^"]*")*', svg)
    head = opening[0] if opening else ""
    box = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', head)
    if box is None:
        raise ValueError("the SVG has no viewBox")
    rest = svg[len(head) + 1 :]
    head = re.sub(r' (?:width|height|style)="[^"]*"', "", head)
    spaces = {"xmlns": "http://www.w3.org/2000/svg", "xmlns:xlink": "http://www.w3.org/1999/xlink"}
    missing = "".join(f' {name}="{address}"' for name, address in spaces.items() if f" {name}=" not in head)
    head = f'{head}{missing} width="{box[1]}pt" height="{box[2]}pt"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>\n<rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'

"""Draw what bench/dashboard_run.py printed: every panel of the dashboard, as a picture.

    make picture

It runs in an environment of its own, since nothing else needs matplotlib.
"""
# ruff: noqa: INP001 - a program

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH, HEADER, MARGIN, DPI = 1800, 118, 20, 100
GRID_COLUMNS, CELL_HEIGHT, GAP = 24, 38, 8
"""As Grafana: a panel's place is in columns, of which there are 24, and rows of a fixed height."""
TITLE, LEGEND_LINE, LEFT, RIGHT, TICKS = 30, 17, 62, 16, 22
"""Of a panel, in pixels: its title, a line of its legend, and what is around its graph."""
LEGEND_POINTS = 8
COLOURS_IN_FILE = 128
INK, FAINT, PAPER, CARD, LINE = "#1f2733", "#6b7684", "#f3f5f8", "#ffffff", "#dfe4ea"
GOOD, BAD = "#2e9e6b", "#d64550"
NAMED = {"ok": GOOD, "hit": GOOD, "hits": GOOD, "failed": BAD, "upstream_failed": BAD}
COLOURS = (
    *("#2f6fde", "#e8833a", "#8a5cd1", "#0f9fb5", "#c79a00", "#d05fa5"),
    *("#6b7c93", "#7a5b3a", "#7aa22f", "#3a4a9f"),
)
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float) -> str:
    """Without more digits than a person reads."""
    for size, prefix in PREFIXES:
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def seconds(value: float) -> str:
    """In milliseconds or seconds."""
    if value == 0:
        return "0"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s"


UNITS: dict[str, Callable[[float], str]] = {
    "s": seconds,
    "percentunit": lambda value: f"{value:.0%}",
    "reqps": lambda value: f"{number(value)}/s",
    "images/s": lambda value: f"{number(value)}/s",
    "Bps": lambda value: f"{number(value)}B/s",
    "short": number,
}


class Picture:
    """A canvas whose places are in pixels from the upper left corner."""

    def __init__(self, height: int, seconds: float, events: list[dict[str, Any]]) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
        self._seconds = seconds
        self._events = events

    def text(self, x: float, y: float, text: str, **style: str | float) -> None:
        """A line of text whose middle is at `y`."""
        style = {"color": INK, "fontsize": 9, "va": "center", **style}
        self.figure.text(x / WIDTH, 1 - y / self.height, text, **style)

    def panel(self, panel: dict[str, Any], box: tuple[float, float, float, float]) -> None:
        """One card: title, graph, legend."""
        x, y, width, height = box
        self._card(*box)
        self.text(x + 12, y + TITLE / 2 + 2, panel["title"], fontsize=10.5, fontweight="bold")
        series = [one for one in panel["series"] if one["points"]]
        columns = legend_columns([one["legend"] for one in series], width - 24)
        lines = -(-len(series) // columns)
        below = TICKS + lines * LEGEND_LINE + 8
        axes = self.figure.add_axes(
            (
                (x + LEFT) / WIDTH,
                1 - (y + height - below) / self.height,
                (width - LEFT - RIGHT) / WIDTH,
                (height - TITLE - below) / self.height,
            )
        )
        self._graph(axes, series, panel["unit"])
        step = (width - 24) / columns
        for index, one in enumerate(series):
            at = (
                x + 12 + index % columns * step,
                y + height - below + TICKS + 8 + index // columns * LEGEND_LINE,
            )
            self.text(*at, "▬", color=colour(index, one), fontsize=8)
            self.text(at[0] + 14, at[1], one["legend"], fontsize=LEGEND_POINTS, color=FAINT)

    def _card(self, x: float, y: float, width: float, height: float) -> None:
        # In pixels, so that the corners are round.
        card = FancyBboxPatch(
            (x, self.height - y - height),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=6",
            facecolor=CARD,
            edgecolor=LINE,
            transform=None,
            zorder=-1,
        )
        self.figure.add_artist(card)

    def _graph(self, axes: Axes, series: list[dict[str, Any]], unit: str) -> None:
        axes.set_facecolor("none")
        for index, one in enumerate(series):
            times, values = zip(*one["points"], strict=True)
            ink = colour(index, one)
            axes.plot(times, values, color=ink, linewidth=1.5, solid_joinstyle="round", zorder=3)
            axes.fill_between(times, values, color=ink, alpha=0.07, linewidth=0, zorder=2)
        for place, event in enumerate(self._events, 1):
            axes.axvline(event["at"], color=FAINT, linewidth=0.7, linestyle=(0, (2, 3)), zorder=1)
            axes.annotate(
                circled(place), (event["at"], 1), xycoords=("data", "axes fraction"),
                xytext=(2, -1), textcoords="offset points", fontsize=9, color=FAINT, va="top",
            )  # fmt: skip
        axes.set_xlim(0, self._seconds)
        _, top = axes.get_ylim()
        highest = max((value for one in series for _, value in one["points"]), default=0)
        axes.set_ylim(0, top if highest else 1)
        axes.xaxis.set_major_locator(MultipleLocator(30))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value)))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: UNITS[unit](value)))
        axes.tick_params(colors=FAINT, labelsize=8, length=0, pad=4)
        axes.grid(visible=True, axis="y", color=LINE, linewidth=0.8)
        for side in axes.spines.values():
            side.set_visible(False)
        if not series:
            axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color=FAINT)


def colour(index: int, series: dict[str, Any]) -> str:
    """By what it is, or by its place."""
    return NAMED.get(series["legend"], COLOURS[index % len(COLOURS)])


def clock(value: float) -> str:
    """Minutes and seconds."""
    return f"{int(value) // 60}:{int(value) % 60:02}"


def circled(place: int) -> str:
    """What an event is called."""
    return chr(ord("①") + place - 1)


def legend_columns(texts: list[str], width: float) -> int:
    """How many texts fit beside each other."""
    paths = (TextPath((0, 0), text, size=LEGEND_POINTS) for text in texts if text)
    widest = max((path.get_extents().width * DPI / 72 for path in paths), default=0) + 26
    return max(1, min(len(texts), int(width // widest)))


def draw(run: dict[str, Any]) -> Picture:
    """The whole dashboard."""
    panels = run["panels"]
    rows = max(one["grid"]["y"] + one["grid"]["h"] for one in panels)
    picture = Picture(HEADER + rows * CELL_HEIGHT + MARGIN, run["seconds"], run["events"])
    picture.text(MARGIN + 4, 34, "Image gateway", fontsize=20, fontweight="bold")
    picture.text(
        MARGIN + 4, 66,
        f"deploy/grafana/gateway.json over {clock(run['seconds'])} minutes of load on 2 gateways "
        "of 2 workers, scraped every second by a real Prometheus; "
        f"rates over {run['rate_interval']}.",
        fontsize=10.5, color=FAINT,
    )  # fmt: skip
    happened = [
        f"{circled(place)} {clock(event['at'])} {event['text']}"
        for place, event in enumerate(run["events"], 1)
    ]
    picture.text(MARGIN + 4, 96, "      ".join(happened), fontsize=10.5)
    cell = (WIDTH - 2 * MARGIN) / GRID_COLUMNS
    for panel in panels:
        grid = panel["grid"]
        x, y = MARGIN + grid["x"] * cell, HEADER + grid["y"] * CELL_HEIGHT
        if panel["row"]:
            place = (x + 4, y + CELL_HEIGHT / 2)
            picture.text(*place, panel["title"], fontsize=13, fontweight="bold")
        else:
            size = (grid["w"] * cell - GAP, grid["h"] * CELL_HEIGHT - GAP)
            picture.panel(panel, (x + GAP / 2, y + GAP / 2, *size))
    return picture


def main() -> None:
    """Read a run, write the file that the command line names."""
    run = json.load(sys.stdin)
    titles = [panel["title"] for panel in run["panels"]]
    mpl.rcParams["font.family"] = "DejaVu Sans"  # comes with matplotlib, so it is always there
    drawn = io.BytesIO()
    draw(run).figure.savefig(drawn)
    facts = PngInfo()
    facts.add_text("Description", json.dumps(titles))  # a test compares them with the dashboard's
    # Of few colours, so that it is small.
    small = Image.open(drawn).convert("RGB").quantize(COLOURS_IN_FILE, dither=Image.Dither.NONE)
    small.save(sys.argv[1], optimize=True, pnginfo=facts)


if __name__ == "__main__":
    main()

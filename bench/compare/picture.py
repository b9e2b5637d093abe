"""Draws the rates of docs/performance.json: python picture.py performance.json performance.png."""
# ruff: noqa: INP001

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS, OTHERS = "#1f6feb", "#9aa4b2"


def main(source: str, target: str) -> None:
    result = json.loads(Path(source).read_text())
    workloads = {name: of for name, of in result["rates"].items() if name != "one connection"}
    figure, plots = plt.subplots(1, len(workloads) + 1, figsize=(3.6 * len(workloads) + 3.6, 3.4))
    for plot, (name, of) in zip(plots, workloads.items(), strict=False):
        bars(plot, {who: one["per_processor_s"] for who, one in of.items()})
        plot.set_title(name)
        plot.set_xlabel("answers per second of one processor")
    latency = result["rates"]["one connection"]
    bars(plots[-1], {w: one["added_p50_ms"] for w, one in latency.items() if w != "direct"})
    plots[-1].set_title("added, one connection")
    plots[-1].set_xlabel("ms, p50")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def bars(plot: plt.Axes, found: dict[str, dict[str, float]]) -> None:
    names = list(found)[::-1]
    middles = [found[name]["median"] for name in names]
    below = [found[name]["median"] - found[name]["least"] for name in names]
    above = [found[name]["most"] - found[name]["median"] for name in names]
    colours = [OURS if name == "gateway" else OTHERS for name in names]
    plot.barh(names, middles, xerr=[below, above], color=colours, capsize=2)
    if max(middles) > 100 * min(middles):
        plot.set_xscale("log")
    for at, middle in enumerate(middles):
        text = f" {middle:,.0f}" if middle >= 10 else f" {middle:.2f}"
        plot.text(middle, at + 0.28, text, fontsize=8)
    plot.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])

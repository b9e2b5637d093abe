"""docs/performance.md, .json and .png, from what was measured."""
# ruff: noqa: INP001, S603

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import msgspec
from processes import ROOT

PAGE = ROOT / "docs" / "performance.md"
RESULT = ROOT / "docs" / "performance.json"
PICTURE = ROOT / "docs" / "performance.png"
DRAW = Path(__file__).parent / "picture.py"
PLACE = re.compile(r"(<!-- measured:(\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def write(measured: dict[str, Any]) -> None:
    """Everything that the full run writes."""
    result = msgspec.to_builtins(measured)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    texts = {"goals": goals(result), "rates": rates(result), "about": about(result)}
    page = PAGE.read_text("utf-8")
    PAGE.write_text(PLACE.sub(lambda at: at[1] + texts[at[2]] + at[3], page), "utf-8")
    python = ROOT / ".venvs" / "picture" / "bin" / "python"
    subprocess.run([python, DRAW, RESULT, PICTURE], check=True)


def spread(one: dict[str, float], digits: int = 2) -> str:
    return f"{one['median']:.{digits}f} ({one['least']:.{digits}f}–{one['most']:.{digits}f})"


def row(what: str, goal: str, is_met: bool, found: str) -> str:  # noqa: FBT001 - a column
    return f"| {what} | {goal} | {found} | {'met' if is_met else 'missed'} |\n"


def goals(result: dict[str, Any]) -> str:
    """Each goal, what was found, and whether it is met."""
    table = "| what | goal | measured | |\n|---|---|---|---|\n"
    for name, other, least in (
        ("miss", "floor", 0.60),
        ("miss", "LiteLLM", 16.0),
        ("hit", "floor", 0.70),
        ("refused", "floor", 0.80),
        ("in-process hit", "echo", 0.60),
    ):
        ratio = result["ratios"].get(f"{name} / {other}")
        if ratio is not None:
            table += row(
                f"{name} / {other}", f"≥ {least:g}", ratio["median"] >= least, spread(ratio)
            )
    added = result["rates"]["one connection"]["gateway"]
    for quantile, most in (("p50", 1.0), ("p99", 3.0)):
        found = added[f"added_{quantile}_ms"]
        table += row(
            f"added latency, {quantile}", f"≤ {most:g} ms", found["median"] <= most, spread(found)
        )
    return table + costs(result["costs"])


def costs(found: dict[str, Any]) -> str:
    """What could not be measured has no row."""
    rows: list[str] = []
    if crowd := found.get("at once"):
        rows += at_once(crowd)
    if "waiting" in found:
        each = found["waiting"]["kib_each"]
        rows.append(bounded("5,000 waiting for a slot, memory each", each, 20, "KiB"))
    if delivery := found.get("delivery"):
        rows += [
            bounded(
                "b64_json, 8 × 4 × 8 MiB / `curl \\| base64`", delivery["times_curl"], 1.2, "×"
            ),
            bounded("… growth of memory", delivery["growth_mib"], 64, "MiB"),
        ]
    if "two workers" in found:
        times = found["two workers"]["times"]
        what = "two workers / one, by processor time"
        rows.append(row(what, "≥ 1.8 ×", times >= 1.8, f"{times:.2f} ×"))
    if start := found.get("start"):
        rows += [
            bounded("start, to the first answer", start["start_s"], 0.7, "s"),
            bounded("… processor time of it", start["start_cpu_s"], 0.7, "s"),
            bounded("memory at rest", start["idle_mib"], 90, "MiB"),
            bounded("environment on the disk", start["environment_mib"], 130, "MiB"),
        ]
    return "".join(rows + growth(found))


def at_once(crowd: dict[str, float]) -> list[str]:
    return [
        row(
            f"{crowd['requests']:,} at once, vendor takes 10 s: answered",
            "all",
            crowd["answered"] == crowd["requests"],
            f"{crowd['answered']:,}",
        ),
        bounded("… p99", crowd["p99_s"], 13, "s"),
        bounded("… memory each", crowd["kib_each"], 40, "KiB"),
    ]


def growth(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, what in (
        ("tenants", "10,000 tenants / 1"),
        ("entries", "10⁶ cached results / 1"),
        ("in flight", "5,000 in flight / 10"),
    ):
        for path in ("hit", "miss") if name in found else ():
            times = found[name][path]
            rows.append(
                row(f"cost of a {path}, {what}", "0.9–1.1 ×", times <= 1.1, f"{times:.2f} ×")
            )
    return rows


def bounded(what: str, found: float, most: float, unit: str) -> str:
    return row(what, f"≤ {most:g} {unit}", found <= most, f"{found:.2f} {unit}")


def rates(result: dict[str, Any]) -> str:
    """Every contender on every workload."""
    table = "| workload | who | answers per second of processor | seen | gateway's ratio |\n"
    table += "|---|---|---|---|---|\n"
    for name, of in result["rates"].items():
        if name == "one connection":
            continue
        for who, one in of.items():
            ratio = result["ratios"].get(f"{name} / {who}")
            table += (
                f"| {name} | {who} | {spread(one['per_processor_s'], 0)} "
                f"| {one['seen_per_s']['median']:.0f} | {spread(ratio) if ratio else ''} |\n"
            )
    table += "\n| one connection | added p50, ms | added p99, ms |\n|---|---|---|\n"
    for who, one in result["rates"]["one connection"].items():
        if who != "direct":
            table += f"| {who} | {spread(one['added_p50_ms'])} | {spread(one['added_p99_ms'])} |\n"
    table += "\n| | start, s | memory after the load, MiB |\n|---|---|---|\n"
    for who, one in result["starts"].items():
        table += f"| {who} | {one['start_s']:.1f} | {one['busy_mib']:.0f} |\n"
    return table


def about(result: dict[str, Any]) -> str:
    where = result["machine"]
    text = f"Measured at {result['at']}, at {where['commit']}, on {where['cores']} cores "
    text += f"({where['cpu'] or 'of no name'}), Python {where['python']}.\n"
    for name, why in result["left_out"].items():
        text += f"\nLeft out: {name} ({why.splitlines()[-1]}).\n"
    return text

"""Writes docs/drills/ from what drills have left in results/: one page with tables, and a plot of each fault.

    python -m drills.report     (in tests/; `make drills-report NOTE="what else the computer did"`)

A drill's runs are told apart by the number at the end of their names; figures are the median of them and the worst.
"""

import json
import os
import re
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.fleet import REPOSITORY

RESULTS, PAGE = REPOSITORY / "results", REPOSITORY / "docs" / "drills"
Runs = dict[str, list[dict[str, Any]]]

HEAD = """\
# Drills

What faults, recoveries and rollouts cost on the local fleet, measured by a client outside of it. Written by
`make drills-report` from the runs in `results/`: do not edit it. How they are made: `tests/drills/`. Figures are the
median of the runs and, behind it, the worst. A failure is what a conforming client sees after one retry. Nothing that
was acknowledged was lost, doubled or changed, or the drill had failed.

What they should cost on two cores that do nothing else: postmaster killed, 3 s; Redis' leader lost, 5 s; the leader's
host lost, 10 s and 30 failed requests; the worst latency of a planned switchover, 5 s; a data host replaced, 120 s; the
whole fleet rebuilt, 10 minutes. Planned work and good releases: no failure at all.

All machines share one computer: what was written before a machine was killed is in its page cache, so a disk that lies
about fsync was not tried.
"""
# A plot shows something where writes were away for so long (s).
SHOWN_S = 3.0
LOADED = (
    ("runs", "write gap, s", "failed", "retried", "p99, ms", "worst, ms"),
    ("write_gap_s", "failures", "retries", "p99_ms", "worst_ms"),
)


def runs(folder: Path) -> Runs:
    """Results by drill, one for each of its runs."""
    found: Runs = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        found[re.sub(r"-\d+$", "", file.stem)].append(json.loads(file.read_text()))
    return found


def figure(values: Sequence[float]) -> str:
    """Median and worst of some runs."""
    middle, worst = statistics.median(values), max(values)
    return f"{middle:g}" if len(values) == 1 else f"{middle:g} ({worst:g})"


def loaded(title: str, folder: str) -> Iterator[str]:
    """A table of drills with the client of drills/rollout."""
    found = runs(RESULTS / folder)
    if not found:
        return
    yield f"\n## {title}\n\n| drill | {' | '.join(LOADED[0])} |\n|{'---|' * (1 + len(LOADED[0]))}\n"
    for name, each in found.items():
        figures = " | ".join(figure([one.get(key, 0) for one in each]) for key in LOADED[1])
        yield f"| {name} | {len(each)} | {figures} |\n"
    commits = sorted({str(one["commit"])[:12] for each in found.values() for one in each})
    rates = sorted(float(one["rate"]) for each in found.values() for one in each)
    yield f"\nCommit {', '.join(commits)}; {rates[0]:g} to {rates[-1]:g} requests per second.\n"


def recovered() -> Iterator[str]:
    """The table of recovery playbooks."""
    found = runs(RESULTS / "recover")
    if not found:
        return
    yield "\n## Recovery playbooks\n\n"
    yield "| drill | acknowledged writes | lost | gap, s | other figures |\n|---|---|---|---|---|\n"
    for name, each in found.items():
        one = each[-1]
        acknowledged, gap = one.get("ok", one.get("acknowledged", "")), one.get("gap_s", "")
        known = {"ok", "acknowledged", "lost", "gap_s", "invoke"}
        others = ", ".join(f"{key} {value}" for key, value in one.items() if key not in known)
        yield f"| {name} | {acknowledged} | {one.get('lost', '')} | {gap} | {others} |\n"


def main() -> None:
    """Write the page."""
    PAGE.mkdir(parents=True, exist_ok=True)
    for old in PAGE.glob("*.svg"):
        old.unlink()
    note = os.environ.get("NOTE", "")
    parts = [HEAD, f"\n{note}\n" if note else ""]
    parts += [*loaded("Faults", "faults"), *loaded("Rollouts and planned work", "rollout"), *recovered()]
    plots = [
        plot
        for plot in sorted((RESULTS / "faults").glob("*-0.svg"))
        if json.loads(plot.with_suffix(".json").read_text())["write_gap_s"] >= SHOWN_S
    ]
    if plots:
        parts.append("\n## Latency around each fault\n")
    for plot in plots:
        name = plot.stem.removesuffix("-0")
        shutil.copy(plot, PAGE / f"{name}.svg")
        parts.append(f"\n![{name}]({name}.svg)\n")
    (PAGE / "README.md").write_text("".join(parts))


if __name__ == "__main__":
    main()

"""Writes docs/drills/ from what drills have left in results/: one page with tables, and a plot of each fault.

What the page shows is kept beside it in runs.json: a drill that was not run again stays as it was.

    python -m drills.report     (in tests/; `make drills-report`)

A drill's runs are told apart by the number at the end of their names; figures are the median of them and the worst.
"""

import json
import re
import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from drills.results import RESULTS
from lib.fleet import REPOSITORY

PAGE = REPOSITORY / "docs" / "drills"
KEPT = PAGE / "runs.json"
KINDS = ("faults", "rollout", "recover")
# The runs of each drill, by its name; figures by theirs.
Runs = dict[str, list[dict[str, Any]]]

HEAD = """\
# Drills

What faults, recoveries and rollouts cost on the local fleet, measured by a client outside of it. Written by
`make drills-report` from the runs in `results/` and, for what was not run again, in `runs.json`: do not edit it. How
they are made: `tests/drills/`. Figures are the median of the runs and, behind it, the worst. A failure is what a
conforming client sees after one retry. Nothing that was acknowledged was lost, doubled or changed, or the drill had
failed. What on-call types for a recovery took `recovered in` from start to proof; nobody could write for `write gap`.

What they should cost on two cores that do nothing else: postmaster killed, 3 s; Redis' leader lost, 5 s; the leader's
host lost, 10 s and 30 failed requests; the worst latency of a planned switchover, 5 s; a data host replaced, 120 s; the
whole fleet rebuilt, 10 minutes. Planned work and good releases: no failure at all.

All machines share one computer: what was written before a machine was killed is in its page cache, so a disk that lies
about fsync was not tried. Each row names the commit that it was measured on: one of an older commit keeps its figures,
and computers differ. What is behind single figures, and which drills passed without any: [notes](notes.md).
"""
# A plot shows something where writes were away for so long (s).
SHOWN_S = 3.0
LOADED = (
    ("runs", "write gap, s", "failed", "retried", "p99, ms", "worst, ms", "requests/s", "commit"),
    ("write_gap_s", "failures", "retries", "p99_ms", "worst_ms", "rate"),
)
RECOVERED = (
    ("runs", "recovered in, s", "write gap, s", "acknowledged", "lost", "other figures", "commit"),
    ("recovered_in_s", "gap_s", "ok", "lost"),
)
NEITHER = ("invoke", "commit")
# Of no use to a reader of the page, and long.
LEFT_OUT = {"drill", "slowest", "by_operation", "by_kind", "retried", "failed"}


def runs(kind: str) -> Runs:
    """The runs in results/, told apart by the number at the end of their names."""
    found: Runs = defaultdict(list)
    for file in sorted((RESULTS / kind).glob("*.json")):
        figures = json.loads(file.read_text())
        # Of the writes that were lost, doubled or changed the page needs the number; their ids are random.
        short = {k: len(v) if isinstance(v, list) else v for k, v in figures.items() if k not in LEFT_OUT}
        found[re.sub(r"-\d+$", "", file.stem)].append(short)
    return found


def commits(each: Sequence[dict[str, Any]]) -> str:
    """What some runs were measured on."""
    return ", ".join(sorted({str(one["commit"])[:7] for one in each}))


def figure(values: Sequence[float]) -> str:
    """Median and worst of some runs; nothing where it was not measured."""
    if not values:
        return ""
    middle, worst = statistics.median(values), max(values)
    return f"{middle:g}" if len(values) == 1 else f"{middle:g} ({worst:g})"


def loaded(title: str, found: Runs) -> Iterator[str]:
    """A table of drills with the client of drills/rollout."""
    if not found:
        return
    yield f"\n## {title}\n\n| drill | {' | '.join(LOADED[0])} |\n|{'---|' * (1 + len(LOADED[0]))}\n"
    for name, each in sorted(found.items()):
        figures = " | ".join(figure([one[key] for one in each if key in one]) for key in LOADED[1])
        yield f"| {name} | {len(each)} | {figures} | {commits(each)} |\n"


def recovered(found: Runs) -> Iterator[str]:
    """The table of recovery playbooks, and what single ones measured beside its figures."""
    if not found:
        return
    yield f"\n## Recovery playbooks\n\n| drill | {' | '.join(RECOVERED[0])} |\n|{'---|' * (1 + len(RECOVERED[0]))}\n"
    for name, each in sorted(found.items()):
        figures = " | ".join(figure([one[key] for one in each if key in one]) for key in RECOVERED[1])
        others = ", ".join(f"{key} {value}" for key, value in each[-1].items() if key not in (*RECOVERED[1], *NEITHER))
        yield f"| {name} | {len(each)} | {figures} | {others} | {commits(each)} |\n"


def plots(faults: Runs) -> Iterator[str]:
    """A picture of each fault that stopped writes for long; one that was not run again keeps its own."""
    drawn = [name for name, each in sorted(faults.items()) if each[0].get("write_gap_s", 0) >= SHOWN_S]
    for name in drawn:
        new = RESULTS / "faults" / f"{name}-0.svg"
        if new.exists():
            shutil.copy(new, PAGE)
            (PAGE / new.name).rename(PAGE / f"{name}.svg")
    for old in PAGE.glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    shown = [name for name in drawn if (PAGE / f"{name}.svg").exists()]
    if shown:
        yield "\n## Latency around each fault\n"
    for name in shown:
        yield f"\n![{name}]({name}.svg)\n"


def main() -> None:
    """Write the page."""
    PAGE.mkdir(parents=True, exist_ok=True)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    faults, rollouts, recoveries = (kept.get(kind, {}) | runs(kind) for kind in KINDS)
    KEPT.write_text(
        json.dumps(dict(zip(KINDS, (faults, rollouts, recoveries), strict=True)), indent=1, sort_keys=True) + "\n"
    )
    tables = [*loaded("Faults", faults), *loaded("Rollouts and planned work", rollouts), *recovered(recoveries)]
    (PAGE / "README.md").write_text("".join([HEAD, *tables, *plots(faults)]))


if __name__ == "__main__":
    main()

"""The record of recoveries: what a run has done, what an interrupted one has left to do; and the plan for people.

A record is a file of JSON lines for one incident: `begun`, `stage`, `done`, ..., `finished`, each with the run that it
belongs to. A run without `finished` or `abandoned` was interrupted. For the controller only.
"""

from __future__ import annotations

import datetime
import json
import os
import typing as t
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ansible.module_utils.common.text.formatters import bytes_to_human

# What every recovery playbook takes besides its own arguments.
RUNNER_ARGUMENTS = ("accept_no_backup", "break_lock", "confirm", "restart", "without_lock")
PLAN_REQUIRED = ("now", "hosts", "outage", "loss")
PLAN_OPTIONAL = ("bytes", "nothing", "impossible", "decided")

type Event = dict[str, t.Any]


class RecoveryError(Exception):
    """What is wrong and what to write instead."""


class Definition(t.NamedTuple):
    """What a playbook says about itself. `arguments` by name, `stages` with what each does, in order."""

    incident: str
    arguments: dict[str, t.Any]
    stages: dict[str, str]
    needs_backup: bool


class Run(t.NamedTuple):
    """One run in the record. Times are ISO texts in UTC, durations seconds."""

    id: str
    who: str
    begun: str
    arguments: dict[str, t.Any]
    plan: dict[str, t.Any]
    outcome: dict[str, t.Any]
    done: dict[str, float]  # stages that are done, with their duration
    stopped_in: str  # the stage that was begun last and is not done; empty: between two
    stopped_since: str  # when it was begun
    ended: bool


def check(definition: Definition, given: Sequence[str], environment: str, confirm: str | None) -> None:
    """Refuse what cannot be meant, before anything is asked. `given` names what -e said. Raises RecoveryError."""
    known = {*definition.arguments, *RUNNER_ARGUMENTS}
    unknown = sorted(set(given) - known)
    if unknown:
        raise RecoveryError(
            f"{definition.incident} does not know {', '.join(unknown)}. It takes {', '.join(sorted(known))}"
        )
    if confirm is not None and confirm != environment:
        raise RecoveryError(
            f"confirm says {confirm}, but this inventory is {environment}. Nothing was changed. "
            f"Take the inventory of {confirm}, or say -e confirm={environment}"
        )


# The record


def events(text: str) -> Iterator[Event]:
    """The events of a record; a line that was cut off while it was written is left out."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def runs(text: str) -> list[Run]:
    """All runs of a record, oldest first."""
    grouped: dict[str, list[Event]] = {}
    for event in events(text):
        grouped.setdefault(event["run"], []).append(event)
    return [run_of(name, found) for name, found in grouped.items() if found[0]["event"] == "begun"]


def run_of(name: str, found: Sequence[Event]) -> Run:
    """One run from its events."""
    first = found[0]
    done = {event["stage"]: event["seconds"] for event in found if event["event"] == "done"}
    outcomes = [event["outcome"] for event in found if "outcome" in event]
    last = [event for event in found if event["event"] in ("stage", "done")][-1:]
    open_stage = last[0] if last and last[0]["event"] == "stage" else {"stage": "", "at": ""}
    return Run(
        id=name,
        who=first["who"],
        begun=first["at"],
        arguments=first["arguments"],
        plan=first["plan"],
        outcome=outcomes[-1] if outcomes else {},
        done=done,
        stopped_in=open_stage["stage"],
        stopped_since=open_stage["at"],
        ended=any(event["event"] in ("finished", "abandoned") for event in found),
    )


def unfinished(text: str) -> Run | None:
    """The run that was interrupted, if the last one was."""
    found = runs(text)
    return found[-1] if found and not found[-1].ended else None


def resumable(text: str, definition: Definition, restart: bool) -> Run | None:
    """The run to go on with, None to begin a new one. Raises RecoveryError when its arguments are others."""
    run = unfinished(text)
    if run is None or restart:
        return None
    if run.arguments != definition.arguments:
        raise RecoveryError(
            f"The run of {run.who} from {run.begun} was interrupted {where(run)}. It was started with "
            f"{shown(run.arguments)}, this one with {shown(definition.arguments)}. Give the same arguments to go on "
            f"with it, or -e restart=true to begin anew (done so far: {', '.join(run.done) or 'no stage'})"
        )
    return run


def where(run: Run) -> str:
    """Where a run was interrupted, in words."""
    if run.stopped_in:
        return f"in stage {run.stopped_in}"
    return f"after stage {list(run.done)[-1]}" if run.done else "before its first stage"


def shown(arguments: Mapping[str, t.Any]) -> str:
    """Arguments as one types them."""
    return " ".join(f"{name}={value}" for name, value in arguments.items() if value != "") or "no arguments"


def append(file: Path, run: str, event: str, now: datetime.datetime, **details: t.Any) -> None:
    """Write one event; it is on disk when this returns."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = json.dumps({"run": run, "at": f"{now:%Y-%m-%dT%H:%M:%S.%f}Z", "event": event, **details}, sort_keys=True)
    with file.open("a+b") as record:
        # The line before may have been cut off.
        record.seek(max(record.seek(0, os.SEEK_END) - 1, 0))
        torn = record.read(1) not in (b"", b"\n")
        record.write(b"\n" * torn + line.encode() + b"\n")
        record.flush()
        os.fsync(record.fileno())


def merge(file: Path, other: str) -> None:
    """Take over the events of a copy that this file lacks: somebody acted from another controller."""
    own = file.read_text() if file.exists() else ""
    known = set(own.splitlines())
    more = [line for line in other.splitlines() if line not in known and moment(line)]
    if not more:
        return
    lines = sorted((line for line in [*known, *more] if moment(line)), key=moment)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text("".join(f"{line}\n" for line in lines))
    temporary.replace(file)


def moment(line: str) -> str:
    """When an event was; empty for one that was cut off."""
    return next((str(event["at"]) for event in events(line)), "")


# The plan


def check_plan(plan: t.Any) -> None:
    """Hold what plan.yml said against what a plan must say. Raises RecoveryError."""
    if not isinstance(plan, Mapping):
        raise RecoveryError("plan.yml must set the fact `plan` (docs/recovery.md)")
    missing = [name for name in PLAN_REQUIRED if name not in plan]
    unknown = sorted(set(plan) - {*PLAN_REQUIRED, *PLAN_OPTIONAL})
    if missing or unknown:
        raise RecoveryError(f"`plan` lacks {missing} and has unknown keys {unknown} (docs/recovery.md)")


def plan_text(definition: Definition, environment: str, plan: Mapping[str, t.Any], run: Run | None, more: Event) -> str:
    """The plan for a person. `more` adds lines that the runner knows: backup, silent, lock, wrong."""
    rows: list[tuple[str, Sequence[str]]] = [
        ("now", [*plan["now"]]),
        ("wrong", [*more.get("wrong", [])]),
        ("hosts", [", ".join(plan["hosts"])]),
        ("bytes", [bytes_to_human(int(plan["bytes"]))] if plan.get("bytes") else []),
        ("outage", [plan["outage"]]),
        ("loss", [plan["loss"]]),
        *((name, [text]) for name, text in more.items() if name != "wrong" and text),
        ("stages", stage_lines(definition, run)),
    ]
    if run:
        rows.insert(0, ("resumes", [f"the run of {run.who} from {run.begun}, interrupted {where(run)}"]))
    lines = [f"{definition.incident} in {environment}, with {shown(definition.arguments)}"]
    for name, texts in rows:
        lines += [f"  {name if number == 0 else '':<8} {text}" for number, text in enumerate(texts)]
    return "\n".join(lines)


def stage_lines(definition: Definition, run: Run | None) -> list[str]:
    """The stages with their number and what has become of them."""
    done = run.done if run else {}
    lines = []
    for number, (name, does) in enumerate(definition.stages.items(), 1):
        state = f" (done, {done[name]:.0f} s)" if name in done else ""
        lines.append(f"{number}. {name}: {does}{state}")
    return lines

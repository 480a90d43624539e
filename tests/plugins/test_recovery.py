"""The record of recoveries: what an interrupted run has left to do is read from it, however it was cut off."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from recovery import (
    Definition,
    RecoveryError,
    append,
    check,
    check_plan,
    merge,
    plan_text,
    resumable,
    runs,
    unfinished,
    where,
)  # fmt: skip

TOY = Definition("toy", {"colour": "red", "size": ""}, {"one": "Write one", "two": "Write two"}, needs_backup=False)
PLAN = {"now": ["data1 leads", "data2 follows"], "hosts": ["data1", "data2"], "outage": "none", "loss": "nothing"}
NOON = datetime.datetime(2026, 11, 3, 12, tzinfo=datetime.UTC)


class Record:
    """A record that grows by a second with each event."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.now = NOON

    def add(self, run: str, event: str, **details: Any) -> None:
        """One more event."""
        self.now += datetime.timedelta(seconds=1)
        append(self.file, run, event, self.now, **details)

    def begin(self, run: str, who: str = "anna@ctl1") -> None:
        """A run begins."""
        self.add(run, "begun", who=who, arguments=TOY.arguments, plan=PLAN)

    @property
    def text(self) -> str:
        """All of it."""
        return self.file.read_text()


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """An empty record."""
    return Record(tmp_path / "recover" / "toy.jsonl")


def test_nothing_was_interrupted_where_nothing_was_done() -> None:
    assert unfinished("") is None


def test_a_run_that_ended_is_not_gone_on_with(record: Record) -> None:
    for event in ("finished", "abandoned"):
        record.begin(event)
        assert unfinished(record.text) is not None
        record.add(event, event)
        assert unfinished(record.text) is None


def test_what_was_done_and_what_came_of_it_is_known(record: Record) -> None:
    record.begin("a")
    assert where(runs(record.text)[0]) == "before its first stage"
    record.add("a", "stage", stage="one")
    assert where(runs(record.text)[0]) == "in stage one"
    record.add("a", "done", stage="one", seconds=2.5, outcome={"to": "data2"})
    assert where(runs(record.text)[0]) == "after stage one"
    record.add("a", "resumed", who="bob@ctl2")
    record.add("a", "stage", stage="two")
    run = unfinished(record.text)
    assert run is not None
    assert (run.who, run.done, run.outcome, run.stopped_in) == ("anna@ctl1", {"one": 2.5}, {"to": "data2"}, "two")
    assert run.plan == PLAN


def test_an_older_run_is_forgotten_when_a_newer_one_ended(record: Record) -> None:
    record.begin("a")
    record.begin("b")
    record.add("b", "finished")
    assert unfinished(record.text) is None


def test_a_line_that_was_cut_off_costs_that_line_only(record: Record) -> None:
    record.begin("a")
    record.add("a", "stage", stage="one")
    record.file.write_text(record.text[:-20])
    assert where(runs(record.text)[0]) == "before its first stage"
    record.add("a", "stage", stage="two")
    assert where(runs(record.text)[0]) == "in stage two"


def test_other_arguments_are_refused_unless_it_begins_anew(record: Record) -> None:
    record.begin("a")
    record.add("a", "stage", stage="one")
    blue = TOY._replace(arguments={"colour": "blue", "size": "5"})
    with pytest.raises(RecoveryError) as refused:
        resumable(record.text, blue, restart=False)
    for text in (
        "anna@ctl1",
        "2026-11-03T12:00:01",
        "in stage one",
        "colour=red,",
        "colour=blue size=5",
        "restart=true",
    ):
        assert text in str(refused.value)
    assert resumable(record.text, blue, restart=True) is None
    run = resumable(record.text, TOY, restart=False)
    assert run is not None and run.id == "a"


def test_copies_are_merged_in_the_order_of_time(record: Record, tmp_path: Path) -> None:
    record.begin("a")
    other = Record(tmp_path / "other" / "toy.jsonl")
    merge(other.file, record.text)
    assert other.text == record.text
    other.now = record.now
    other.add("a", "stage", stage="one")
    record.now = other.now
    record.add("a", "stage", stage="two")
    merge(record.file, other.text + '{"run": "a", "at": "cut o')
    assert [event.partition('"event": "')[2].partition('"')[0] for event in record.text.splitlines()] == [
        "begun", "stage", "stage",
    ]  # fmt: skip
    assert where(runs(record.text)[0]) == "in stage two"
    before = record.file.stat()
    merge(record.file, other.text)
    assert record.file.stat() == before


def test_a_wrong_environment_and_an_unknown_argument_are_refused() -> None:
    check(TOY, ["colour", "confirm", "break_lock"], "local", "local")
    check(TOY, [], "local", None)
    with pytest.raises(RecoveryError, match="confirm says prod, but this inventory is local"):
        check(TOY, ["confirm"], "local", "prod")
    with pytest.raises(RecoveryError, match=r"does not know color, sise. It takes accept_no_backup, .*colour"):
        check(TOY, ["sise", "color"], "local", None)


@pytest.mark.parametrize("plan", [None, "now", {**PLAN, "outgae": ""}, {"now": []}])
def test_a_plan_says_what_it_must_and_nothing_else(plan: Any) -> None:
    check_plan({**PLAN, "bytes": 1, "nothing": "", "impossible": "", "decided": {}})
    with pytest.raises(RecoveryError, match=r"docs/recovery\.md"):
        check_plan(plan)


def test_the_plan_reads_well(record: Record) -> None:
    record.begin("a")
    record.add("a", "stage", stage="one")
    record.add("a", "done", stage="one", seconds=61.2, outcome={})
    more = {"wrong": ["redis: nobody leads"], "silent": "data3", "lock": ""}
    assert plan_text(TOY, "prod", {**PLAN, "bytes": 3 * 2**30}, unfinished(record.text), more) == (
        "toy in prod, with colour=red\n"
        "  resumes  the run of anna@ctl1 from 2026-11-03T12:00:01.000000Z, interrupted after stage one\n"
        "  now      data1 leads\n"
        "           data2 follows\n"
        "  wrong    redis: nobody leads\n"
        "  hosts    data1, data2\n"
        "  bytes    3.00 GB\n"
        "  outage   none\n"
        "  loss     nothing\n"
        "  silent   data3\n"
        "  stages   1. one: Write one (done, 61 s)\n"
        "           2. two: Write two"
    )

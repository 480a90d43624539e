"""What `make trace` asks and prints."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lib.plugins import PROJECT, load_script

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"  # sha256: none, but as random as one (the W3C's example)
BEGIN = 1_795_556_507_000_000


trace = load_script("trace")


def span(
    name: str, identity: str, parent: str | None, at: int = 0, duration: int = 1000, **tags: Any
) -> dict[str, Any]:
    """A span as Jaeger's API prints it; times in microseconds."""
    references = [{"refType": "CHILD_OF", "traceID": TRACE, "spanID": parent}] if parent else []
    return {
        "traceID": TRACE,
        "spanID": identity,
        "operationName": name,
        "references": references,
        "startTime": BEGIN + at,
        "duration": duration,
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
        "processID": "p1",
    }


def whole(*spans: dict[str, Any]) -> dict[str, Any]:
    """A trace of one process."""
    process = {"serviceName": "arches-api", "tags": [{"key": "host.name", "value": "api1"}]}
    return {"traceID": TRACE, "spans": list(spans), "processes": {"p1": process}}


def test_children_stand_below_their_parent_in_order_of_time() -> None:
    found = whole(
        span("COMMIT", "d", "a", 9_000, 1_500),
        span("GET /v1/me", "a", "f00", 0, 12_345, **{"arches.request_id": TRACE}),
        span("BEGIN", "b", "a", 1_000, 500),
        span("SELECT", "c", "b", 1_100, 100, error=True, **{"error.type": "TimeoutError"}),
    )
    assert trace.tree(found) == [
        "GET /v1/me    arches-api@api1  12.3 ms",
        "├─ BEGIN      arches-api@api1   0.5 ms",
        "│  └─ SELECT  arches-api@api1   0.1 ms  ERROR TimeoutError",
        "└─ COMMIT     arches-api@api1   1.5 ms",
    ]


def test_spans_that_are_each_others_parents_are_printed_once() -> None:
    lines = trace.tree(whole(span("a", "1", "2"), span("b", "2", "1")))
    assert sorted(line.split()[-4] for line in lines) == ["a", "b"]


def test_signs_that_steer_a_terminal_are_not_printed() -> None:
    (line,) = trace.tree(whole(span("\x1b[31mred\n", "1", None)))
    assert "\x1b" not in line and "\n" not in line


def test_the_header_leads_to_the_log_lines() -> None:
    found = whole(span("GET", "a", None, **{"arches.request_id": "0123456789abcdef"}))
    what, request, logs = trace.header(found, Path("inventories/local"))
    assert TRACE in what and "1 span" in what and "2026-11-24" in what
    assert request.split() == ["request", "0123456789abcdef"]
    assert f"make logs QUERY='{{host=~\".+\"}} | trace_id=`{TRACE}`' SINCE=" in logs
    assert "ENV" not in logs
    assert trace.header(found, Path("inventories/staging"))[2].endswith("ENV=staging")


@pytest.mark.parametrize("wrong", ["", "abc", TRACE + "0", "g" * 32, "0" * 32, "$(reboot)", TRACE[:-1] + "\n;"])
def test_an_id_that_is_none_is_refused_before_anybody_is_asked(
    wrong: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("somebody was asked"))
    assert trace.main([str(PROJECT / "inventories/local"), f"--id={wrong}"]) == 2
    assert "write 32 hexadecimal digits" in capsys.readouterr().err


def answering(body: Any, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> None:
    """An ssh that prints what curl would."""
    program = tmp_path / "ssh"
    text = json.dumps(body) + f"\nstatus {status}"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\necho no route >&2\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_a_trace_is_asked_for_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering({"data": [whole(span("GET /v1/me", "a", None))]}, 200, tmp_path, monkeypatch)
    assert trace.main([str(PROJECT / "inventories/local"), f"--id={TRACE.upper()}"]) == 0
    assert "GET /v1/me" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "code", "exit_status", "says"),
    [(404, 0, 1, "not sampled"), (404, 0, 1, "older than 24 hours"), (500, 0, 2, "answers 500"), (200, 255, 2, "ops1")],
)
def test_what_went_wrong_is_one_sentence(
    status: int,
    code: int,
    exit_status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answering({"data": None}, status, tmp_path, monkeypatch, code)
    assert trace.main([str(PROJECT / "inventories/local"), f"--id={TRACE}"]) == exit_status
    complaint = capsys.readouterr().err
    assert says in complaint and complaint.count("\n") == 1

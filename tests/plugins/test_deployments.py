"""What was rolled out, and what served before."""

import base64
import json
from typing import Any

from lib.plugins import load_plugin

filters = load_plugin("filter", "deployments")


def record(*entries: dict[str, Any]) -> str:
    """The record's file as Ansible fetches it."""
    return base64.b64encode("".join(json.dumps(entry) + "\n" for entry in entries).encode()).decode()


def rolled(version: str, before: dict[str, str] | None = None, outcome: str = "serves") -> dict[str, Any]:
    """An entry."""
    return {"release": {"version": version}, "outcome": outcome} | ({} if before is None else {"from": before})


def test_what_served_before_the_last_time_counts() -> None:
    entries = filters.deployments(
        record(rolled("v1"), rolled("v2", {"api1": "v0"}), rolled("v3", {"api1": "v2"}), rolled("v2", {"api1": "v3"}))
    )
    assert filters.release_before(entries, "v2") == "v3"
    assert filters.release_before(entries, "v3") == "v2"


def test_what_went_back_never_served() -> None:
    entries = filters.deployments(record(rolled("v1"), rolled("v2", {"api1": "v1"}, "went back")))
    assert [entry["release"]["version"] for entry in entries] == ["v1"]
    assert filters.release_before(entries, "v2") == ""


def test_nothing_is_known_of_the_first_one_nor_of_an_empty_record() -> None:
    assert filters.deployments("") == []
    assert filters.release_before(filters.deployments(record(rolled("v1"))), "v1") == ""
    assert filters.release_before(filters.deployments(record(rolled("v1", {}))), "v1") == ""

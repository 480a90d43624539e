"""What the object store's prune job removes; killed at any point, it brings no deleted key back."""

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from lib.plugins import load_program

job = load_program("s3/files/prune.py")

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
History = list[tuple[str, float]]


class Killed(Exception):
    """The job ends here."""


class Store:
    """A bucket in memory that can end the job at a request.

    :param histories: of each key its versions (a name) and markers ("-"), each with its age in days, the newest last.
    """

    def __init__(self, histories: dict[str, History], requests: int = 1000) -> None:
        self.keys: dict[str, list[dict[str, Any]]] = {
            key: [{"Key": key, "VersionId": f"{n}{what}", "age": age} for n, (what, age) in enumerate(history)]
            for key, history in histories.items()
        }
        self.requests = requests
        self.refused: set[str] = set()

    def get_paginator(self, _: str) -> "Store":
        return self

    def paginate(self, **_: str) -> Iterator[dict[str, Any]]:
        """A page for each version: what belongs together need not come together."""
        for entries in self.keys.values():
            for entry in reversed(entries):
                found = {
                    **entry, "IsLatest": entry is entries[-1], "Size": 10,
                    "LastModified": NOW - datetime.timedelta(days=entry["age"]),
                }  # fmt: skip
                yield {"DeleteMarkers" if entry["VersionId"].endswith("-") else "Versions": [found]}

    def delete_objects(self, **given: Any) -> dict[str, Any]:
        if self.requests == 0:
            raise Killed
        self.requests -= 1
        objects = given["Delete"]["Objects"]
        assert len(objects) <= 1000, "S3 takes no more"
        errors = []
        for entry in objects:
            if entry["Key"] in self.refused:
                errors.append({**entry, "Code": "AccessDenied", "Message": "Access Denied."})
            else:
                kept = [one for one in self.keys[entry["Key"]] if one["VersionId"] != entry["VersionId"]]
                self.keys[entry["Key"]] = kept
        return {"Errors": errors} if errors else {}

    def left(self) -> dict[str, list[str]]:
        """Versions of each key that are still there."""
        return {key: [entry["VersionId"][1:] for entry in entries] for key, entries in self.keys.items()}

    def readable(self) -> set[str]:
        """Keys that a client sees."""
        return {key for key, entries in self.keys.items() if entries and not entries[-1]["VersionId"].endswith("-")}


def prune(store: Store) -> dict[str, int]:
    """Prune what was not current for 14 days."""
    sizes: dict[str, int] = job.prune(store, "backups", 14, 2, NOW)
    return sizes


@pytest.mark.parametrize(
    ("history", "left"),
    [
        ([("a", 1000)], ["a"]),
        ([("a", 1000), ("b", 13)], ["a", "b"]),
        ([("a", 1000), ("b", 15)], ["b"]),
        ([("a", 90), ("b", 40), ("c", 15), ("d", 1)], ["c", "d"]),
        ([("a", 1000), ("-", 13)], ["a", "-"]),
        ([("a", 1000), ("-", 15)], []),
        ([("a", 40), ("-", 30), ("b", 20)], ["b"]),
        ([("a", 40), ("-", 30), ("b", 20), ("-", 1)], ["b", "-"]),
        ([("-", 15)], []),
        ([("-", 13)], ["-"]),
        # The gateway tells of a marker how old the object was, and of the object when it was deleted.
        ([("a", 1), ("-", 1000)], ["a", "-"]),
        ([("a", 15), ("-", 1000)], []),
        ([("a", 40), ("b", 1), ("-", 1000)], ["a", "b", "-"]),
        # The store tells seconds: two changes within one may come in any order, but the current one is known.
        ([("a", 20), ("b", 20)], ["b"]),
    ],
)
def test_what_was_not_current_for_long_goes(history: History, left: list[str]) -> None:
    store = Store({"key": history, "beside": [("x", 1000)]})
    prune(store)
    assert store.left() == {"key": left, "beside": ["x"]}


@pytest.mark.parametrize("requests", [0, 1, 2])
def test_a_killed_job_never_brings_a_deleted_key_back(requests: int) -> None:
    store = Store({"key": [("a", 90), ("b", 80), ("-", 15)]}, requests)
    if requests < 2:
        with pytest.raises(Killed):
            prune(store)
    else:
        prune(store)
    assert store.readable() == set()
    store.requests = 1000
    prune(store)
    assert store.left() == {"key": []}


def test_a_version_that_can_not_be_removed_is_named_and_its_marker_stays() -> None:
    store = Store({"key": [("a", 90), ("-", 15)]})
    store.refused.add("key")
    with pytest.raises(job.PruneError, match=r"bucket backups: 1 versions can not be removed, the first is key \(0a\)"):
        prune(store)
    assert store.left() == {"key": ["a", "-"]}


def test_many_versions_go_in_several_requests() -> None:
    store = Store({f"{n}": [("a", 90), ("b", 15)] for n in range(1500)})
    assert prune(store) == {"current": 15000, "older": 0}
    assert store.requests == 998


def test_the_figures_count_what_stays() -> None:
    store = Store({"a": [("x", 90), ("y", 40), ("z", 3)], "b": [("x", 20), ("-", 15)]})
    assert prune(store) == {"current": 10, "older": 10}

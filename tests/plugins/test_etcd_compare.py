"""Which etcd member is said to have other data than most."""

from collections.abc import Mapping
from typing import Any

import pytest

from lib.plugins import load_program

compare = load_program("etcd/files/compare.py")


class Cluster:
    """Members by URL: since which revision they remember, their newest one, and the hash of what they have."""

    def __init__(self, members: Mapping[str, tuple[int, int, int]], silent: frozenset[str] = frozenset()) -> None:
        self.members = members
        self.silent = silent

    def ask(self, url: str, path: str, body: Mapping[str, Any]) -> Any:
        """As a member answers. A hash is of one revision: another one has another hash."""
        if url in self.silent:
            raise compare.Silent(url)
        since, newest, value = self.members[url]
        if path == "/v3/cluster/member/list":
            # One that has not joined yet has no URL.
            return {"members": [*({"clientURLs": [url]} for url in self.members), {"ID": "1"}]}
        if path == "/v3/maintenance/status":
            return {"header": {"revision": str(newest)}}
        revision = body["revision"]
        if revision > newest:
            raise compare.Silent("a future revision")
        return {"compact_revision": str(since), "hash": value * 1000 + revision}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a": (3, 9, 1), "b": (3, 8, 1), "c": (3, 7, 1)}, [False, False, False]),
        ({"a": (3, 9, 1), "b": (3, 8, 2), "c": (3, 7, 1)}, [False, True, False]),
        ({"a": (3, 9, 1), "b": (3, 8, 2), "c": (3, 7, 3)}, [True, True, True]),
        ({"a": (3, 9, 1), "b": (3, 8, 2)}, [True, True]),
        ({"a": (3, 9, 1), "b": (4, 8, 2), "c": (3, 7, 1)}, [False, None, False]),
        ({"a": (3, 9, 1)}, [None]),
    ],
    ids=["none", "one", "all", "of two nobody knows who", "one that has forgotten more", "alone"],
)
def test_who_differs(members: dict[str, tuple[int, int, int]], expected: list[bool | None]) -> None:
    ask = Cluster(members).ask
    assert [compare.differs(own, compare.hashes(own, ask)) for own in members] == expected


def test_a_silent_member_is_left_out() -> None:
    found = compare.hashes("a", Cluster({"a": (3, 9, 1), "b": (3, 8, 1), "c": (3, 7, 2)}, frozenset("c")).ask)
    assert set(found) == {"a", "b"}
    assert compare.differs("a", found) is False


def test_what_does_not_answer_itself_says_nothing() -> None:
    with pytest.raises(compare.Silent):
        compare.hashes("a", Cluster({"a": (3, 9, 1), "b": (3, 8, 1)}, frozenset("a")).ask)

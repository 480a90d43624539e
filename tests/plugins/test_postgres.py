"""What postgres_cluster compares: passwords, rights and Patroni's configuration; and who takes over from a leader."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pytest

from lib.plugins import load_plugin

roles = load_plugin("module_utils", "postgres_roles")
patroni = load_plugin("module_utils", "patroni")


class Catalog:
    """Answers the questions of postgres_roles by a word in them; what is not set is empty."""

    def __init__(self, **answers: list[tuple[Any, ...]]) -> None:
        self.answers = answers

    def __call__(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Rows for a question."""
        return next((rows for word, rows in self.answers.items() if word in sql), [])


def sql(statements: Any) -> list[str]:
    """What would be run, as it is shown."""
    return [statement.shown for statement in statements]


def test_verifier_is_that_of_rfc_7677() -> None:
    # The example of RFC 7677 section 3: user "user", password "pencil".
    verifier = roles.scram_verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    assert verifier == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
        "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="  # SHA-256 of the example
    )


@pytest.mark.parametrize("stored", [None, "", "md5abc", "SCRAM-SHA-256$4096:AAAA$x:y"])
def test_another_password_or_method_is_seen(stored: str | None) -> None:
    assert not roles.is_password("pencil", stored)


def test_a_role_that_is_right_costs_nothing() -> None:
    catalog = Catalog(
        pg_authid=[("app", True, roles.scram_verifier("secret"), False)],
        pg_auth_members=[("readers",)],
        pg_db_role_setting=[(["statement_timeout=30s"],)],
    )
    wanted = {"app": {"password": "secret", "member_of": ["readers"], "settings": {"statement_timeout": "30s"}}}
    assert sql(roles.role_statements(catalog, wanted)) == []


def test_a_new_role_gets_everything_and_its_password_is_never_shown() -> None:
    wanted = {"app": {"password": "secret", "member_of": ["readers"], "settings": {"statement_timeout": "30s"}}}
    statements = list(roles.role_statements(Catalog(), wanted))
    assert sql(statements) == [
        'CREATE ROLE "app"',
        'ALTER ROLE "app" LOGIN',
        'ALTER ROLE "app" PASSWORD (not shown)',
        'GRANT "readers" TO "app"',
        "ALTER ROLE \"app\" SET statement_timeout = '30s'",
    ]
    assert not [s for s in statements if "secret" in s.sql]


def test_power_and_foreign_settings_are_taken_back() -> None:
    catalog = Catalog(pg_authid=[("owner", True, None, True)], pg_db_role_setting=[(["work_mem=1GB"],)])
    assert sql(roles.role_statements(catalog, {"owner": {}})) == [
        'ALTER ROLE "owner" NOLOGIN',
        'ALTER ROLE "owner" NOSUPERUSER NOCREATEROLE NOCREATEDB NOREPLICATION NOBYPASSRLS',
        'ALTER ROLE "owner" RESET work_mem',
    ]


def test_nobody_else_connects() -> None:
    catalog = Catalog(pg_get_userbyid=[("owner",)], aclexplode=[("PUBLIC",), ("owner",)])
    catalog.answers = {"aclexplode": [("PUBLIC",), ("owner",)], "datdba": [("owner",)]}
    assert sql(roles.database_statements(catalog, "arches", "owner", ["owner", "app"])) == [
        'REVOKE ALL ON DATABASE "arches" FROM PUBLIC',
        'GRANT CONNECT ON DATABASE "arches" TO "app"',
    ]


def test_names_are_quoted() -> None:
    assert roles.name('a"b') == '"a""b"'
    assert roles.literal("it's") == "'it''s'"


def test_only_our_keys_are_compared() -> None:
    live = {"ttl": 30, "pause": True, "postgresql": {"parameters": {"jit": "on", "work_mem": "4MB"}}}
    wanted = {"ttl": 20, "postgresql": {"parameters": {"jit": "off", "work_mem": "4MB", "gone": None}}}
    assert patroni.differences(wanted, live) == {"ttl": 20, "postgresql": {"parameters": {"jit": "off"}}}
    assert patroni.differences({"ttl": None}, live) == {"ttl": None}
    assert patroni.differences({"ttl": 30}, live) == {}


class FakePatroni(patroni.Patroni):
    """A member whose cluster is given; switchovers succeed and are noted."""

    def __init__(self, members: list[dict[str, Any]]) -> None:
        self.members, self.asked = members, []

    def get(self, path: str) -> Any:
        """The cluster as given."""
        return {"members": self.members}

    def change(self, method: str, path: str, body: Any, url: str = "") -> Any:
        """Note who is asked to do what. Without a candidate the last one is the quickest."""
        self.asked.append((url, body["candidate"]))
        heir = body["candidate"] or self.members[-1]["name"]
        for member in self.members:
            role = "leader" if member["name"] == heir else "quorum_standby"
            member.update(role=role, state="running" if role == "leader" else "streaming")
        return patroni.Response(200, "ok", {})

    def in_place(self, synchronous: bool) -> str | None:
        """The former leader follows at once."""
        return "replica"


def node(name: str, role: str, **more: Any) -> dict[str, Any]:
    """An entry of /cluster."""
    return {
        "name": name,
        "role": role,
        "state": "streaming",
        "api_url": f"https://{name}:8008/patroni",
        "lag": 0,
        **more,
    }


def test_a_standby_has_nothing_to_hand_over() -> None:
    member = FakePatroni([node("a", "leader", state="running"), node("b", "quorum_standby")])
    assert member.hand_over("b", 1) is None
    assert member.asked == []


def test_leadership_goes_to_a_restarted_synchronous_standby() -> None:
    member = FakePatroni(
        [
            node("a", "leader", state="running"),
            node("b", "quorum_standby", pending_restart=True),
            node("c", "quorum_standby", lag=5),
            node("d", "replica"),
        ]
    )
    assert member.hand_over("a", 1) == "c"
    assert member.asked == [("https://c:8008", "c")]


def test_whoever_is_first_leads_when_all_are_alike() -> None:
    member = FakePatroni(
        [node("a", "leader", state="running"), node("b", "quorum_standby"), node("c", "quorum_standby", lag=5)]
    )
    assert member.hand_over("a", 1) == "c"
    assert member.asked == [("https://b:8008", None)]


def test_a_candidate_that_is_named_leads() -> None:
    member = FakePatroni(
        [node("a", "leader", state="running"), node("b", "quorum_standby"), node("c", "quorum_standby")]
    )
    assert member.hand_over("a", 1, "b") == "b"
    assert member.asked == [("https://b:8008", "b")]


def test_a_leader_without_a_synchronous_standby_keeps_leading() -> None:
    member = FakePatroni([node("a", "leader", state="running"), node("b", "quorum_standby", state="running")])
    with pytest.raises(patroni.PatroniError, match="no synchronous standby"):
        member.hand_over("a", 1)


def test_others_suffice_only_with_a_leader_and_a_standby_besides() -> None:
    members = [node("a", "leader", state="running"), node("b", "quorum_standby"), node("c", "quorum_standby")]
    assert FakePatroni(members).others_suffice("b")
    assert not FakePatroni(members[:2]).others_suffice("b")
    assert not FakePatroni(members).others_suffice("a")

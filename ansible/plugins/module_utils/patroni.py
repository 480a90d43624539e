"""One Patroni member's REST interface: what is true now, waiting for it, and handing leadership over."""

from __future__ import annotations

import contextlib
import time
import typing as t
from collections.abc import Callable, Mapping, Sequence

from ansible.module_utils.json_https import NoAnswer, Response, ask, tls_context

SYNC_ROLES = ("quorum_standby", "sync_standby")
POLL_S = 0.3
# Patroni answers a request for a switchover when it is done.
CHANGE_S = 45.0

Member = Mapping[str, t.Any]

# How a module is told where a member's REST interface is.
REST: dict[str, t.Any] = {
    "type": "dict",
    "required": True,
    "options": {
        "url": {"type": "str", "required": True},
        "ca": {"type": "path", "required": True},
        "username": {"type": "str", "required": True},
        "password": {"type": "str", "required": True, "no_log": True},
    },
}


class PatroniError(Exception):
    """What is wrong and what to do about it."""


class Patroni:
    """A member as seen through its REST interface.

    `url` is the member's own, such as https://203.0.113.31:8008; `auth` is needed only to change something.
    """

    def __init__(self, url: str, ca: str, auth: tuple[str, str] | None = None) -> None:
        self.url = url
        self.auth = auth
        self.context = tls_context(ca)

    def get(self, path: str) -> t.Any:
        """The decoded answer to GET, whatever its status. Raises NoAnswer."""
        return ask(self.url + path, context=self.context).body

    def change(self, method: str, path: str, body: Mapping[str, t.Any], url: str = "") -> Response:
        """A request that changes something, here or at another member's `url`. Raises NoAnswer."""
        where = (url or self.url) + path
        return ask(where, context=self.context, method=method, body=body, auth=self.auth, timeout=CHANGE_S)

    def wait_for(self, what: str, holds: Callable[[], t.Any], seconds: float) -> t.Any:
        """Poll until `holds` is truthy and return what it returned. Raises PatroniError after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(NoAnswer):
                if value := holds():
                    return value
            if time.monotonic() > deadline:
                raise PatroniError(
                    f"{what}: not within {seconds:.0f} s; the member says: {self._said()}. "
                    f"Look at `journalctl -u patroni` there and at `patronictl list`."
                )
            time.sleep(POLL_S)

    def _said(self) -> str:
        try:
            return describe(self.get("/patroni"))
        except NoAnswer as reason:
            return str(reason)

    def in_place(self, synchronous: bool) -> str | None:
        """`primary` or `replica` once the member does its part, or None. Raises NoAnswer."""
        state = self.get("/patroni")
        if state.get("state") != "running":
            return None
        if state.get("role") == "primary":
            # The role alone may be that of a former leader which does not know it yet: ask for the lock.
            return "primary" if ask(f"{self.url}/primary", context=self.context).status == 200 else None
        counted = not synchronous or any(state.get(role) for role in SYNC_ROLES)
        return "replica" if state.get("replication_state") == "streaming" and counted else None

    def leader_exists(self) -> bool:
        """Whether the cluster has a running leader. Raises NoAnswer."""
        return leads(members(self.get("/cluster"))) is not None

    def hand_over(self, name: str, seconds: float, candidate: str | None = None) -> str | None:
        """Let a synchronous standby lead if this member does: the candidate, or whichever is there first.

        Without a candidate writes are back two seconds sooner: the others give one that was named so much time before
        they follow it (Patroni, ha.py: process_unhealthy_cluster), and a standby must follow before a write is
        acknowledged. So one is named only if it should be one that needs no restart and not all are alike.

        Returns the new leader, None if there was nothing to do. Raises PatroniError when nobody can take over, NoAnswer
        when Patroni is away.
        """
        found = members(self.get("/cluster"))
        if not any(member["name"] == name and member["role"] == "leader" for member in found):
            return None
        able = [m for m in found if m["role"] in SYNC_ROLES and m["state"] == "streaming"]
        able = [m for m in able if candidate in (None, m["name"])]
        if not able:
            who = f"{candidate} is no synchronous standby that" if candidate else "no synchronous standby"
            raise PatroniError(f"{name} leads and {who} can take over ({summary(found)}). Bring a standby back first.")
        chosen = min(able, key=lambda member: (member.get("pending_restart", False), member["lag"]))
        if candidate is None and len({member.get("pending_restart", False) for member in able}) > 1:
            candidate = str(chosen["name"])
        # A standby is asked: restarted before the leader, it knows a new password of the interface already.
        url = chosen["api_url"].removesuffix("/patroni")
        answer = self.change("POST", "/switchover", {"leader": name, "candidate": candidate}, url)
        if answer.status != 200:
            raise PatroniError(
                f"{name} still leads, Patroni refused to switch over to {candidate or 'another one'}: {answer.body}"
            )
        return str(
            self.wait_for(
                f"{candidate or 'another one'} leads instead of {name}", lambda: self._led_by_another(name), seconds
            )
        )

    def _led_by_another(self, name: str) -> str | None:
        """Who leads this replica, when that is somebody else. Raises NoAnswer."""
        if self.in_place(False) != "replica":
            return None
        found = leads(members(self.get("/cluster")))
        return str(found["name"]) if found and found["name"] != name else None

    def leader(self) -> str | None:
        """The name of the leader that says so itself, or None. Raises NoAnswer when this member is away."""
        named = leads(members(self.get("/cluster")))
        if named is None:
            return None
        # The name alone may be that of one who is gone, until its lease runs out.
        try:
            said = ask(named["api_url"].removesuffix("/patroni") + "/primary", context=self.context)
        except NoAnswer:
            return None
        return str(named["name"]) if said.status == 200 else None

    def is_followed(self, name: str) -> bool:
        """Whether this member leads, and a synchronous standby streams from it. Raises NoAnswer."""
        found = members(self.get("/cluster"))
        leader = leads(found)
        return leader is not None and leader["name"] == name and synchronous(found)

    def promote(self, candidate: str, seconds: float) -> str:
        """Make a member lead although nobody does; the one that has most if the candidate does not run.

        Returns its name. Raises PatroniError, or NoAnswer when Patroni is away.
        """
        able = ("running", "streaming", "in archive recovery")
        running = [m for m in members(self.get("/cluster")) if m["state"] in able]
        if not running:
            raise PatroniError(
                "Nobody leads and no member runs, so nobody can be made the leader. See `journalctl -u patroni` on the "
                "data hosts: without a member whose data can be used, ansible/recover/postgres-rewind-cluster.yml "
                "brings the cluster back from the backup."
            )
        chosen = next((m for m in running if m["name"] == candidate), None)
        chosen = chosen or max(running, key=lambda m: (m.get("timeline") or 0, m.get("receive_lsn") or ""))
        name, url = str(chosen["name"]), str(chosen["api_url"]).removesuffix("/patroni")
        answer = self.change("POST", "/failover", {"candidate": name}, url)
        if answer.status not in (200, 202):
            raise PatroniError(f"Patroni refuses to let {name} lead: {answer.body}")
        self.wait_for(f"{name} leads", lambda: self.leader() == name, seconds)
        return name

    def copy_anew(self, seconds: float) -> None:
        """Copy this standby's data directory from the leader; returns when it runs again.

        Raises PatroniError when Patroni refuses or `seconds` are over, NoAnswer when it is away.
        """

        def started() -> str | None:
            state = self.get("/patroni")
            return str(state.get("postmaster_start_time")) if state.get("state") == "running" else None

        before = started()
        answer = self.change("POST", "/reinitialize", {"force": True})
        if answer.status != 200:
            raise PatroniError(f"Patroni refuses to copy this member anew: {answer.body}")
        self.wait_for("it runs with a new copy", lambda: (now := started()) and now != before, seconds)

    def others_suffice(self, name: str) -> bool:
        """Whether writes go on without this member: another one leads and has another synchronous standby."""
        found = [member for member in members(self.get("/cluster")) if member["name"] != name]
        return leads(found) is not None and synchronous(found)


def connect(rest: Mapping[str, str]) -> Patroni:
    """The member that a module's `rest` names."""
    return Patroni(rest["url"], rest["ca"], (rest["username"], rest["password"]))


def members(cluster: Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    """The members in an answer of /cluster."""
    return list(cluster.get("members", []))


def leads(found: Sequence[Member]) -> Member | None:
    """The leader among members, if it runs."""
    return next((member for member in found if member["role"] == "leader" and member["state"] == "running"), None)


def synchronous(found: Sequence[Member]) -> bool:
    """Whether a synchronous standby streams."""
    return any(member["role"] in SYNC_ROLES and member["state"] == "streaming" for member in found)


def describe(state: Mapping[str, t.Any]) -> str:
    """One member's own words in short."""
    words = [str(state[key]) for key in ("role", "state", "replication_state") if key in state]
    return ", ".join(words) or "nothing"


def summary(found: list[dict[str, t.Any]]) -> str:
    """All members in short."""
    return "; ".join(f"{m['name']}: {m['role']}, {m['state']}" for m in found)


def differences(wanted: Mapping[str, t.Any], live: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What of `wanted` is not so in `live`, as the body of a PATCH; None asks for a key to be gone.

    Keys that `wanted` does not name belong to somebody else.
    """
    found: dict[str, t.Any] = {}
    for key, value in wanted.items():
        present = live.get(key)
        if isinstance(value, Mapping):
            inner = differences(value, present if isinstance(present, Mapping) else {})
            if inner:
                found[key] = inner
        elif present != value:
            found[key] = value
    return found

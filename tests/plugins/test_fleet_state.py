"""fleet_state: what it concludes from answers, and that it neither hangs nor guesses where there are none."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lib.plugins import load_plugin

fleet_state = load_plugin("module_utils", "fleet_state")
pki = load_plugin("module_utils", "pki")
etcd_member = load_plugin("modules", "etcd_member")

HOSTS = {"data1": "127.0.0.1", "data2": "127.0.0.2", "data3": "127.0.0.3"}


def member(role: str, leader: str | None, **changes: Any) -> dict[str, Any]:
    """A Patroni member's answer."""
    replication = None if role == "primary" else "streaming"
    state = {"state": "running", "role": role, "replication": replication, "sync": role != "primary", "timeline": 1}
    return {**state, "pending_restart": False, "names_leader": leader, **changes}


def whole_fleet() -> dict[str, Any]:
    """A state without a fault."""
    postgres = {h: member("primary" if h == "data1" else "replica", "data1") for h in HOSTS}
    return {
        "postgres": fleet_state.postgres_state(postgres),
        "etcd": {"leader": "data2", "healthy": list(HOSTS), "differing": []},
        "redis": {"leader": "data3", "replicas": ["data1", "data2"], "sentinels": list(HOSTS)},
        "errors": [],
    }


def test_leader_and_standbys_are_named() -> None:
    state = fleet_state.postgres_state({h: member("primary" if h == "data2" else "replica", "data2") for h in HOSTS})
    assert (state["leader"], state["sync"]) == ("data2", ["data1", "data3"])


def test_a_leader_that_does_not_answer_leads_nothing() -> None:
    state = fleet_state.postgres_state({h: member("replica", "data1") for h in ("data2", "data3")})
    assert state["leader"] is None


def test_a_former_leader_that_is_cut_off_is_outvoted() -> None:
    state = fleet_state.postgres_state(
        {
            "data1": member("primary", "data1"),
            "data2": member("primary", "data2"),
            "data3": member("replica", "data2"),
        }
    )
    assert state["leader"] == "data2"


def test_etcd_believes_healthy_members_only() -> None:
    answers = {
        "data1": {"healthy": False, "id": "1", "names_leader": "1"},
        "data2": {"healthy": True, "id": "2", "names_leader": "3"},
        "data3": {"healthy": True, "id": "3", "names_leader": "3"},
    }
    assert fleet_state.etcd_state(answers) == {"leader": "data3", "healthy": ["data2", "data3"]}


@pytest.mark.parametrize(
    ("hashes", "differing"),
    [
        ({"data1": ("3", 1), "data2": ("3", 1), "data3": ("3", 1)}, []),
        ({"data1": ("3", 1), "data2": ("3", 2), "data3": ("3", 1)}, ["data2"]),
        ({"data1": ("3", 1), "data2": ("4", 2), "data3": ("3", 1)}, []),
        ({"data1": ("3", 1), "data2": ("3", 2)}, ["data1", "data2"]),
        ({}, []),
    ],
    ids=["all", "one", "one that has forgotten more", "of two nobody knows who", "nobody"],
)
def test_etcd_members_with_other_data_are_named(hashes: dict[str, tuple[str, int]], differing: list[str]) -> None:
    assert fleet_state.differing(hashes) == differing


def test_redis_follows_the_newest_decision() -> None:
    servers = {"data1": {"role": "leader", "linked": True}, "data2": {"role": "leader", "linked": True}}
    sentinels = {"data1": {"epoch": 1, "address": "127.0.0.1"}, "data2": {"epoch": 2, "address": "127.0.0.2"}}
    assert fleet_state.redis_state(servers, sentinels, HOSTS)["leader"] == "data2"


def test_a_whole_fleet_has_no_complaints() -> None:
    assert fleet_state.complaints(whole_fleet(), list(HOSTS)) == []


def test_a_single_host_needs_nobody() -> None:
    state = {
        "postgres": fleet_state.postgres_state({"dev1": member("primary", "dev1")}),
        "etcd": {"leader": "dev1", "healthy": ["dev1"], "differing": []},
        "redis": {"leader": "dev1", "replicas": [], "sentinels": ["dev1"]},
        "errors": [],
    }
    assert fleet_state.complaints(state, ["dev1"]) == []


@pytest.mark.parametrize(
    ("breakage", "complaint"),
    [
        (lambda s: s["postgres"].update(leader=None), "postgres: nobody leads"),
        (lambda s: s["postgres"]["members"]["data2"].update(sync=False), "data2: postgres: .*not synchronous"),
        (lambda s: s["postgres"]["members"]["data3"].update(replication=None), "data3: postgres: replica, running"),
        (lambda s: s["postgres"]["members"]["data1"].update(state="stopped"), "data1: postgres: primary, stopped"),
        (lambda s: s["etcd"]["healthy"].remove("data3"), "data3: etcd: not part of the majority"),
        (lambda s: s["etcd"]["differing"].append("data3"), "data3: etcd: it has other data than the others"),
        (lambda s: s["redis"].update(leader=None), "redis: nobody leads"),
        (lambda s: s["redis"]["replicas"].remove("data1"), "data1: redis: follows nobody"),
        (lambda s: s["errors"].append("data1: redis: timed out"), "data1: redis: timed out"),
    ],
)
def test_each_fault_is_named(breakage: Callable[[dict[str, Any]], None], complaint: str) -> None:
    state = whole_fleet()
    breakage(state)
    assert [c for c in fleet_state.complaints(state, list(HOSTS)) if re.search(complaint, c)]


# Against real sockets


class Handler(BaseHTTPRequestHandler):
    """Patroni and etcd in one, as data1's."""

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def answer(self, body: dict[str, Any]) -> None:
        """Send JSON."""
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Patroni's answers, and etcd's health."""
        members = [{"name": "data1", "role": "leader"}]
        self.answer({"/cluster": {"members": members}}.get(self.path, {"state": "running", "role": "primary"}))

    def do_POST(self) -> None:
        """etcd's status and hash."""
        hashed = {"hash": 42, "compact_revision": "3"} if self.path.endswith("/hash") else {"leader": "7"}
        self.answer({"header": {"member_id": "7", "revision": "5"}, **hashed})


@pytest.fixture
def authority() -> Any:
    """A CA, and its certificate as text."""
    key = pki.new_key()
    certificate = pki.new_authority(key, "test", 1, datetime.datetime.now(datetime.UTC))
    return pki.Authority(key, certificate), certificate


@pytest.fixture
def fleet(tmp_path: Path, authority: Any) -> Iterator[Any]:
    """data1 answers (but has no Redis), data2 takes connections and says nothing, data3 refuses them."""
    signer, certificate = authority
    (tmp_path / "ca.crt").write_text(certificate)
    now = datetime.datetime.now(datetime.UTC)
    key, own = pki.client_certificate("127.0.0.1", signer, now)
    (tmp_path / "own.pem").write_text(key + own)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "own.pem")
    server_side.load_verify_locations(tmp_path / "ca.crt")
    server_side.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = server_side.wrap_socket(server.socket, server_side=True)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client_side = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client_side.load_cert_chain(tmp_path / "own.pem")
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))
    nobody = closed.getsockname()[1]
    with socket.create_server(("127.0.0.2", port)):
        yield fleet_state.Fleet(
            hosts=HOSTS,
            ports={"etcd": port, "patroni": port, "redis": nobody, "sentinel": nobody},
            context=client_side, ca_file=str(tmp_path / "ca.crt"), redis_user="admin", redis_password="secret",
            redis_monitor="arches",
        )  # fmt: skip
    closed.close()
    server.shutdown()
    server.server_close()


def test_answers_silence_and_refusal_are_told_apart_in_time(fleet: Any) -> None:
    began = time.monotonic()
    state = fleet_state.look(fleet)
    assert time.monotonic() - began < 3
    assert state["postgres"]["leader"] == "data1"
    assert state["etcd"] == {"leader": "data1", "healthy": ["data1"], "differing": []}
    assert state["redis"]["leader"] is None
    errors = {tuple(error.split(": ", 2)[:2]): error for error in state["errors"]}
    assert len(errors) == 3 * 4 - 2  # all but data1's Patroni and etcd
    assert "timed out" in errors["data2", "postgres"]
    assert "nothing listens" in errors["data3", "etcd"]

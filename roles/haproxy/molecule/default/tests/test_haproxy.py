"""The leader port follows whoever says that it leads, and trusts only the right certificate."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from lib.scenario import machine, play
from lib.waiting import wait_for

testinfra_hosts = ["ansible://lb"]
SCENARIO = Path(__file__).parents[1]
SESSION = (SCENARIO / "files/session.py").read_text()
# Three failed checks at 300 ms each and their answers; the rest is for a busy computer.
SOON_S = 15.0


def leads(host: Host) -> str:
    """Whom a new connection reaches; empty when it reaches nobody."""
    ask = "import socket; print(socket.create_connection(('127.0.0.1', 5000), 5).recv(100).decode().strip())"
    return str(host.run("python3 -c %s", ask).stdout).strip()


def told(host: Host, server: str, column: str) -> str:
    """HAProxy's own view of a member: `status` is UP, DOWN and so on, `scur` the number of its sessions."""
    ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock'); "
    ask += "s.sendall(b'show stat\\n'); print(s.makefile().read())"
    lines = host.check_output("python3 -c %s", ask).splitlines()
    row = next(line for line in lines if line.startswith(f"leader,{server},"))
    return row.split(",")[lines[0].split(",").index(column)]


def open_session(host: Host, name: str) -> str:
    """Open a session that lives on; the file with its notes."""
    notes = f"/run/session-{name}"
    host.check_output("systemd-run --quiet --unit=%s python3 -c %s %s", f"session-{name}", SESSION, notes)
    wait_for("the session is open", lambda: host.file(notes).exists and host.file(notes).content_string, SOON_S)
    return notes


@pytest.fixture(autouse=True)
def member1_leads(host: Host) -> Iterator[None]:
    """Every test begins and ends with member1 as the leader."""
    yield
    machine("member2").check_output("rm -f /run/leader")
    machine("member1").check_output("touch /run/leader")
    wait_for("member1 leads", lambda: leads(host) == "member1", SOON_S)


def test_leads_to_the_leader(host: Host) -> None:
    wait_for("HAProxy knows all members", lambda: told(host, "member2", "status") == "DOWN", SOON_S)
    assert [leads(host) for _ in range(5)] == ["member1"] * 5


def test_listens_on_loopback_only(host: Host) -> None:
    assert host.socket("tcp://127.0.0.1:5000").is_listening
    assert not host.socket("tcp://0.0.0.0:5000").is_listening


def metrics(host: Host) -> list[str]:
    """Lines of HAProxy's metrics."""
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8405/metrics').read().decode())"
    return str(host.check_output("python3 -c %s", ask)).splitlines()


def test_metrics_say_who_is_up_and_are_read_on_loopback_only(host: Host) -> None:
    assert not host.socket("tcp://0.0.0.0:8405").is_listening
    up = 'haproxy_server_status{proxy="leader",server="%s",state="UP"} %d'
    wait_for("member1 alone is up", lambda: {up % ("member1", 1), up % ("member2", 0)} <= set(metrics(host)), SOON_S)


def test_certificate_of_another_name_is_not_trusted(host: Host) -> None:
    """The stranger says 200 on /primary, as the leader does."""
    lie = "import ssl, urllib.request as u; c = ssl._create_unverified_context(); "
    lie += "print(u.urlopen(u.Request('https://lb:8008/primary', method='OPTIONS'), context=c).status)"
    assert host.check_output("python3 -c %s", lie) == "200"
    assert told(host, "stranger", "status") == "DOWN"


def test_a_new_leader_gets_the_connections_and_the_old_one_loses_them(host: Host) -> None:
    notes = open_session(host, "flip")
    assert host.file(notes).content_string == "member1\n"
    machine("member1").check_output("rm /run/leader")
    machine("member2").check_output("touch /run/leader")
    wait_for("the old session is cut", lambda: "cut" in host.file(notes).content_string, SOON_S)
    wait_for("member2 leads", lambda: leads(host) == "member2", SOON_S)


def test_nobody_leads(host: Host) -> None:
    machine("member1").check_output("rm /run/leader")
    wait_for("nobody is reached", lambda: leads(host) == "", SOON_S)


def test_silent_member_is_given_up(host: Host) -> None:
    """A member that is stopped in the middle of its work answers nothing, not even that a session is over."""
    notes = open_session(host, "silent")
    machine("member1").check_output("systemctl kill -s STOP member")
    try:
        wait_for("the session is cut", lambda: "cut" in host.file(notes).content_string, 2 * SOON_S)
        wait_for("it takes nobody's place any more", lambda: told(host, "member1", "scur") == "0", SOON_S)
    finally:
        machine("member1").check_output("systemctl kill -s CONT member")


def test_a_session_with_a_lost_member_ends(host: Host) -> None:
    """Who had it has left, and the member's computer does not even answer that it has heard so."""
    lost = f"ip route {{}} blackhole {host.interface('host0').addresses[0]}"
    open_session(host, "lost")
    machine("member1").check_output(lost.format("add"))
    try:
        host.check_output("systemctl kill -s KILL session-lost")
        wait_for("it takes nobody's place any more", lambda: told(host, "member1", "scur") == "0", SOON_S)
    finally:
        machine("member1").check_output(lost.format("del"))


def test_killed_process_is_back(host: Host) -> None:
    before = host.check_output("systemctl show -p MainPID --value haproxy")
    host.check_output("systemctl kill -s KILL haproxy")
    wait_for("HAProxy leads again", lambda: leads(host) == "member1", SOON_S)
    assert host.check_output("systemctl show -p MainPID --value haproxy") != before


def test_reload_keeps_sessions(host: Host) -> None:
    """The last test: it leaves other settings."""
    notes = open_session(host, "reload")
    before = host.check_output("systemctl show -p MainPID --value haproxy")
    play(SCENARIO / "converge.yml", {"haproxy_check_interval_ms": 400})
    assert "inter 400ms" in host.file("/etc/haproxy/haproxy.cfg").content_string
    assert host.file(notes).content_string == "member1\n"
    assert host.check_output("systemctl show -p MainPID --value haproxy") == before
    assert not host.file("/var/lib/arches/pending/haproxy").exists

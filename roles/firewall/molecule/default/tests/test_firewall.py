"""Who reaches whom: fw2 connects to fw1, which listens on every port that the tests name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import testinfra

from lib.waiting import wait_for

PORTS = range(8000, 8006)
OPEN, CLOSED = [8001, 8002, 8003], [22, 8000, 8004, 8005]
GUARD = (Path(__file__).parents[3] / "files/admits_this_run.py").read_text()

# Answers every line with itself, on all ports.
ECHO = f"""
import asyncio
async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()
async def main():
    servers = [await asyncio.start_server(echo, "0.0.0.0", port) for port in {list(PORTS)}]
    await asyncio.gather(*(server.serve_forever() for server in servers))
asyncio.run(main())
"""

# Tries ports and prints those that take a connection.
TRY = """
import asyncio, sys
async def attempt(port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(sys.argv[1], port), 1)
    except (OSError, TimeoutError):
        return None
    writer.close()
    return port
async def main():
    found = await asyncio.gather(*(attempt(int(port)) for port in sys.argv[2:]))
    print(*sorted(port for port in found if port))
asyncio.run(main())
"""

# Keeps one connection; says a word when it begins and whenever the file it is given appears.
HOLD = """
import os, socket, sys, time
peer = socket.create_connection((sys.argv[1], 8001), 5).makefile("rw")
def say(word):
    print(word, file=peer, flush=True)
    assert peer.readline() == word + "\\n"
    open("/run/held", "w").write(word)
say("before")
while not os.path.exists("/run/go"):
    time.sleep(0.05)
say("after")
"""


@pytest.fixture(scope="module")
def machines(request):
    """fw1 and fw2; fw1 listens."""
    backend = f"ansible://%s?ansible_inventory={request.config.option.ansible_inventory}"
    fw1, fw2 = (testinfra.get_host(backend % name) for name in ("fw1", "fw2"))
    fw1.run("systemctl stop echo")
    fw1.check_output("systemd-run --unit echo python3 -c %s", ECHO)
    listening(fw1)
    return fw1, fw2


@pytest.fixture
def target(machines) -> str:
    """fw1's address."""
    return machines[0].ansible.get_variables()["ansible_host"]


def listening(fw1) -> None:
    """Wait until the last of the ports is served."""
    wait_for("fw1 listens", lambda: fw1.run("ss -Hltn sport = %s", str(PORTS[-1])).stdout, timeout_s=10)


def reachable(source, target: str) -> list[int]:
    """Ports of the target that the source can connect to."""
    words = " ".join(str(port) for port in OPEN + CLOSED)
    return [int(port) for port in source.check_output(f"python3 -c %s %s {words}", TRY, target).split()]


def test_peers_reach_what_the_rules_allow_and_nothing_else(machines, target):
    assert reachable(machines[1], target) == OPEN


def test_loopback_is_free(machines):
    assert reachable(machines[0], "127.0.0.1") == sorted(OPEN + CLOSED)


def test_the_world_is_not_a_peer(machines, target):
    """Another address of fw2 is nobody in particular: it gets what everybody gets."""
    fw2 = machines[1]
    stranger = target.rsplit(".", 1)[0] + ".250"
    fw2.check_output("ip address replace %s/32 dev host0", stranger)
    fw2.check_output("ip route replace %s/32 dev host0 src %s", target, stranger)
    try:
        assert reachable(fw2, target) == [8003]
    finally:
        fw2.check_output("ip route delete %s/32 && ip address delete %s/32 dev host0", target, stranger)


def test_a_reload_and_a_restart_cut_nothing_and_open_nothing(machines, target):
    fw1, fw2 = machines
    fw1.check_output("nft add table inet others")
    fw2.check_output("systemd-run --collect --unit hold python3 -c %s %s", HOLD, target)
    wait_for("fw2 holds a connection", lambda: fw2.file("/run/held").exists, timeout_s=10)
    fw1.check_output("systemctl reload nftables && systemctl restart nftables")
    fw2.check_output("touch /run/go")
    wait_for("the connection goes on", lambda: fw2.file("/run/held").content_string == "after", timeout_s=10)
    assert reachable(fw2, target) == OPEN
    assert "table inet others" in fw1.check_output("nft list tables")
    fw1.check_output("nft delete table inet others")


def test_refused_packets_are_counted(machines, target):
    def refused() -> int:
        shown = json.loads(machines[0].check_output("nft -j list counter inet arches refused"))
        return shown["nftables"][1]["counter"]["packets"]

    before = refused()
    reachable(machines[1], target)
    assert refused() >= before + len(CLOSED)


def test_rules_that_would_lock_out_this_run_are_refused(machines):
    def guard(*sources: str):
        rules = json.dumps([{"comment": "ssh", "ports": "22", "sources": sources}])
        return machines[0].run("python3 -c %s /etc/nftables.conf %s", GUARD, rules)

    assert guard("any").rc == 0
    refused = guard("192.0.2.0/24")
    assert refused.rc == 1 and "no rule of firewall_rules admits it to ssh on port 22" in refused.stdout


def test_the_rules_are_there_after_a_reboot(machines, target):
    fw1, fw2 = machines
    boot = fw1.check_output("cat /proc/sys/kernel/random/boot_id")
    fw1.check_output("systemd-run --on-active=200ms systemctl reboot")

    def booted() -> bool:
        try:
            shown = fw1.run("cat /proc/sys/kernel/random/boot_id")
        except RuntimeError:  # what testinfra makes of an ssh that does not connect
            return False
        return shown.rc == 0 and shown.stdout.strip() != boot

    wait_for("fw1 is up again", booted, timeout_s=30)
    fw1.check_output("systemd-run --unit echo python3 -c %s", ECHO)
    listening(fw1)
    assert reachable(fw2, target) == OPEN

"""The shared address is where nginx serves, and nowhere else."""

import socket
import ssl
import time
import urllib.request

from testinfra.host import Host  # type: ignore[import-untyped]

from lib.scenario import machine
from lib.waiting import wait_for

testinfra_hosts = ["ansible://edge1"]

# Two missed answers of nginx or three missed adverts, and a new owner that makes itself known.
MOVED_S = 8


def holders(address: str) -> list[str]:
    """Machines that have the shared address."""
    return [name for name in ("edge1", "edge2") if f" {address}/" in machine(name).check_output("ip -4 -o address")]


def served_by(address: str) -> str | None:
    """Which machine answers at the shared address."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(f"https://{address}/", timeout=1, context=context) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def answers_to_ssh(name: str) -> bool:
    """Whether a machine can be reached."""
    address = str(machine(name).ansible.get_variables()["ansible_host"])
    try:
        socket.create_connection((address, 22), timeout=1).close()
    except OSError:
        return False
    return True


def shared(host: Host) -> str:
    """The shared address."""
    return str(host.ansible.get_variables()["ansible_host"]).rpartition(".")[0] + ".200"


def test_it_is_where_nginx_serves_and_stays_there(host: Host) -> None:
    address = shared(host)
    wait_for("one has it", lambda: len(holders(address)) == 1, timeout_s=30)
    first = wait_for("it serves", lambda: served_by(address), timeout_s=10)
    other = "edge2" if first == "edge1" else "edge1"

    machine(first).check_output("systemctl stop nginx")
    began = time.monotonic()
    wait_for("the other one serves", lambda: served_by(address) == other, timeout_s=30, interval_s=0.1)
    took = time.monotonic() - began
    print(f"moved after {took:.1f} s")
    assert took < MOVED_S and holders(address) == [other]

    machine(first).check_output("systemctl start nginx")
    came_back = "journalctl -u keepalived --since -30s | grep -c 'edge) Entering BACKUP STATE'"
    wait_for("it is ready to take over again", lambda: machine(first).run(came_back).rc == 0, timeout_s=30)
    assert served_by(address) == other and holders(address) == [other]

    # No word of farewell: its link is gone for a while.
    cut = "ip link set host0 down; sleep 15; ip link set host0 up"
    machine(other).check_output(f"systemd-run sh -c '{cut}'")
    wait_for("the first one serves again", lambda: served_by(address) == first, timeout_s=30, interval_s=0.1)
    wait_for("the link is back", lambda: answers_to_ssh(other), timeout_s=60)
    wait_for("only the first one has it", lambda: holders(address) == [first], timeout_s=30)


def test_its_configuration_is_understood_and_scripts_are_nobodys(host: Host) -> None:
    assert host.run("keepalived --config-test").rc == 0
    assert "script_user nobody" in host.file("/etc/keepalived/keepalived.conf").content_string
    assert host.service("keepalived").is_enabled

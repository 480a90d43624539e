"""One member: the watcher runs with few rights, comes back, does nothing."""

import pytest
from testinfra.host import Host

from lib.scenario import play
from lib.waiting import wait_for

CONVERGE = __file__.replace("tests/test_lease_watcher.py", "converge.yml")
WATCHER = "arches-lease-watcher"
PID = f"systemctl show -p MainPID --value {WATCHER}"


def said(host: Host) -> str:
    """All that the watcher has said."""
    return str(host.check_output(f"journalctl -u {WATCHER} -o cat --no-pager"))


def test_it_runs_for_ever_with_few_rights(host: Host) -> None:
    assert host.service(WATCHER).is_enabled
    assert host.file("/etc/arches/lease-watcher.json").mode == 0o600
    assert host.check_output(f"ps -o user= -p $({PID})") not in ("root", "postgres")


def test_one_member_of_etcd_is_not_enough(host: Host) -> None:
    wait_for("it says so", lambda: "nothing is done: etcd has 1 member" in said(host), 20)


def test_the_role_monitor_may_ask_for_the_receiver(host: Host) -> None:
    """What the watcher asks when it suspects something, with its own program and settings."""
    program = (
        "import importlib.machinery as m, json, types; "
        'w = types.ModuleType("w"); '
        'm.SourceFileLoader("w", "/usr/local/sbin/arches-lease-watcher").exec_module(w); '
        'print(w.received_wal(w.Settings(**json.load(open("/etc/arches/lease-watcher.json")))))'
    )
    assert host.check_output("python3 -c %s", program) == "0"


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_killed_or_hung_it_is_started_again(host: Host, signal: str) -> None:
    before = host.check_output(PID)
    host.check_output(f"kill -{signal} {before}")
    wait_for("another runs", lambda: host.check_output(PID) not in ("0", before), 40)


def test_switched_off_it_stays_off(host: Host) -> None:
    """The last test."""
    off = {"lease_watcher_enabled": False}
    assert play(CONVERGE, off) == {"pg1": 1}
    assert play(CONVERGE, off) == {"pg1": 0}
    assert not host.service(WATCHER).is_running
    assert not host.service(WATCHER).is_enabled

"""What machines do: boot, die, reboot, keep their disks; and what a run finds after one that crashed."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from lib.waiting import wait_for
from nspawn.preflight import WATCHERS
from nspawn.processes import scan
from nspawn.system import NspawnError

from .conftest import Machines

# Connects, says so, and tells whether the other side closes within some seconds.
LISTENER = """
import socket, sys
with socket.create_connection((sys.argv[1], 22), 3) as connection:
    connection.recv(64)
    connection.settimeout(float(sys.argv[2]))
    print("connected", flush=True)
    try:
        print("closed" if not connection.recv(64) else "data")
    except (TimeoutError, OSError) as error:
        print("silence" if isinstance(error, TimeoutError) else "closed")
"""


def listen(machines: Machines, where: str, to: str, seconds: float) -> "subprocess.Popen[str]":
    """Start LISTENER in the network of the machine `where`, connected to the machine `to` for `seconds`."""
    init = machines.machine(where).processes().init
    line = ["nsenter", "--target", str(init), "--net", "python3", "-c", LISTENER, machines.address(to), str(seconds)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


def test_a_second_run_changes_nothing(machines: Machines) -> None:
    before = machines.machine("a1").processes().init
    assert machines.apply("present").actions == {}
    assert machines.machine("a1").processes().init == before


def test_there_are_file_watchers_for_many_machines(machines: Machines) -> None:
    WATCHERS.write_text("1000")
    machines.apply("present")
    assert int(WATCHERS.read_text()) == 1024
    # More than enough is left alone.
    WATCHERS.write_text("1025")
    machines.apply("present")
    assert int(WATCHERS.read_text()) == 1025


def test_check_mode_tells_and_does_nothing(machines: Machines) -> None:
    report = machines.fleet(check=True).apply("absent", None)
    assert report.actions == {"a1": "removed", "b1": "removed", "network": "removed"}
    assert machines.apply("present").actions == {}


def test_ops_logs_in_and_may_do_everything(machines: Machines) -> None:
    for name in ("a1", "b1"):
        assert machines.ssh(name, "hostname; sudo id -un").stdout.split() == [name, "root"]
    ids = {machines.ssh(name, "cat /etc/machine-id").stdout for name in ("a1", "b1")}
    assert len(ids) == 2
    assert machines.ssh("a1", "systemctl is-system-running --wait").stdout == "running\n"
    assert (machines.state_dir / "ssh/known_hosts").read_text().count("\n") == 2
    assert machines.state_dir.stat().st_mode & 0o777 == 0o700


def test_memory_is_limited_for_the_whole_machine(machines: Machines) -> None:
    take = "python3 -c 'print(len(b\"x\" * ({} << 20)))'"
    assert machines.ssh("a1", take.format(100)).stdout == f"{100 << 20}\n"
    assert machines.ssh("a1", take.format(300), check=False).returncode != 0


def test_machines_come_before_what_works_beside_them(machines: Machines) -> None:
    # What that does is in docs/local-machines.md: how much a loop in a machine gets beside others is no sharp figure.
    assert machines.machine("a1").processes().init
    wanted = {"cpu.shares": "10240", "cpu.weight": "1000"}
    groups = {path.parent for path in Path("/sys/fs/cgroup").rglob("arches/t1-a1")}
    found = {file: (group / file).read_text().strip() for group in groups for file in wanted if (group / file).exists()}
    assert found and found.items() <= wanted.items(), found


def test_killed_is_silence_and_keeps_the_disk(machines: Machines) -> None:
    machines.ssh("a1", "echo kept | sudo tee /var/lib/kept")
    peer = listen(machines, "b1", "a1", seconds=3)
    with socket.create_connection((machines.address("a1"), 22), 2) as connection:
        connection.recv(64)
        assert machines.apply("killed", "a1").actions == {"a1": "killed"}
        connection.settimeout(1)
        with pytest.raises(TimeoutError):
            connection.recv(64)
    assert peer.communicate(timeout=10)[0] == "silence\n"
    assert machines.apply("killed", "a1").actions == {}
    assert machines.apply("present").actions == {"a1": "booted"}
    assert machines.ssh("a1", "cat /var/lib/kept").stdout == "kept\n"


def test_stopped_closes_connections_and_keeps_the_disk(machines: Machines) -> None:
    # Also shows that the listener of the test above can tell the difference.
    peer = listen(machines, "b1", "a1", seconds=30)
    assert machines.apply("stopped", "a1").actions == {"a1": "stopped"}
    assert peer.communicate(timeout=10)[0] == "closed\n"
    assert machines.apply("present").actions == {"a1": "booted"}
    assert "shutting down" in machines.ssh("a1", "sudo journalctl --boot=-1 --no-pager").stdout.lower()


def test_partitioned_cuts_everybody_or_only_peers(machines: Machines) -> None:
    a1 = machines.address("a1")
    assert machines.reaches("b1", a1)
    assert machines.apply("partitioned", "a1").actions == {"a1": "partitioned"}
    assert not machines.reaches("b1", a1)
    assert not machines.reaches("a1", machines.address("b1"))
    assert machines.ssh("a1", "true", check=False).returncode == 255
    assert machines.apply("partitioned", "a1", peers_only=True).actions == {"a1": "partitioned"}
    assert not machines.reaches("b1", a1)
    assert machines.ssh("a1", "true").returncode == 0
    assert machines.apply("healed", "a1").actions == {"a1": "healed"}
    assert machines.reaches("b1", a1)
    assert machines.apply("healed", "a1").actions == {}
    machines.apply("partitioned", "a1")
    assert machines.apply("present").actions == {"a1": "healed"}


def test_a_guest_reboots_itself_and_poweroff_ends_it(machines: Machines) -> None:
    a1 = machines.machine("a1")
    machines.ssh("a1", "sudo touch /run/this-boot")
    machines.ssh("a1", "sudo systemctl reboot", check=False)
    wait_for(
        "a1 is back after its reboot",
        lambda: machines.ssh("a1", "test ! -e /run/this-boot", check=False).returncode == 0,
        timeout_s=60,
    )
    assert machines.apply("present").actions == {}
    machines.ssh("a1", "sudo systemctl poweroff", check=False)
    wait_for("a1 is off", lambda: not a1.processes().all, timeout_s=60)
    assert machines.apply("present").actions == {"a1": "booted"}


def test_an_orphan_is_ended_and_booted_anew(machines: Machines) -> None:
    found = machines.machine("a1").processes()
    for pid in (found.keeper, found.supervisor):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_for("the keeper is gone", lambda: machines.machine("a1").processes().keeper is None, timeout_s=5)
    assert machines.machine("a1").processes().init, "the guest outlives its keeper"
    actions = machines.apply("present").actions
    assert actions == {"t1-a1": "ended an orphan", "a1": "booted"}
    assert machines.ssh("a1", "true").returncode == 0


def test_another_checkout_is_refused_while_machines_run(machines: Machines, tmp_path: Path) -> None:
    second = Machines("t1", tmp_path / "state", "a1", "b1")
    with pytest.raises(NspawnError, match=f"belongs to {machines.state_dir} and runs"):
        second.apply("present")
    machines.apply("killed")
    second.apply("present", "a1")
    assert second.ssh("a1", "true").returncode == 0
    assert machines.ssh("a1", "true", check=False).returncode == 255, "the first checkout's key still fits"
    second.apply("killed")


def test_absent_leaves_nothing_behind(tmp_path: Path) -> None:
    fleet = Machines("t2", tmp_path / "state", "c1")
    fleet.fleet().apply("absent", None)
    fleet.apply("present")
    (fleet.machine("half").directory / "upper").mkdir(parents=True)  # of a run that was cut off
    assert _traces() != []
    assert fleet.fleet().apply("absent", None).actions == {"c1": "removed", "half": "removed", "network": "removed"}
    assert _traces() == []
    assert fleet.fleet().apply("absent", None).actions == {}


def _traces() -> list[str]:
    """Everything on this computer that carries the name of the fleet t2."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if "/fleets/t2/" in line]
    links = [path.name for path in Path("/sys/class/net").iterdir() if path.name in ("br-t2", "vb-t2-c1")]
    tables = [
        line for line in subprocess.check_output(["nft", "list", "tables"], text=True).split("\n") if "_t2" in line
    ]
    groups = [str(path) for path in Path("/sys/fs/cgroup").rglob("arches/t2-*")]
    run = [str(path) for path in Path("/run/systemd/nspawn").rglob("t2-*")]
    processes = [name for name in scan() if name.startswith("t2-")]
    return mounts + links + tables + groups + run + processes

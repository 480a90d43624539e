"""What machines may not do: meet other fleets, be reached from outside, start on a full disk or a half-built image."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.waiting import wait_for
from nspawn.image import Image
from nspawn.processes import scan
from nspawn.system import NspawnError

from .conftest import CACHE, HOME, REPOSITORY, Machines

BIN = Path(sys.executable).parent


def playbook(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook in the repository."""
    line = [str(BIN / "ansible-playbook"), *map(str, arguments)]
    env = {**os.environ, "ANSIBLE_FORCE_COLOR": "0", **environment}
    return subprocess.run(line, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def outside(machines: Machines) -> Iterator[list[str]]:
    """A neighbour on another network that routes by way of this computer: the prefix that runs a command there."""
    subnet = str(machines.fleet().network.subnet)
    script = f"""
        ip netns add arches-out
        ip link add out0 type veth peer name out1 netns arches-out
        ip address add 198.18.0.1/30 dev out0; ip link set out0 up
        ip -n arches-out address add 198.18.0.2/30 dev out1; ip -n arches-out link set out1 up
        ip -n arches-out route add {subnet} via 198.18.0.1"""
    remove = ["ip", "netns", "delete", "arches-out"]
    subprocess.run(remove, check=False, capture_output=True)
    subprocess.run(["sh", "-ec", script], check=True)
    yield ["ip", "netns", "exec", "arches-out"]
    subprocess.run(remove, check=True)


def test_nobody_outside_reaches_a_machine(machines: Machines, outside: list[str]) -> None:
    probe = f"import socket; socket.create_connection(({machines.address('a1')!r}, 22), 1)"
    done = subprocess.run([*outside, "python3", "-c", probe], capture_output=True, text=True, check=False)
    assert "TimeoutError" in done.stderr
    # The way there exists: without the fleet's rules the same connection succeeds.
    subprocess.run(["nft", "flush", "chain", "ip", "arches_t1", "forward"], check=True)
    try:
        assert subprocess.run([*outside, "python3", "-c", probe], check=False).returncode == 0
    finally:
        machines.apply("present")
    done = subprocess.run([*outside, "python3", "-c", probe], capture_output=True, text=True, check=False)
    assert "TimeoutError" in done.stderr


def test_two_fleets_do_not_meet(machines: Machines, tmp_path: Path) -> None:
    """The second fleet goes through the module itself, from check mode to its removal."""
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [
            {
                "nspawn": {
                    "fleet": {"id": "t2"},
                    "machines": [{"name": "c1", "memory_mb": 256}],
                    "state": "{{ state }}",
                    "state_dir": str(tmp_path / "state"),
                    "image": str(REPOSITORY / "ansible/image"),
                }
            }
        ],
    }
    path = tmp_path / "play.yml"
    path.write_text(json.dumps([play]))
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"hosts": {"localhost": local}}}))
    run = ("-i", inventory, path)
    second = Machines("t2", tmp_path / "state", "c1")

    checked = playbook(*run, "-e", "state=present", "--check", "--diff")
    assert "+c1: made" in checked.stdout, checked.stdout + checked.stderr
    assert not (tmp_path / "state").exists()
    made = playbook(*run, "-e", "state=present")
    assert made.returncode == 0, made.stdout
    assert second.ssh("c1", "true").returncode == 0
    assert not machines.reaches("a1", second.address("c1"))
    assert not second.reaches("c1", machines.address("a1"))
    removed = playbook(*run, "-e", "state=absent")
    assert "changed=1" in removed.stdout
    assert machines.ssh("a1", "true").returncode == 0
    assert machines.apply("present").actions == {}


def test_an_environment_without_local_machines_is_refused() -> None:
    done = playbook("ansible/machines.yml", "-i", "inventories/staging", "-e", "state=absent", "--check")
    assert done.returncode != 0
    assert "machine_provider is none in inventories/staging/group_vars/all/main.yml" in " ".join(done.stdout.split())


def test_a_full_disk_is_noticed_before_anything_is_made(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", home], check=True)
    try:
        done = playbook(
            "ansible/machines.yml", "-i", "inventories/dev", "-e", "state=present",
            "-e", json.dumps({"fleet": {"id": "t2"}, "state_dir": str(tmp_path / "state"), "address": None}),
            ARCHES_STATE=str(home),
        )  # fmt: skip
    finally:
        subprocess.run(["umount", home], check=True)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"No free disk for 1 new machines: {home} has" in said and "set ARCHES_STATE" in said, done.stdout
    assert not [name for name in scan() if name.startswith("t2-")]
    assert not Path("/sys/class/net/br-t2").exists()


def test_disks_of_another_checkout_are_not_started_with_new_secrets(tmp_path: Path) -> None:
    kept = tmp_path / "home/volumes/t2/ops1/s3.ext4"
    kept.parent.mkdir(parents=True)
    kept.touch()
    done = playbook(
        "ansible/up.yml", "-i", "inventories/local",
        "-e", json.dumps({"fleet": {"id": "t2"}, "state_dir": str(tmp_path / "state")}),
        ARCHES_STATE=str(tmp_path / "home"),
    )  # fmt: skip
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert f"keeps disks of local ({kept.parent})" in said and "make down DELETE_VOLUMES=1" in said, done.stdout
    assert not (tmp_path / "state").exists()


BUILDER = """
import sys
from pathlib import Path
from nspawn.image import Image
definition, cache = map(Path, sys.argv[1:])
print(Image(definition, cache, cache).ensure()[0])
"""


def test_an_image_cut_off_half_way_is_never_used(tmp_path: Path) -> None:
    definition, cache, fake = tmp_path / "image", tmp_path / "cache", tmp_path / "bin"
    for folder in (definition, cache, fake):
        folder.mkdir()
    (definition / "packages.txt").write_text("sudo\n")
    tool = fake / "mmdebstrap"
    # $9 is the tree; the first build hangs with half of it written, the second one completes.
    tool.write_text('#!/bin/sh\nmkdir -p "$9/etc"\ntouch "$9/etc/hostname"\nexec sleep 60\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(REPOSITORY / "ansible/plugins/module_utils")
    line = [sys.executable, "-c", BUILDER, str(definition), str(cache)]

    cut = subprocess.Popen(line, env=environment, start_new_session=True)
    wait_for("half of a tree", lambda: list(cache.glob("images/*/tree/etc/hostname")), timeout_s=10)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.wait(timeout=5)
    image = Image(definition, cache, cache)
    assert image.find() is None

    tool.write_text('#!/bin/sh\nmkdir -p "$9/etc"\necho whole > "$9/etc/hostname"\n')
    built = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    tree = Path(built.stdout.strip())
    assert image.find() == tree
    assert (tree / "etc/hostname").read_text() == "whole\n"
    assert not list(cache.glob("images/building-*"))

    (definition / "packages.txt").write_text("sudo\nacl\n")
    assert Image(definition, cache, cache).find() is None, "a changed definition is another image"

    tool.write_text("#!/bin/sh\necho 'E: no such package' >&2\nexit 1\n")
    failed = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert "mmdebstrap ended with 1: E: no such package" in failed.stderr
    assert not list(cache.glob("images/building-*"))


def test_a_subnet_in_use_is_refused(machines: Machines, tmp_path: Path) -> None:
    from nspawn.fleet import Fleet
    from nspawn.registry import Registry
    from nspawn.spec import Wish

    subnet = str(machines.fleet().network.subnet)
    fleet = Fleet("t2", subnet, tmp_path / "state", Registry(HOME), lambda: Image(Path(), CACHE, HOME))
    with pytest.raises(NspawnError, match=r"overlaps .* of the fleet t1\. Give it another `subnet`"):
        fleet.apply("present", [Wish("c1", None, 256, 1)])
    assert not Path("/sys/class/net/br-t2").exists()

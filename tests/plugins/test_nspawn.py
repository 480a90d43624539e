"""The machine provider's rules that need no machine: names, addresses, sources, what this computer lacks."""

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nspawn import image, network, preflight, processes, registry
from nspawn.cgroup import SystemdScope
from nspawn.keys import Keys
from nspawn.machine import Machine, Record
from nspawn.registry import Entry, Registry
from nspawn.spec import Spec, Volume, Wish, assign, full_name, tag_of
from nspawn.system import NspawnError, locked

PROJECT = Path(__file__).resolve().parents[2]
SUBNET = ipaddress.IPv4Network("10.88.10.0/24")


def wish(name: str, address: str | None = None) -> Wish:
    return Wish(name, address, 512, 1)


def test_a_long_fleet_id_has_a_short_tag_and_a_short_one_is_its_own() -> None:
    assert tag_of("local") == "local"
    assert len(tag_of("molecule-redis-default-1a2b3c")) == 3
    assert tag_of("molecule-redis-default-1a2b3c") != tag_of("molecule-nginx-default-1a2b3c")


@pytest.mark.parametrize("name", ["Local", "1st", "a_b", ""])
def test_a_fleet_id_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(NspawnError, match="use small letters, digits and dashes"):
        tag_of(name)


def test_a_machine_name_must_fit_into_its_links_name() -> None:
    assert full_name("local", "data1") == "local-data1"
    assert full_name("a1b", "12345678") == "a1b-12345678"
    with pytest.raises(NspawnError, match="local-database1 is 15 characters long and 12 fit: shorten"):
        full_name("local", "database1")


def test_addresses_are_kept_chosen_and_never_shared() -> None:
    held = {"a": "10.88.10.11", "gone": "10.88.10.12"}
    specs = assign([wish("a"), wish("b"), wish("c", "10.88.10.13"), wish("d")], held, SUBNET)
    assert {name: spec.address for name, spec in specs.items()} == {
        "a": "10.88.10.11",
        "b": "10.88.10.14",
        "c": "10.88.10.13",
        "d": "10.88.10.15",
    }
    assert specs["b"] == Spec("b", "10.88.10.14", 512, 1)


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ([wish("a", "10.88.10.12")], r"gone and a both have the address 10\.88\.10\.12"),
        ([wish("a", "10.88.10.20"), wish("b", "10.88.10.20")], "a and b both have the address"),
        ([wish("a", "10.88.11.20")], r"10\.88\.11\.20 of a is not a host's in the fleet's subnet 10\.88\.10\.0/24"),
        ([wish("a", "10.88.10.1")], "is not a host's"),
        ([wish("a"), wish("a")], "a is named twice"),
    ],
)
def test_a_wrong_address_is_refused(wishes: list[Wish], says: str) -> None:
    with pytest.raises(NspawnError, match=says):
        assign(wishes, {"gone": "10.88.10.12"}, SUBNET)


@pytest.mark.parametrize(
    ("volumes", "says"),
    [
        ([Volume("S3", "/srv", 64)], "'S3' of a has no usable name: use small letters"),
        ([Volume("s3", "srv", 64)], "'s3' of a cannot be at 'srv': write an absolute path"),
        ([Volume("s3", "/", 64)], "cannot be at '/'"),
        ([Volume("s3", "/srv/../etc", 64)], "cannot be at '/srv/../etc'"),
        ([Volume("s3", "/srv:ro", 64)], "cannot be at '/srv:ro'"),
        ([Volume("s3", "/run/s3", 64)], "not below /dev, /proc, /run"),
        ([Volume("s3", "/srv", 15)], "is too small: write `size_mb: 16` or more"),
        ([Volume("s3", "/srv", 64), Volume("s3", "/opt", 64)], "Two volumes of a have the same name"),
        ([Volume("s3", "/srv", 64), Volume("s4", "/srv", 64)], "Two volumes of a have the same path"),
    ],
)
def test_a_wrong_volume_is_refused(volumes: list[Volume], says: str) -> None:
    with pytest.raises(NspawnError, match=says):
        assign([Wish("a", None, 512, 1, tuple(volumes))], {}, SUBNET)


def test_a_good_volume_is_handed_on() -> None:
    volume = Volume("s3", "/var/lib/.x-1/s3@data", 16, keep=True)
    assert assign([Wish("a", None, 512, 1, (volume,))], {}, SUBNET)["a"].volumes == (volume,)


def test_fleets_keep_clear_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "networks_here", lambda: {"eth0": ipaddress.IPv4Network("10.89.7.0/24")})
    known = Registry(tmp_path)
    first = known.choose_subnet("one")
    assert known.choose_subnet("one") == first
    known.register(Entry("one", "one", str(first), "/state"))
    assert known.entry("one") == Entry("one", "one", str(first), "/state")
    with pytest.raises(NspawnError, match=r"overlaps .* of the fleet one\. Give it another `subnet`"):
        known.register(Entry("two", "two", str(first), "/state"))
    with pytest.raises(NspawnError, match="of the interface eth0"):
        known.register(Entry("two", "two", "10.89.7.0/24", "/state"))
    with pytest.raises(NspawnError, match="share the short name one"):
        known.register(Entry("two", "one", "10.89.8.0/24", "/state"))
    assert not known.folder("two").exists()
    # A subnet that is taken is stepped over.
    known.register(Entry("three", "three", str(known.choose_subnet("three")), "/state"))
    taken = ipaddress.IPv4Network(known.choose_subnet("two"))
    known.register(Entry("four", "four", str(taken), "/state"))
    assert known.choose_subnet("two") != taken


def test_what_another_checkout_has_written_more_is_no_hindrance(tmp_path: Path) -> None:
    net = network.Network("t", ipaddress.IPv4Network("10.88.200.0/24"))
    machine = Machine(tmp_path / "m1", "t-m1", net, tmp_path / "kept")
    machine.directory.mkdir()
    record = Record(name="m1", address="10.88.200.11", memory_mb=512, cpus=1, image="trixie")
    machine.remember(record)
    written = json.loads((machine.directory / "machine.json").read_text())
    (machine.directory / "machine.json").write_text(json.dumps({**written, "unheard": "of"}))
    assert machine.record() == record


def test_a_busy_fleet_names_who_holds_it(tmp_path: Path) -> None:
    busy = rf"The fleet x is busy: process {os.getpid()} has held"
    lock = tmp_path / "lock"
    with locked(lock, 1, "x"), pytest.raises(NspawnError, match=busy), locked(lock, 0.1, "The fleet x"):
        pytest.fail("held twice")


def test_a_firewall_that_forwards_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def chain(family: str, table: str, hook: str, policy: str) -> dict[str, Any]:
        return {"chain": {"family": family, "table": table, "name": "FORWARD", "hook": hook, "policy": policy}}

    chains = [
        {"metainfo": {}},
        chain("ip", "filter", "forward", "drop"),
        chain("ip", "arches_x", "forward", "accept"),
        chain("ip", "filter", "input", "drop"),
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}},
    ]
    answer = subprocess.CompletedProcess([], 0, json.dumps({"nftables": chains}), "")
    monkeypatch.setattr(network, "run", lambda *_, **__: answer)
    assert network.dropping_chains() == ["ip filter FORWARD"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("", []),
        (
            "Packages|Debian|Debian|http://mirror.example/debian/\nPackages|Debian|Debian|http://other.example/debian/\n"
            "Packages|Debian|Debian-Security|http://mirror.example/debian-security/\n"
            "Packages|Other|Other|http://other.example/debian/\nTranslations|Debian|Debian|http://no.example/debian/\n",
            [
                "deb http://mirror.example/debian trixie main",
                "deb http://mirror.example/debian trixie-updates main",
                "deb http://mirror.example/debian-security trixie-security main",
            ],
        ),
        # Before the first `apt-get update`: no origin, no label.
        (
            "Packages|||http://mirror.example/debian/\nPackages|||http://tools.example/apt/\n",
            ["deb http://mirror.example/debian trixie main", "deb http://mirror.example/debian trixie-updates main"],
        ),
        ("Packages|Debian|Debian|file:/srv/debian/\n", []),
    ],
)
def test_an_image_takes_its_sources_from_this_computer(
    targets: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*argv: str, **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(argv, 0, targets, "")

    monkeypatch.setattr(image, "run", run)
    assert image.sources() == expected


def test_an_image_is_another_one_when_its_definition_or_sources_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = tmp_path / "image"
    shutil.copytree(PROJECT / "ansible/image", definition)
    monkeypatch.setattr(image, "sources", list)

    def key() -> str:
        return image.Image(definition, tmp_path, tmp_path).key

    keys = [key()]
    (definition / "files/etc/motd").write_text("hello\n")
    keys.append(key())
    (definition / "files/etc/motd").rename(definition / "files/etc/issue")
    keys.append(key())
    (definition / "customize.sh").chmod(0o644)
    keys.append(key())
    monkeypatch.setattr(image, "sources", lambda: ["deb http://mirror.example/debian trixie main"])
    keys.append(key())
    assert len(set(keys)) == 5
    assert key() == keys[-1]


def test_missing_tools_root_and_disk_are_named_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "which", lambda tool: None if tool in ("nft", "mmdebstrap") else "/bin/x")
    monkeypatch.setattr(preflight, "KEYRING", tmp_path / "none")
    with pytest.raises(NspawnError, match=r"apt-get install debian-archive-keyring mmdebstrap nftables$"):
        preflight.require_tools()
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 1000)
    with pytest.raises(NspawnError, match="need root, for mounts and networks: run it as root"):
        preflight.require_root()
    with pytest.raises(NspawnError, match=r"No free disk for x: .* and 99999999 MB are needed.*set ARCHES_STATE"):
        preflight.require_space(tmp_path / "not/there", 99_999_999, "x", "ARCHES_STATE")


def test_the_module_says_when_python_is_too_old(tmp_path: Path) -> None:
    """The module file itself is read by an old Python too, so it must get as far as its own message."""
    source = (PROJECT / "ansible/plugins/modules/nspawn.py").read_text()
    script = tmp_path / "module.py"
    script.write_text(source.replace("PYTHON = (3, 12)", "PYTHON = (9, 9)"))
    arguments = {"ANSIBLE_MODULE_ARGS": {"fleet": {"id": "x"}, "state": "absent", "state_dir": str(tmp_path)}}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(arguments)], capture_output=True, text=True, check=False, timeout=30
    )
    assert "need Python 9.9 or newer" in json.loads(done.stdout)["msg"], done.stdout + done.stderr


def test_processes_are_told_apart_by_their_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(pid: int, name: str, group: str, pids: str, state: str = "S (sleeping)") -> None:
        folder = tmp_path / str(pid)
        folder.mkdir()
        (folder / "cgroup").write_text(f"9:name=systemd:{group.removesuffix('/init.scope')}\n0::{group}\n")
        (folder / "status").write_text(f"Name:\t{name}\nState:\t{state}\nNSpid:\t{pids}\n")

    process(10, "sh", "/user/arches/t1-a/keeper", "10")
    process(11, "systemd-nspawn", "/user/arches/t1-a/supervisor", "11")
    process(12, "systemd", "/user/arches/t1-a/payload/init.scope", "12\t1")
    process(13, "private", "/user/arches/t1-a/payload/system.slice/x.service", "13\t20\t1")
    process(14, "gone", "/user/arches/t1-b/payload/init.scope", "14\t1", "Z (zombie)")
    process(15, "systemd", "/user/arches/t1-b/payload/init.scope (deleted)", "15\t1", "Z (zombie)")
    process(20, "sh", "/arches.slice/arches-t2-c.scope/keeper", "20")
    process(21, "systemd", "/arches.slice/arches-t2-c.scope/payload/init.scope", "21\t1")
    process(30, "bash", "/user.slice", "30")
    process(22, "systemd", "/arches/t3-d/payload/arches.slice/arches-in-a.scope/payload/init.scope", "22\t30\t1")
    monkeypatch.setattr(processes, "_PROC", str(tmp_path))
    found = processes.scan()
    assert set(found) == {"t1-a", "t2-c", "t3-d"}
    assert (found["t3-d"].init, found["t3-d"].all) == (None, [22]), "a machine within a machine is its process"
    assert (found["t1-a"].keeper, found["t1-a"].supervisor, found["t1-a"].init) == (10, 11, 12)
    assert sorted(found["t1-a"].all) == [10, 11, 12, 13]
    assert (found["t2-c"].keeper, found["t2-c"].init) == (20, 21)


def test_under_systemd_a_machine_is_a_delegated_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []

    def run(*argv: str, **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(argv)
        return subprocess.CompletedProcess(argv, 3, "", "")

    monkeypatch.setattr("nspawn.cgroup.run", run)
    scope = SystemdScope("t1-a")
    scope.limit(512, 1.5)
    assert ("systemctl", "set-property", "--runtime", "arches.slice", "CPUWeight=1000") in commands
    command = scope.command()
    assert command[:2] == ["systemd-run", "--scope"]
    assert {"--unit=arches-t1-a.scope", "--property=Delegate=yes", "--property=MemoryMax=512M"} < set(command)
    assert "--property=CPUQuota=150%" in command


def test_known_hosts_are_exact(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "state")
    keys.ensure()
    assert keys.public().startswith("ssh-ed25519 ")
    assert keys.private.stat().st_mode & 0o777 == 0o600
    made = Record("a", "10.0.0.11", 512, 1, image="/tree", host_key="ssh-ed25519 AAAA")
    half = Record("b", "10.0.0.12", 512, 1, image="/tree")
    keys.write_known_hosts([made, half])
    assert (keys.folder / "known_hosts").read_text() == "10.0.0.11,a ssh-ed25519 AAAA\n"
    shown = subprocess.run(
        ["ssh", "-G", "-F", str(keys.folder / "config"), "a"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {"hostname 10.0.0.11", "user ops", "stricthostkeychecking true"} <= set(shown)
    keys.write_known_hosts([])
    assert (keys.folder / "known_hosts").read_text() == ""

"""Volumes: a disk of a fixed size in a machine, that is really full, is kept as asked, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.waiting import wait_for
from nspawn import volumes as volumes_module
from nspawn.fleet import Report
from nspawn.spec import Volume, Wish
from nspawn.system import NspawnError

from .conftest import HOME, REPOSITORY, Machines

OWN, KEPT = Volume("own", "/srv/own", 32), Volume("kept", "/srv/kept", 32, keep=True)
BOTH = (OWN, KEPT)
KEPT_FILE = HOME / "volumes/t3/v1/kept.ext4"


class Disks(Machines):
    """The fleet `t3` with the machine v1."""

    def bring(self, state: str, *volumes: Volume, check: bool = False, delete_volumes: bool = False) -> Report:
        """Bring v1, as one with these volumes, into a state."""
        wishes = [Wish("v1", None, 256, 1, volumes)]
        return self.fleet(check).apply(state, wishes, delete_volumes=delete_volumes)

    def clear(self) -> None:
        """Remove everything, also what is kept."""
        self.fleet().apply("absent", None, delete_volumes=True)

    @property
    def own_file(self) -> Path:
        """The file of the volume `own`."""
        return self.machine("v1").volumes.file(OWN)


@pytest.fixture(scope="module")
def _disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    disks = Disks("t3", tmp_path_factory.mktemp("disks") / "state", "v1")
    disks.clear()
    yield disks
    disks.clear()


@pytest.fixture
def disks(_disks: Disks) -> Disks:
    """The fleet with v1 and both volumes running, whatever the test before has left."""
    try:
        _disks.bring("present", *BOTH)
    except NspawnError:
        _disks.clear()
        _disks.bring("present", *BOTH)
    return _disks


def loops() -> list[str]:
    """Files of volumes that are attached to a loop device."""
    listed = subprocess.check_output(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], text=True)
    return sorted(line for line in listed.splitlines() if line.startswith(str(HOME)) and "/t3/" in line)


def test_a_full_volume_is_full_for_its_service_alone(disks: Disks) -> None:
    assert disks.ssh("v1", "sudo ls -A /srv/own /srv/kept").stdout == "/srv/kept:\n\n/srv/own:\n"
    full = disks.ssh("v1", "sudo dd if=/dev/zero of=/srv/own/x bs=1M count=100", check=False)
    assert "No space left on device" in full.stderr
    assert 20 << 20 < int(disks.ssh("v1", "stat --format %s /srv/own/x").stdout) < 32 << 20
    disks.ssh("v1", "sudo dd if=/dev/zero of=/srv/kept/x bs=1M count=1 && sudo dd if=/dev/zero of=/srv/x bs=1M count=1")
    # What is deleted is given back to this computer.
    assert disks.own_file.stat().st_blocks * 512 > 20 << 20
    disks.ssh("v1", "sudo rm /srv/own/x && sync")
    wait_for("the file is small again", lambda: disks.own_file.stat().st_blocks * 512 < 8 << 20, timeout_s=20)


def test_a_second_run_changes_nothing(disks: Disks) -> None:
    before = disks.machine("v1").processes().init
    assert disks.bring("present", *BOTH).actions == {}
    assert disks.machine("v1").processes().init == before


def test_owners_and_extended_attributes_are_as_on_any_disk(disks: Disks) -> None:
    script = (
        "import os; os.chown('/srv/kept', 1234, 5678); open('/srv/kept/f', 'w').close();"
        "os.setxattr('/srv/kept/f', 'user.etag', b'abc')"
    )
    disks.ssh("v1", f'sudo python3 -c "{script}"')
    disks.bring("killed")
    disks.bring("present", *BOTH)
    read = "import os; s = os.stat('/srv/kept'); print(s.st_uid, s.st_gid, os.getxattr('/srv/kept/f', 'user.etag'))"
    assert disks.ssh("v1", f'sudo python3 -c "{read}"').stdout == "1234 5678 b'abc'\n"
    assert KEPT_FILE.stat().st_mode & 0o777 == 0o600


def test_volumes_outlive_a_stop_and_a_reboot_and_no_other_machine_holds_them(disks: Disks) -> None:
    disks.ssh("v1", "echo stays | sudo tee /srv/own/f /srv/kept/f; sudo touch /run/this-boot")
    disks.ssh("v1", "sudo systemctl reboot", check=False)
    wait_for(
        "v1 is back after its reboot",
        lambda: disks.ssh("v1", "test ! -e /run/this-boot", check=False).returncode == 0,
        timeout_s=60,
    )
    assert disks.ssh("v1", "cat /srv/own/f /srv/kept/f").stdout == "stays\nstays\n"
    # A machine that boots gets a copy of every mount that this computer has then.
    disks.apply("present", "v2")
    disks.bring("stopped")
    assert loops() == []
    assert disks.bring("present", *BOTH).actions == {"v1": "booted"}
    assert disks.ssh("v1", "cat /srv/own/f /srv/kept/f").stdout == "stays\nstays\n"
    disks.apply("absent", "v2")


def test_a_kept_volume_outlives_its_machine_until_it_is_asked_for(disks: Disks) -> None:
    disks.ssh("v1", "echo stays | sudo tee /srv/own/f /srv/kept/f")
    assert disks.bring("absent", *BOTH, check=True).kept == {"v1": ["kept"]}
    assert disks.bring("absent", *BOTH).kept == {"v1": ["kept"]}
    assert (loops(), KEPT_FILE.exists(), disks.fleet().folder.exists()) == ([], True, False)
    again = disks.bring("absent", *BOTH)
    assert (again.actions, again.kept) == ({}, {"v1": ["kept"]})

    assert disks.bring("present", *BOTH).actions["v1"] == "made, volume own made"
    assert disks.ssh("v1", "cat /srv/kept/f; ls /srv/own").stdout == "stays\n"
    gone = disks.fleet().apply("absent", None, delete_volumes=True)
    assert (gone.actions["v1"], gone.kept) == ("removed, deleted the volumes kept", {})
    assert not KEPT_FILE.parents[1].exists()


def test_the_inventorys_last_word_decides_what_is_kept(disks: Disks) -> None:
    disks.ssh("v1", "echo stays | sudo tee /srv/own/f /srv/kept/f")
    own_now_kept, kept_no_more = Volume("own", "/srv/own", 32, keep=True), Volume("kept", "/srv/kept", 32)
    report = disks.bring("present", own_now_kept, kept_no_more)
    words = "volume own will outlive the machine, volume kept will go with the machine"
    assert report.actions == {"v1": words}
    assert disks.bring("present", own_now_kept, kept_no_more).actions == {}
    # Said just before the machine goes, without a run in between.
    assert disks.bring("absent", *BOTH).kept == {"v1": ["kept"]}
    # A machine that is gone already: what was kept is still named, and can still be removed.
    assert disks.bring("absent", OWN, kept_no_more).kept == {"v1": ["kept"]}
    checked = disks.fleet(check=True).apply("absent", None, delete_volumes=True)
    assert (checked.actions, KEPT_FILE.exists()) == ({"v1": "deleted the volumes kept"}, True)
    disks.clear()
    assert not KEPT_FILE.exists()


def test_a_volume_grows_while_its_machine_is_off_and_never_shrinks(disks: Disks) -> None:
    disks.ssh("v1", "echo stays | sudo tee /srv/own/f")
    larger, smaller = Volume("own", "/srv/own", 64), Volume("own", "/srv/own", 16)
    with pytest.raises(NspawnError, match=r"v1 runs, and its volumes \(own\).*`-e state=stopped --limit v1`"):
        disks.bring("present", larger, KEPT)
    with pytest.raises(NspawnError, match=r"v1 runs, and its volumes \(more\)"):
        disks.bring("present", *BOTH, Volume("more", "/srv/more", 16))
    disks.bring("stopped")
    with pytest.raises(NspawnError, match=r"own of v1 has 32 MB and shall have 16.*Write `size_mb: 32` or more"):
        disks.bring("present", smaller, KEPT)
    with pytest.raises(NspawnError, match=r"No free disk for volumes: .* and \d{8} MB are needed.*set ARCHES_STATE"):
        disks.bring("present", *BOTH, Volume("huge", "/srv/huge", 16_000_000))  # ext4 takes no more
    assert disks.bring("present", larger, KEPT, check=True).actions["v1"] == "booted, volume own grown"
    assert disks.bring("present", larger, KEPT).actions["v1"] == "booted, volume own grown"
    assert int(disks.ssh("v1", "df --output=size -m /srv/own | tail -1").stdout) > 45
    assert disks.ssh("v1", "cat /srv/own/f").stdout == "stays\n"
    assert disks.own_file.stat().st_mode & 0o777 == 0o600
    assert disks.bring("present", larger, KEPT).actions == {}


def test_an_orphans_volumes_are_free_for_its_next_boot(disks: Disks) -> None:
    disks.ssh("v1", "echo stays | sudo tee /srv/own/f && sync")
    found = disks.machine("v1").processes()
    for pid in (found.keeper, found.supervisor):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_for("the keeper is gone", lambda: disks.machine("v1").processes().keeper is None, timeout_s=5)
    assert disks.bring("present", *BOTH).actions == {"t3-v1": "ended an orphan", "v1": "booted"}
    assert disks.ssh("v1", "cat /srv/own/f").stdout == "stays\n"
    assert len(loops()) == 2


RUN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from machines.test_volumes import BOTH, Disks
Disks("t3", Path(sys.argv[3]), "v1").bring("present", *BOTH)
"""


def test_a_run_that_is_cut_off_is_continued_by_the_next(disks: Disks) -> None:
    disks.clear()
    # Cut off once while a file was being made,
    half = KEPT_FILE.with_suffix(".new")
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half of a file system")
    # and once as soon as the first volume is attached.
    paths = [str(REPOSITORY / "tests"), str(REPOSITORY / "ansible/plugins/module_utils"), str(disks.state_dir)]
    run = subprocess.Popen([sys.executable, "-c", RUN, *paths])
    wait_for("a volume is attached", loops, timeout_s=20, interval_s=0.005)
    run.kill()
    run.wait()
    disks.bring("present", *BOTH)
    disks.ssh("v1", "sudo touch /srv/own/f /srv/kept/f")
    assert len(loops()) == 2
    disks.bring("absent", *BOTH)
    assert (loops(), [path.name for path in KEPT_FILE.parent.iterdir()]) == ([], ["kept.ext4"])


def test_a_file_that_somebody_else_has_attached_is_not_mounted_twice(
    disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.bring("stopped")
    monkeypatch.setattr(volumes_module, "RELEASE_SECONDS", 0.2)
    device = subprocess.check_output(["losetup", "--find", "--show", KEPT_FILE], text=True).strip()
    try:
        with pytest.raises(NspawnError, match=f"still attached to {device}.*`losetup --detach {device}`"):
            disks.bring("present", *BOTH)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert disks.bring("present", *BOTH).actions == {"v1": "booted"}


def test_without_a_loop_device_nothing_is_begun(disks: Disks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks.bring("stopped")
    (tmp_path / "losetup").write_text("#!/bin/sh\necho 'losetup: cannot find an unused loop device' >&2\nexit 1\n")
    (tmp_path / "losetup").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(NspawnError, match=r"none is free here \(losetup: cannot find.*`modprobe loop`"):
            disks.bring("present", *BOTH)
    assert not os.path.ismount(disks.machine("v1").root)
    assert disks.bring("present", *BOTH).actions == {"v1": "booted"}


def test_a_damaged_volume_is_named(disks: Disks) -> None:
    disks.bring("stopped")
    with disks.own_file.open("r+b") as file:
        file.write(b"\xff" * (1 << 20))
    says = rf"volume {disks.own_file} is damaged.*`e2fsck -f {disks.own_file}`, or remove that file"
    with pytest.raises(NspawnError, match=says):
        disks.bring("present", *BOTH)
    disks.own_file.unlink()
    assert disks.bring("present", *BOTH).actions["v1"] == "booted, volume own made"

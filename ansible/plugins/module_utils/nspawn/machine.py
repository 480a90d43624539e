"""One machine: its disk (an overlay above the image), its identity, and its life."""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from . import keeper
from .cgroup import Groups, groups_for
from .network import Network, link_name, remove_link, silence
from .processes import Processes, scan_shared
from .spec import Spec, Volume
from .system import NspawnError, run, wait_until, write_file
from .volumes import Volumes

_CONSOLE_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Record(Spec):
    """What is remembered about a machine: its spec, the image tree below its disk, its public host key."""

    image: str
    host_key: str = ""


class Machine:
    """A machine in `directory`, called `full_name` on this computer and by its directory's name by itself.

    Volumes that outlive it lie in the folder `kept`.
    """

    def __init__(self, directory: Path, full_name: str, network: Network, kept: Path) -> None:
        self.directory = directory
        self.name = directory.name
        self.full_name = full_name
        self.network = network
        self.link = link_name(full_name)
        self.root = directory / "root"
        self.console = directory / "console.log"
        self.volumes = Volumes(directory, kept)

    def record(self) -> Record | None:
        """Return what is remembered about the machine; None when it was never made."""
        try:
            written = json.loads((self.directory / "machine.json").read_text())
        except FileNotFoundError:
            return None
        # A checkout of another time may have written more, or less.
        known = {field.name: written[field.name] for field in fields(Record) if field.name in written}
        return Record(**{**known, "volumes": tuple(Volume(**volume) for volume in known.get("volumes", ()))})

    def remember(self, record: Record) -> None:
        """Write the machine's record."""
        write_file(self.directory / "machine.json", json.dumps(asdict(record), indent=1))

    def processes(self, age: float = 0.05) -> Processes:
        """Return the machine's processes as they were at most `age` seconds ago."""
        return scan_shared(age).get(self.full_name, Processes())

    # Before it runs

    def prepare(self, spec: Spec, image: Path, public_key: str, resolv_conf: str) -> None:
        """Mount the disk and write into it what makes the machine this one. Needed before each boot, safe to repeat.

        A machine that was never made stands on the image tree `image`; one that was stays on its own.
        """
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)
        if not (self.directory / "made").exists():
            (self.directory / "made").touch()  # its date is the age of what is on the disk
        made = self.record() or Record(**vars(spec), image=str(image))
        self.volumes.make(spec.volumes)
        self._mount(Path(made.image))
        self._write_identity(spec, public_key, resolv_conf)
        host_key = self.root / "etc/ssh/ssh_host_ed25519_key"
        if not host_key.exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", spec.name, "-f", host_key)
        public_host_key = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        self.remember(replace(made, **vars(spec), host_key=public_host_key))

    def _write_identity(self, spec: Spec, public_key: str, resolv_conf: str) -> None:
        etc = self.root / "etc"
        write_file(etc / "hostname", f"{spec.name}\n")
        write_file(etc / "resolv.conf", resolv_conf)
        if not (etc / "machine-id").exists():
            write_file(etc / "machine-id", f"{uuid.uuid4().hex}\n", mode=0o444)
            write_file(etc / "hosts", f"127.0.0.1 localhost\n{spec.address} {spec.name}\n")
        network = (
            "# Written by the machine provider before each boot.\n[Match]\nName=host0\n\n[Network]\n"
            f"Address={spec.address}/{self.network.subnet.prefixlen}\nGateway={self.network.gateway}\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\n"
        )
        write_file(etc / "systemd/network/10-host0.network", network)
        ssh_folder = self.root / "home/ops/.ssh"
        ops = ssh_folder.stat()
        write_file(ssh_folder / "authorized_keys", f"{public_key}\n", mode=0o600, owner=(ops.st_uid, ops.st_gid))

    def _mount(self, image: Path) -> None:
        """Mount the overlay, anew: a mount that outlived its machine may be of another time."""
        self._unmount()
        if not image.is_dir():
            raise NspawnError(
                f"{self.name} was made from the image {image}, which is gone. Make the machine again: "
                f"`-e state=absent --limit {self.name}`, then `-e state=present`."
            )
        layers = f"lowerdir={image},upperdir={self.directory / 'upper'},workdir={self.directory / 'work'}"
        done = run("mount", "-t", "overlay", "arches", "-o", layers, self.root, check=False)
        if done.returncode:
            raise NspawnError(
                f"The disk of {self.name} cannot be mounted ({done.stderr.strip()}). It needs ext4, xfs, btrfs or "
                f"tmpfs below {self.directory}: set ARCHES_STATE to a directory on one of them."
            )

    def _unmount(self) -> None:
        while os.path.ismount(self.root):
            run("umount", self.root)

    # Its life

    def boot(self, spec: Spec, seconds: float) -> float:
        """Start the machine and wait until `ops` can log in; return how many seconds that took."""
        start = time.monotonic()
        if self.console.exists() and self.console.stat().st_size > _CONSOLE_BYTES:
            self.console.unlink()
        groups = self._groups()
        groups.limit(spec.memory_mb, spec.cpus)
        mounts = self.volumes.mounts(spec.volumes)
        process = keeper.start(self.full_name, groups, self.root, self.network.bridge, self.console, mounts)
        self.wait_for_login(spec.address, seconds, ended=lambda: process.poll() is not None)
        return time.monotonic() - start

    def limit(self, spec: Spec) -> None:
        """Limit memory and cores of the whole machine, also of a running one."""
        self._groups().limit(spec.memory_mb, spec.cpus)

    def _groups(self) -> Groups:
        return groups_for(self.full_name, self.directory / "groups")

    def wait_for_login(self, address: str, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
        """Wait until sshd answers and lets users in; raises NspawnError after `seconds`, or when `ended` holds."""
        init: int | None = None

        def ready() -> bool:
            nonlocal init
            if init is None or not Path(f"/proc/{init}").exists():
                init = self.processes(age=0.2).init
            return ended() or (init is not None and _lets_in(init, address))

        if wait_until(ready, seconds, pause=0.1) and not ended():
            return
        lines = self.console.read_text(errors="replace").splitlines()[-5:] if self.console.exists() else []
        what = "ended while it booted" if ended() else f"did not answer on {address} port 22 within {seconds:.0f} s"
        raise NspawnError(f"{self.name} {what}. The end of {self.console}: {' | '.join(lines)}")

    def stop(self, seconds: float) -> None:
        """Power the machine off properly; one that is not off after `seconds` is killed."""
        supervisor = self.processes().supervisor
        if supervisor:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGTERM)  # systemd-nspawn asks the guest to power off
            wait_until(lambda: not self.processes().all, seconds, pause=0.1)
        self.kill()

    def kill(self) -> None:
        """Cut the power, and the link first: peers see silence and no closed socket. Nothing is stopped or synced."""
        silence(self.link)

        def gone() -> bool:
            processes = self.processes()
            # The keeper first, or it would act upon the guest's end. The guest's PID 1 takes all of the guest with it,
            # and systemd-nspawn then ends by itself; were that killed, it would leave the guest as an orphan.
            for pid in (processes.keeper, processes.init) if processes.init else processes.all:
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            return not processes.all

        # Eight machines at once may take the kernel a while to take down; a minute means stuck.
        if not wait_until(gone, seconds=60, pause=0.1):
            raise NspawnError(f"{self.name} does not end: processes {self.processes().all} are stuck in the kernel.")
        self.clean()

    def clean(self) -> None:
        """Remove what a machine that does not run leaves on this computer, apart from its disk."""
        self._unmount()
        remove_link(self.link)
        self._groups().remove()
        for part in ("propagate", "unix-export"):
            shutil.rmtree(f"/run/systemd/nspawn/{part}/{self.full_name}", ignore_errors=True)
        self.volumes.release()

    def destroy(self) -> None:
        """Remove the machine with its disk."""
        self.kill()
        if self.directory.exists():
            shutil.rmtree(self.directory)


def _lets_in(init: int, address: str) -> bool:
    """Whether the machine with the process `init` as its PID 1 answers on ssh, and lets more than root in."""
    # Looked at from outside first: connecting before the machine listens can cost a second of waiting.
    if not _listens(init, 22) or Path(f"/proc/{init}/root/run/nologin").exists():
        return False
    try:
        with socket.create_connection((address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _listens(pid: int, port: int) -> bool:
    """Whether anything listens on `port` in the network of process `pid`."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A" and int(local.rsplit(":", 1)[1], 16) == port:
                    return True
    return False

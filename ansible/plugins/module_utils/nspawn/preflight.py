"""What this computer must have before anything is made on it."""

import os
import shutil
from pathlib import Path

from .system import NspawnError, run

# command -> Debian package that brings it
TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh-keygen": "openssh-client",
    "mount": "mount",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# The file watchers that one user may have. All guests are the same user here, each takes about four, and one that
# gets none ends as soon as it boots; the kernel's own 128 are for about thirty machines.
WATCHERS = Path("/proc/sys/fs/inotify/max_user_instances")
_ENOUGH_WATCHERS = 1024
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def require_root() -> None:
    """Raise NspawnError unless the caller is root."""
    if os.geteuid() != 0:
        raise NspawnError("Local machines need root, for mounts and networks: run it as root, or as a user with sudo.")


def require_tools() -> None:
    """Raise NspawnError naming every Debian package that is missing. Adds the sbin folders to PATH first."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SBIN}"
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if not KEYRING.exists():
        missing.add("debian-archive-keyring")
    if missing:
        raise NspawnError(
            f"Local machines need packages that are not here: apt-get install {' '.join(sorted(missing))}"
        )


def raise_watchers() -> None:
    """Let this computer's root have as many file watchers as a hundred machines and more need."""
    if int(WATCHERS.read_text()) < _ENOUGH_WATCHERS:
        WATCHERS.write_text(str(_ENOUGH_WATCHERS))


def require_loop_devices() -> None:
    """Raise NspawnError when this computer has no loop device for a volume."""
    done = run("losetup", "--find", check=False)
    if done.returncode:
        raise NspawnError(
            f"Volumes need a loop device and none is free here ({done.stderr.strip()}): run `modprobe loop`, detach "
            "what is not needed (`losetup --list`), or give a container /dev/loop-control and /dev/loop*."
        )


def require_space(directory: Path, megabytes: int, purpose: str, variable: str) -> None:
    """Raise NspawnError when the disk of `directory` has fewer than `megabytes` free.

    `variable` names the environment variable that moves the directory elsewhere.
    """
    existing = next(folder for folder in (directory, *directory.parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free // 2**20
    if free < megabytes:
        raise NspawnError(
            f"No free disk for {purpose}: {existing} has {free} MB left and {megabytes} MB are needed. "
            f"Free some space there, or set {variable} to a directory on a larger disk."
        )

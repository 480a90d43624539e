"""The process above a machine: starts systemd-nspawn, and starts it again when the guest reboots.

It also mounts the machine's volumes, in a mount namespace of its own that ends with the machine.

systemd-nspawn ends with its guest: with status 133 when the guest asked for a reboot, with another one when it was
powered off or killed. A shell is enough to tell them apart, costs half a megabyte, and keeps nothing of ours in memory.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cgroup import Groups

# systemd-nspawn wants a group of its own that holds no other process, so the keeper sits in a subgroup.
_SCRIPT = r"""
eval "groups=\"$1\""; machine=$2; shift 2
for group in $groups; do
    mkdir -p "$group/keeper"
    echo $$ > "$group/keeper/cgroup.procs"
done
while [ "$1" != -- ]; do
    mount -o loop,discard "$1" "$2" || {
        echo "The volume $1 cannot be mounted: is any loop device free (losetup --list)?"
        exit 1
    }
    mkdir -p "$2/data" # what the machine sees: an empty folder, without a lost+found
    shift 2
done
shift
while :; do
    sh -c 'for group in $0; do echo $$ > "$group/cgroup.procs"; done; exec "$@"' "$groups" "$@"
    status=$?
    [ "$status" = 133 ] || { echo "systemd-nspawn ended with status $status."; exit "$status"; }
    rm -rf "/run/systemd/nspawn/propagate/$machine" "/run/systemd/nspawn/unix-export/$machine"
done
"""


@dataclass(frozen=True)
class Mount:
    """A volume: its file, a folder of this computer to mount it at, and its path in the machine."""

    file: Path
    here: Path
    there: str


def start(
    machine: str, groups: Groups, root: Path, bridge: str, console: Path, volumes: list[Mount]
) -> subprocess.Popen[bytes]:
    """Start the keeper of `machine` whose file system is `root`; its console goes to the file `console`."""
    nspawn = [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        f"--directory={root}",
        f"--machine={machine}",
        f"--network-bridge={bridge}",
        "--register=no",
        "--keep-unit",
        "--settings=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        *(f"--bind={volume.here}/data:{volume.there}" for volume in volumes),
    ]
    own_mounts = ["unshare", "--mount", "--propagation", "slave"] if volumes else []
    mounts = [str(path) for volume in volumes for path in (volume.file, volume.here)]
    script = ["sh", "-c", _SCRIPT, f"keeper-of-{machine}", groups.where(), machine, *mounts, "--", *nspawn]
    argv = [*groups.command(), *own_mounts, *script]
    environment = {"PATH": os.environ["PATH"], "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with console.open("ab") as log:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/", start_new_session=True
        )

"""Unpack a release beside the earlier ones and make it the current one. The target side of the action `release`.

Layout: `<root>/releases/<version>/` (never changed once it is there), `<root>/records/<version>.json` (what is known of
it, where a record is wanted) and `<root>/current`, a link that is swapped by rename. Nothing is unpacked before the
archive is known to be signed by the fleet's key, made for this host, and to find room. A release that was cut off half
way is invisible: it gets its name only when it is whole and on the disk.
"""

from __future__ import annotations

import compileall
import contextlib
import datetime
import errno
import hashlib
import json
import os
import platform
import py_compile
import shutil
import subprocess
import sys
import tarfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

PENDING = "/var/lib/arches/pending"
# What a release leaves free on the disk, in bytes: the host goes on writing logs while it is unpacked.
RESERVE = 200 * 1024 * 1024


class ReleaseError(Exception):
    """What is wrong with the release and what to do about it. Nothing has changed."""


def require_sum(archive: str, sha256: str) -> None:
    """The archive has arrived as it was sent. Raises ReleaseError."""
    with open(archive, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ReleaseError(f"the archive's SHA-256 is {found}, not {sha256}: build or fetch it again.")


def require_signature(archive: str, signature: str, public_key: str) -> None:
    """The archive is signed by the fleet's key. Raises ReleaseError."""
    if not signature.strip():
        raise ReleaseError("the archive is not signed: build it again, or fetch its .minisig as well.")
    file = f"{archive}.minisig"
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(signature)
    command = ["minisign", "-V", "-P", public_key, "-x", file, "-m", archive]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ReleaseError("minisign, which checks signatures, is not installed on this host: run site.yml.") from None
    finally:
        os.unlink(file)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ReleaseError(
            f"the archive is not signed by the fleet's key, release.pub: {public_key} (minisign: {said})."
        )


def manifest_of(archive: str) -> dict[str, t.Any]:
    """The manifest, which is an archive's first member. Raises ReleaseError."""
    with tarfile.open(archive) as tar:
        first = tar.next()
        stream = tar.extractfile(first) if first is not None and first.name == "manifest.json" else None
        if stream is None:
            raise ReleaseError("the archive does not begin with a manifest: it is no release of this project.")
        found: dict[str, t.Any] = json.load(stream)
    return found


def require_fit(manifest: dict[str, t.Any], name: str, version: str) -> None:
    """The release is the one that was asked for, and made for a host like this one. Raises ReleaseError."""
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    expected = {"name": name, "version": version, "architecture": platform.machine(), "python": python}
    for key, value in expected.items():
        if manifest[key] != value:
            raise ReleaseError(
                f"the archive's {key} is {manifest[key]}, and this host needs {value}: build it for that."
            )


def require_room(folder: str, needed: int) -> None:
    """There is room for so many bytes below a folder, which may not be there yet. Raises ReleaseError."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if free < needed + RESERVE:
        short = (needed + RESERVE - free) // 1024**2 + 1
        raise ReleaseError(
            f"{folder} has {free // 1024**2} MiB left, and the release needs {needed // 1024**2} with "
            f"{RESERVE // 1024**2} to spare: free {short} MiB."
        )


def unpack(archive: str, target: str) -> None:
    """Unpack an archive that was checked; the directory appears under its name only when it is complete."""
    parent, name = os.path.split(target)
    partial = os.path.join(parent, f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial, mode=0o755)
    try:
        with tarfile.open(archive) as tar:
            # Not the filter `data`: it refuses the link to the host's interpreter. The content is verified.
            tar.extractall(partial, filter="tar")
        # The API's user cannot write here, and nobody changes a release: hence unchecked hashes. A module that does not
        # compile says so when it is imported.
        compileall.compile_dir(
            partial,
            quiet=2,
            stripdir=partial,
            prependdir=target,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        # Never served until it is made the current one: among the first to go.
        os.utime(partial, (0, 0))
        os.sync()
        os.rename(partial, target)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def owe(marker: str, action: str) -> None:
    """Note in the pending marker that an action has to follow, before the swap, so that no interruption forgets it."""
    actions: list[str] = []
    if os.path.exists(marker):
        with open(marker, encoding="utf-8") as stream:
            actions = json.load(stream)
    os.makedirs(os.path.dirname(marker), exist_ok=True)
    write(marker, json.dumps(sorted({*actions, action})))


def write(path: str, text: str) -> None:
    """Put a file in place in one piece."""
    with open(f"{path}.new", "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(f"{path}.new", path)


def swap(link: str, target: str) -> None:
    """Point a link elsewhere; there is no moment without it."""
    fresh = f"{link}.new"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    os.symlink(target, fresh)
    os.replace(fresh, link)


def is_recorded(file: str, release: dict[str, t.Any]) -> bool:
    """Whether a record is there and says this; the time in it does not count."""
    try:
        with open(file, encoding="utf-8") as stream:
            known = json.load(stream)
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(known, dict) and {**known, "at": None} == {**release, "at": None}


def record(file: str, release: dict[str, t.Any]) -> None:
    """Say on the host what it was given, and when."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")  # noqa: UP017
    write(file, json.dumps({**release, "at": now}) + "\n")


def stale(releases: str, used: set[str], keep: int) -> list[str]:
    """The releases to remove so that `keep` stay, those least recently current first; never one of `used`."""
    if not os.path.isdir(releases):
        return []
    found = [entry for entry in os.scandir(releases) if entry.is_dir() and not entry.name.startswith(".")]
    old = sorted((entry for entry in found if entry.name not in used), key=lambda entry: entry.stat().st_mtime)
    return [entry.path for entry in old[: max(0, len(found) - keep)]]


def stage(params: dict[str, t.Any], target: str) -> None:
    """Unpack the archive once everything that can be checked has been. Raises ReleaseError."""
    archive, parent, release = params["archive"], os.path.dirname(target), params["release"]
    require_sum(archive, release["sha256"])
    if params["public_key"] is not None:
        require_signature(archive, params["signature"], params["public_key"])
        manifest = manifest_of(archive)
        require_fit(manifest, release["name"], release["version"])
        require_room(parent, manifest["space"])
    unpack(archive, target)


def apply(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Bring the host to the wanted release and return the module's result.

    `wanted` is true in the result when the archive has to be sent first.

    :raises ReleaseError: naming the fix.
    """
    releases, link = os.path.join(params["root"], "releases"), os.path.join(params["root"], "current")
    release, version = params["release"], params["release"]["version"]
    target, known = os.path.join(releases, version), os.path.join(params["root"], "records", f"{version}.json")
    before = os.path.basename(os.readlink(link)) if os.path.islink(link) else ""
    unpacked = os.path.isdir(target)
    moves = params["activate"] and before != version
    # The record that goes with the release, and the host's own, which names the current one.
    keeps = bool(params["record"]) and not is_recorded(known, release)
    recorded = not params["record"] or is_recorded(params["record"], release)
    names = params["activate"] and not recorded
    result = {
        "changed": not unpacked or moves or names or keeps,
        "previous": before,
        "path": target,
        "recorded": recorded,
        "wanted": False,
    }
    if moves:
        result["diff"] = {"before": f"current: {before}\n", "after": f"current: {version}\n"}
    if check:
        return result
    if not unpacked:
        if params["archive"] is None:
            require_room(releases, release.get("size", 0) + release.get("space", 0))
            return {**result, "wanted": True}
        stage(params, target)
    if keeps:
        os.makedirs(os.path.dirname(known), exist_ok=True)
        record(known, release)
    if moves:
        owe(os.path.join(PENDING, params["owner"]), "restart")
        os.utime(target)
        swap(link, os.path.join("releases", version))
    if names:
        record(params["record"], release)
    for path in stale(releases, {before, version}, params["keep"]) if params["keep"] else []:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(params["root"], "records", f"{os.path.basename(path)}.json"))
        shutil.rmtree(path)
        result["changed"] = True
    return result


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "release": {"type": "dict", "required": True},
            "archive": {"type": "path"},
            "signature": {"type": "str", "default": ""},
            "public_key": {"type": "str", "no_log": False},
            "activate": {"type": "bool", "default": True},
            "record": {"type": "path"},
            "keep": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    # What serves here goes first.
    os.nice(10)
    try:
        module.exit_json(**apply(module.params, module.check_mode))
    except (ReleaseError, tarfile.TarError) as error:
        release = f"{module.params['release']['name']} {module.params['release']['version']}"
        module.fail_json(msg=f"{release} was not unpacked, and nothing was changed: {error}")
    except OSError as error:
        what = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        module.fail_json(msg=f"{error.filename}: {what}. Nothing was switched; put that right and run again.")


if __name__ == "__main__":
    main()

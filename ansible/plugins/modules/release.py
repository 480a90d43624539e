"""Unpack a release beside the earlier ones and make it the current one. The target side of the action `release`.

Layout: `<root>/releases/<version>/` (never changed once it is there) and `<root>/current`, a link that is swapped by
rename. A release that was cut off half way is invisible: it gets its name only when it is whole and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

PENDING = "/var/lib/arches/pending"


class ReleaseError(Exception):
    """What is wrong with the release and what to do about it."""


def unpack(archive: str, sha256: str, target: str) -> None:
    """Unpack a verified archive; the directory appears under its name only when it is complete.

    :raises ReleaseError: when the archive is not the one that was built.
    """
    with open(archive, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise ReleaseError(f"{target}: the archive's SHA-256 is {found}, not {sha256}. Run ansible/release.yml again.")
    parent, name = os.path.split(target)
    partial = os.path.join(parent, f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial, mode=0o755)
    with tarfile.open(archive) as tar:
        # Not the filter `data`: it refuses the link to the host's interpreter. The content is verified.
        tar.extractall(partial, filter="tar")
    os.sync()
    os.rename(partial, target)


def owe(marker: str, action: str) -> None:
    """Note in the pending marker that an action has to follow, before the swap, so that no interruption forgets it."""
    actions: list[str] = []
    if os.path.exists(marker):
        with open(marker, encoding="utf-8") as stream:
            actions = json.load(stream)
    os.makedirs(os.path.dirname(marker), exist_ok=True)
    with open(f"{marker}.new", "w", encoding="utf-8") as stream:
        json.dump(sorted({*actions, action}), stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(f"{marker}.new", marker)


def swap(link: str, target: str) -> None:
    """Point a link elsewhere; there is no moment without it."""
    fresh = f"{link}.new"
    if os.path.lexists(fresh):
        os.unlink(fresh)
    os.symlink(target, fresh)
    os.replace(fresh, link)


def stale(releases: str, used: set[str], keep: int) -> list[str]:
    """Releases beyond the `keep` most recently used ones, oldest first; never one of `used`."""
    if not os.path.isdir(releases):
        return []
    found = [entry for entry in os.scandir(releases) if entry.is_dir() and not entry.name.startswith(".")]
    found.sort(key=lambda entry: entry.stat().st_mtime)
    return [entry.path for entry in found[: max(0, len(found) - keep)] if entry.name not in used]


def apply(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Bring the host to the wanted release and return the module's result.

    `wanted` is true in the result when the archive has to be sent first.

    :raises ReleaseError: naming the fix.
    """
    releases, link = os.path.join(params["root"], "releases"), os.path.join(params["root"], "current")
    target = os.path.join(releases, params["version"])
    before = os.path.basename(os.readlink(link)) if os.path.islink(link) else ""
    unpacked = os.path.isdir(target)
    moves = params["activate"] and before != params["version"]
    result = {"changed": not unpacked or moves, "previous": before, "path": target, "wanted": False}
    if moves:
        result["diff"] = {"before": f"current: {before}\n", "after": f"current: {params['version']}\n"}
    if check:
        return result
    if not unpacked:
        if params["archive"] is None:
            return {**result, "wanted": True}
        unpack(params["archive"], params["sha256"], target)
        os.utime(target)
    if moves:
        owe(os.path.join(PENDING, params["owner"]), "restart")
        os.utime(target)
        swap(link, os.path.join("releases", params["version"]))
    if result["changed"]:
        for path in stale(releases, {before, params["version"]}, params["keep"]):
            shutil.rmtree(path)
    return result


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "owner": {"type": "str", "required": True},
            "root": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "sha256": {"type": "str", "required": True},
            "archive": {"type": "path"},
            "activate": {"type": "bool", "default": True},
            "keep": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**apply(module.params, module.check_mode))
    except (ReleaseError, tarfile.TarError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}. Nothing was switched; put that right and run again.")


if __name__ == "__main__":
    main()

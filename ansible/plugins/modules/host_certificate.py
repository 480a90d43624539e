"""Keys of this host and what it has of certificates. The target side of the action `host_certificate`; use that.

One run creates missing private keys (EC P-256), puts owner and mode right, and returns for each key a signing request
and the present certificate. A private key never leaves the host.
"""

from __future__ import annotations

import grp
import os
import stat
import typing as t

from ansible.module_utils.basic import AnsibleModule

Run = t.Callable[[list[str]], str]


class CertificateError(Exception):
    """What is missing on this host and what to do about it."""


def group_id(name: str, check: bool) -> int:
    """Numeric id of the readers' group; -1 in check mode before its package is there. Raises CertificateError."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if check:
            return -1
        raise CertificateError(f"Group {name} does not exist on this host. Install the package {name} first.") from None


def read(path: str) -> str | None:
    """Content of a file; None if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def create_key(path: str, gid: int, run: Run) -> None:
    """Make a private key, on the disk in one piece or not at all."""
    pem = run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    temporary = f"{path}.arches-new"
    if os.path.lexists(temporary):
        os.unlink(temporary)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(pem)
        file.flush()
        os.fchown(file.fileno(), -1, gid)
        os.fchmod(file.fileno(), 0o640)
        os.fsync(file.fileno())
    os.rename(temporary, path)


def correct(path: str, uid: int, gid: int, mode: int, check: bool) -> bool:
    """Owner and mode as they should be, if there is such a file; whether that was a change."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (uid, gid, mode):
        return False
    if not check:
        os.chown(path, uid, gid)
        os.chmod(path, mode)
    return True


def examine(folder: str, names: list[str], create: list[str], group: str, check: bool, run: Run) -> dict[str, t.Any]:
    """The module's result. `names` are what certificates are called, `create` those whose key is made if missing."""
    uid, gid = os.geteuid(), group_id(group, check)
    if not check:
        os.makedirs(folder, mode=0o755, exist_ok=True)
    found: dict[str, t.Any] = {}
    notes = []
    for name in names:
        key, certificate = os.path.join(folder, f"{name}.key"), os.path.join(folder, f"{name}.crt")
        if not os.path.exists(key) and name in create:
            notes.append(f"{key}: new key")
            if not check:
                create_key(key, gid, run)
        for path, mode in ((key, 0o640), (certificate, 0o644)):
            if correct(path, uid, gid, mode, check):
                notes.append(f"{path}: owner and mode")
        request = run(["openssl", "req", "-new", "-key", key, "-subj", f"/CN={name}"]) if os.path.exists(key) else None
        found[name] = {"request": request, "certificate": read(certificate)}
    if correct(os.path.join(folder, "ca.crt"), uid, gid, 0o644, check):
        notes.append(f"{folder}/ca.crt: owner and mode")
    ca = read(os.path.join(folder, "ca.crt"))
    return {"changed": bool(notes), "notes": notes, "found": found, "ca": ca, "uid": uid}


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "folder": {"type": "path", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "create": {"type": "list", "elements": "str", "required": True},
            "group": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )

    def run(command: list[str]) -> str:
        code, out, err = module.run_command(command)
        if code != 0:
            raise CertificateError(f"{' '.join(command[:2])} failed: {err.strip()}")
        return str(out)

    try:
        given = module.params
        result = examine(given["folder"], given["names"], given["create"], given["group"], module.check_mode, run)
    except (CertificateError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

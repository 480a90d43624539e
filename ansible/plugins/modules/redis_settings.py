"""Compare a running Redis and its Sentinel with what git says, and set the differences in both.

    - name: Settings are what git says
      redis_settings:
        access: {ca_file: /etc/arches/tls/ca.crt, user: admin}
        passwords: ["..."]
        certificate: /etc/arches/tls/host.crt
        marker: /var/lib/arches/pending/redis
        load_users: true
        server: {port: 6379, file: /etc/redis/server.conf, live: {maxmemory: 1}, fixed: {tls-port: 6379}}
        sentinel: {port: 26379, file: ..., live: {announce-ip: ...}, fixed: {...}, monitor: arches, set: {quorum: 2}}
        secrets: {server: {masterauth: "..."}, sentinel: {sentinel-pass: "..."}, set: {auth-pass: "..."}}
        leader: {address: 192.0.2.31, port: 6379}

Both rewrite their configuration files themselves, so a template would fight them. `live` settings are read from the
process (CONFIG GET, SENTINEL CONFIG GET, SENTINEL MASTER), set through it and written down by it. `fixed` ones count at
the start only: they are compared with the file, changed there, and the marker then asks for the restart. Values are
written as Redis itself writes them: bytes as numbers, "yes" and "no" in quotes.

Result: changed, diff, restart (Redis owes one, the marker says so), restart_sentinel (its file or its certificate
changed).
"""

from __future__ import annotations

import json
import os
import shlex
import ssl
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.resp import ConnectError, Connection, ReplyError

Settings = dict[str, str]


class SettingsError(Exception):
    """What could not be set, and what to do about it."""


def as_text(settings: t.Mapping[str, t.Any]) -> Settings:
    """Settings as Redis tells them."""
    return {key: str(value) for key, value in settings.items()}


def differences(now: Settings, wanted: Settings) -> Settings:
    """The wanted settings that are otherwise now."""
    return {key: value for key, value in wanted.items() if now.get(key) != value}


def words_of(line: str) -> list[str]:
    """A configuration line's words without quotes; [] for a comment."""
    return [] if line.lstrip().startswith("#") else shlex.split(line)


def split_key(words: list[str], keys: t.Container[str]) -> tuple[str, str] | None:
    """Which of the keys a line sets, and its value. Keys may have several words: `sentinel auth-pass arches`."""
    for length in range(min(3, len(words)), 0, -1):
        key = " ".join(words[:length])
        if key in keys:
            return key, " ".join(words[length:])
    return None


def read_file(path: str, keys: t.Container[str]) -> Settings:
    """The settings of these keys in a configuration file."""
    with open(path, encoding="utf-8") as file:
        found = [split_key(words_of(line), keys) for line in file]
    return dict(pair for pair in found if pair)


def write_file(path: str, changes: Settings) -> None:
    """Change settings in a configuration file that its process also writes: same owner and mode, one rename."""
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if split_key(words_of(line), changes) is None]
    lines += [f"{key} {value}\n" if value else f'{key} ""\n' for key, value in changes.items()]
    status = os.stat(path)
    temporary = f"{path}.arches-new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, status.st_mode & 0o7777)
        os.fsync(descriptor)
    os.replace(temporary, path)


def ask_restart(marker: str) -> None:
    """Note that Redis has to be restarted, beside what the marker says already."""
    actions: list[str] = []
    if os.path.exists(marker):
        with open(marker, encoding="utf-8") as file:
            actions = json.load(file)
    os.makedirs(os.path.dirname(marker), exist_ok=True)
    temporary = f"{marker}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(sorted({*actions, "restart"}), file)
    os.replace(temporary, marker)


class Part:
    """What Redis and Sentinel have in common: a connection, a file, wanted settings, and what was found."""

    def __init__(self, name: str, given: dict[str, t.Any], connection: Connection, check: bool) -> None:
        self.name, self.given, self.connection, self.check = name, given, connection, check
        self.found: list[str] = []  # one line of diff each
        self.needs_restart = False

    def note(self, now: Settings, changes: Settings, secret: t.Container[str]) -> None:
        """Add changes to the diff; a secret's value is never part of it."""
        for key, value in changes.items():
            shown = "differs (secret, not shown)" if key in secret else f"{now.get(key, '(not set)')} -> {value}"
            self.found.append(f"{self.name}: {key}: {shown}")

    def apply_fixed(self) -> None:
        """Compare what counts at the start with the file and change it there."""
        wanted = as_text(self.given.get("fixed") or {})
        now = read_file(self.given["file"], wanted)
        changes = differences(now, wanted)
        self.note(now, changes, ())
        self.needs_restart = bool(changes)
        if changes and not self.check:
            write_file(self.given["file"], changes)

    def apply_live(self, read: tuple[str, ...], write: tuple[str, ...], secrets: t.Mapping[str, str]) -> bool:
        """Compare with the process and set differences there; True when something was (or would be) set.

        Raises SettingsError when the process writes a value otherwise than git, which would never end.
        """
        wanted = as_text({**(self.given.get("live") or {}), **secrets})
        now = self.connection.table(*read)
        changes = differences(now, wanted)
        self.note(now, changes, secrets)
        if changes and not self.check:
            self.connection.call(*write, *(word for pair in changes.items() for word in pair))
            for key, value in differences(self.connection.table(*read), changes).items():
                raise SettingsError(
                    f"{self.name} does not keep {key} as git writes it ({value!r}). Write the value that "
                    f"`{' '.join(read[:-1])} {key}` shows."
                )
        return bool(changes)


def load_users(part: Part, wanted: bool) -> None:
    """Let the process read its users again from the file that was changed."""
    if wanted:
        part.found.append(f"{part.name}: users are read again")
        if not part.check:
            part.connection.call("ACL", "LOAD")


def shows_old_certificate(part: Part, path: str) -> bool:
    """Whether the process serves another certificate than the one in the file."""
    with open(path, encoding="utf-8") as file:
        pem = file.read()
    first = pem[pem.index("-----BEGIN CERTIFICATE-----") : pem.index("-----END CERTIFICATE-----")]
    return ssl.PEM_cert_to_DER_cert(f"{first}-----END CERTIFICATE-----\n") != part.connection.certificate()


def apply_server(part: Part, certificate: str, secrets: Settings) -> None:
    """Make Redis as git says."""
    live = part.given.get("live") or {}
    keys = (*live, *secrets)
    changed = part.apply_live(("CONFIG", "GET", *keys), ("CONFIG", "SET"), secrets)
    if changed and not part.check:
        part.connection.call("CONFIG", "REWRITE")
    if shows_old_certificate(part, certificate):
        part.found.append("redis: certificate is read again")
        if not part.check:
            files = {key: value for key, value in live.items() if key in ("tls-cert-file", "tls-key-file")}
            part.connection.call("CONFIG", "SET", *(word for pair in files.items() for word in pair))
    part.apply_fixed()


def apply_monitor(part: Part, leader: t.Mapping[str, t.Any], secrets: Settings) -> None:
    """Make Sentinel watch the set. Whom it follows is its own business once it follows somebody."""
    name, wanted = part.given["monitor"], as_text(part.given["set"])
    try:
        now = part.connection.table("SENTINEL", "MASTER", name)
    except ReplyError:
        now = {}
        part.found.append(f"sentinel: follows {leader['address']}")
        if part.check:
            return
        part.connection.call("SENTINEL", "MONITOR", name, leader["address"], leader["port"], wanted["quorum"])
    wanted |= secrets
    # Sentinel does not tell everything; its file, which it writes itself, does.
    lines = {f"sentinel {key} {name}": key for key in wanted if key not in now}
    now |= {lines[line]: value for line, value in read_file(part.given["file"], lines).items()}
    changes = differences(now, wanted)
    part.note(now, changes, secrets)
    if changes and not part.check:
        part.connection.call("SENTINEL", "SET", name, *(word for pair in changes.items() for word in pair))


def apply_sentinel(part: Part, certificate: str, leader: t.Mapping[str, t.Any], secrets: dict[str, Settings]) -> None:
    """Make Sentinel as git says."""
    part.apply_live(("SENTINEL", "CONFIG", "GET", "*"), ("SENTINEL", "CONFIG", "SET"), secrets.get("sentinel", {}))
    apply_monitor(part, leader, secrets.get("set", {}))
    part.apply_fixed()
    if shows_old_certificate(part, certificate):
        part.found.append("sentinel: certificate is read again by a restart")
        part.needs_restart = True


def apply(params: dict[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Compare and set everything; the module's result. Raises SettingsError, ConnectError, ReplyError, OSError."""
    access, secrets, found = params["access"], params["secrets"], []
    with Connection("127.0.0.1", params["server"]["port"], passwords=params["passwords"], **access) as connection:
        server = Part("redis", params["server"], connection, check)
        load_users(server, params["load_users"])
        apply_server(server, params["certificate"], secrets.get("server", {}))
        found += server.found
    if server.needs_restart and not check:
        ask_restart(params["marker"])
    with Connection("127.0.0.1", params["sentinel"]["port"], passwords=params["passwords"], **access) as connection:
        sentinel = Part("sentinel", params["sentinel"], connection, check)
        load_users(sentinel, params["load_users"])
        apply_sentinel(sentinel, params["certificate"], params["leader"], secrets)
        found += sentinel.found
    return {
        "changed": bool(found),
        "restart": server.needs_restart,
        "restart_sentinel": sentinel.needs_restart,
        "diff": [{"prepared": "".join(f"{line}\n" for line in found)}] if found else [],
    }


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "access": {"type": "dict", "required": True},
            "passwords": {"type": "list", "elements": "str", "required": True, "no_log": True},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "certificate": {"type": "path", "required": True},
            "marker": {"type": "path", "required": True},
            "load_users": {"type": "bool", "default": False},
            "server": {"type": "dict", "required": True},
            "sentinel": {"type": "dict", "required": True},
            "leader": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        result = apply(module.params, module.check_mode)
    except (SettingsError, ConnectError, ReplyError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

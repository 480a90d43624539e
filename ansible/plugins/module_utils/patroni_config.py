"""This host's Patroni as its configuration file describes it: where data, programs and etcd are."""

from __future__ import annotations

import base64
import os
import subprocess
import typing as t
from collections.abc import Mapping

from ansible.module_utils.json_https import NoAnswer, ask, tls_context

CONFIG = "/etc/patroni/config.yml"
# What a leader leaves in etcd: whoever restores an earlier state is measured by it, and may not lead.
LEADERS_KEYS = ("leader", "status", "optime/leader", "sync", "failover", "failsafe")


class ConfigError(Exception):
    """What is missing and what to do about it."""


class PatroniConfig:
    """Places and names of one member.

    :param config: the decoded configuration file.
    """

    def __init__(self, config: Mapping[str, t.Any]) -> None:
        self.data: str = config["postgresql"]["data_dir"]
        self.bin: str = config["postgresql"]["bin_dir"]
        self._prefix = f"/{config.get('namespace', 'service').strip('/')}/{config['scope']}/"
        self._etcd = config["etcd3"]

    @classmethod
    def read(cls) -> PatroniConfig:
        """The configuration of this host. Raises ConfigError when it has none."""
        import yaml  # Patroni brings it

        try:
            with open(CONFIG, encoding="utf-8") as stream:
                return cls(yaml.safe_load(stream))
        except FileNotFoundError:
            raise ConfigError(f"{CONFIG} is missing: this host is no member. Run site.yml for it first.") from None

    # Beside the data directory

    def beside(self, kind: str, mark: str) -> str:
        """Path of something that is kept beside the data directory."""
        return f"{self.data}.{kind}-{mark}"

    def kept(self, kind: str) -> list[str]:
        """Paths of what is kept there, oldest first."""
        folder, name = os.path.split(self.data)
        found = sorted(entry for entry in os.listdir(folder) if entry.startswith(f"{name}.{kind}-"))
        return [os.path.join(folder, entry) for entry in found]

    def control(self, folder: str) -> dict[str, str]:
        """What pg_controldata says of a data directory; nothing when there is none, or half of one."""
        done = subprocess.run(
            [f"{self.bin}/pg_controldata", "-D", folder],
            capture_output=True, text=True, check=False, env={"LC_ALL": "C"},
        )  # fmt: skip
        pairs = (line.partition(":") for line in done.stdout.splitlines())
        return {key: value.strip() for key, _, value in pairs} if done.returncode == 0 else {}

    def folder(self) -> str:
        """The data directory, or the one that was set aside last. Raises ConfigError without either."""
        for folder in (self.data, *reversed(self.kept("before"))):
            if self.control(folder):
                return folder
        raise ConfigError(
            f"There is no data on this host ({self.data}). Choose another host, or run site.yml for it first."
        )

    # etcd

    def alive(self) -> list[str]:
        """Names of the members whose Patroni is alive: each renews a key of its own. Raises ConfigError."""
        members = f"{self._prefix}members/"
        found = self._ask("range", {"key": encoded(members), "range_end": encoded(members[:-1] + "0")}).get("kvs", [])
        return [base64.b64decode(entry["key"]).decode().removeprefix(members) for entry in found]

    def forget_leader(self) -> None:
        """Nothing in etcd speaks of a leader; that the cluster exists, and its settings, stay. Raises ConfigError."""
        for key in LEADERS_KEYS:
            self._ask("deleterange", {"key": encoded(self._prefix + key)})

    def _ask(self, what: str, body: Mapping[str, str]) -> t.Any:
        tls = tls_context(self._etcd["cacert"], self._etcd["cert"], self._etcd["key"])
        silent = []
        for host in self._etcd["hosts"]:
            try:
                answer = ask(f"{self._etcd['protocol']}://{host}/v3/kv/{what}", context=tls, method="POST", body=body)
            except NoAnswer as reason:
                silent.append(str(reason))
                continue
            if answer.status == 200:
                return answer.body
            silent.append(f"{host}: {answer.body}")
        raise ConfigError(
            f"etcd does not answer ({'; '.join(silent)}). Bring two of its members back first: etcd.service."
        )


def encoded(key: str) -> str:
    """A key as etcd's JSON interface wants it."""
    return base64.b64encode(key.encode()).decode()

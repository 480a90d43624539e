"""Give a host without etcd data its place in the cluster: found it, join it, or replace the member that was lost.

    - name: Give a member without data its place
      etcd_member:
        name: data1
        members: [{name: data1, address: 203.0.113.31}, ...]
        client_port: 2379
        peer_port: 2380
        data_dir: /var/lib/etcd/arches
        birth_file: /run/arches/etcd-birth.env
        tls_dir: /etc/arches/tls

A host with data is left alone. For one without, the other members are asked (in parallel, time-boxed), and what the
first start needs to know is written to `birth_file`; nothing is started. Safe to repeat at every point.

Result: changed, plan (none | found | join | add | replace).
"""

from __future__ import annotations

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.json_https import NoAnswer, ask, in_parallel, tls_context

# A founding is concluded only after the peers' ports were closed for this long: members with data were told to start
# just before, and bind their ports before anything else.
SURELY_CLOSED_S = 2.0
# etcd changes its membership only when all members were connected for five seconds.
SETTLED_S = 15.0


class EtcdError(Exception):
    """What is wrong and what to do about it."""


class Peer(t.NamedTuple):
    """What one other member said."""

    address: str
    listening: bool | None  # None: the host is silent
    members: list[dict[str, t.Any]]  # as it knows them; empty when it did not say
    healthy: bool  # it answers reads, so it is part of a majority


class Plan(t.NamedTuple):
    """What to do, with the member to remove first, and who is in the cluster besides."""

    kind: str
    remove: str | None
    members: list[dict[str, t.Any]]


def decide(name: str, peer_url: str, peers: dict[str, Peer]) -> Plan:
    """What a host without data has to do. Raises EtcdError where acting could cost data."""
    silent = [f"{peer} ({state.address})" for peer, state in peers.items() if state.listening is None]
    told = [state for state in peers.values() if state.members]
    if not told:
        if silent:
            raise EtcdError(
                f"{name} has no etcd data, and {', '.join(silent)} does not answer, so it cannot be told "
                f"whether a cluster exists. Bring that host up and run again."
            )
        closed = all(state.listening is False for state in peers.values())
        if not closed:
            raise EtcdError(
                f"{name} has no etcd data, and its peers listen but do not say who is in the cluster. "
                f"Look at `journalctl -u etcd` on {', '.join(peers)}."
            )
        return Plan("found", None, [])
    # A member in a majority knows best.
    members = max(told, key=lambda state: state.healthy).members
    mine = next((member for member in members if peer_url in member["peerURLs"]), None)
    if mine is not None and not mine.get("clientURLs"):
        return Plan("join", None, members)
    urls = [url for member in members for url in member["peerURLs"]]
    # Who is no member (any more) is not waited for.
    sick = [
        f"{peer} ({state.address})"
        for peer, state in peers.items()
        if not state.healthy and any(f"//{state.address}:" in url for url in urls)
    ]
    if sick:
        raise EtcdError(
            f"{name} has lost its etcd data, and {', '.join(sick)} is not healthy. A lost member is replaced only "
            f"while all others are. Bring that one back (`systemctl status etcd`) and run again."
        )
    if mine is None:
        return Plan("add", None, members)
    return Plan("replace", member_id(mine), [member for member in members if member is not mine])


def member_id(member: dict[str, t.Any]) -> str:
    """A member's id as the JSON gateway wants it: a decimal string (peers say a number)."""
    return str(member.get("ID") or member["id"])


def birth_certificate(plan: Plan, name: str, peer_url: str, configured: dict[str, str]) -> str:
    """Environment of the first start. `configured` maps each member's name to its peer URL."""
    if plan.kind == "found":
        cluster, state = configured, "new"
    else:
        # Names of others do not matter to etcd here, their URLs do: the live list is right.
        names = {url: member for member, url in configured.items()}
        urls = [url for member in plan.members for url in member["peerURLs"] if url != peer_url]
        cluster = {name: peer_url, **{names.get(url, f"member-{n}"): url for n, url in enumerate(urls)}}
        state = "existing"
    listed = ",".join(f"{member}={url}" for member, url in sorted(cluster.items()))
    return f"ETCD_INITIAL_CLUSTER={listed}\nETCD_INITIAL_CLUSTER_STATE={state}\n"


class Cluster:
    """The members, asked over mutual TLS."""

    def __init__(self, params: dict[str, t.Any]) -> None:
        self.name: str = params["name"]
        self.addresses: dict[str, str] = {member["name"]: member["address"] for member in params["members"]}
        self.client_port: int = params["client_port"]
        self.peer_port: int = params["peer_port"]
        tls = params["tls_dir"]
        self.context = tls_context(f"{tls}/ca.crt", f"{tls}/host.crt", f"{tls}/host.key")

    def peer_url(self, name: str) -> str:
        """Where a member speaks to its peers."""
        return f"https://{self.addresses[name]}:{self.peer_port}"

    def client_url(self, name: str) -> str:
        """Where a member speaks to clients."""
        return f"https://{self.addresses[name]}:{self.client_port}"

    def peers(self) -> dict[str, Peer]:
        """What every other member says, all asked at once; doubtful silence of a port is looked at for a while."""
        others = [name for name in self.addresses if name != self.name]
        deadline = time.monotonic() + SURELY_CLOSED_S
        while True:
            found = in_parallel(self._look_at, others)
            peers = {name: state for name, state in found.items() if isinstance(state, Peer)}
            if any(state.members for state in peers.values()) or time.monotonic() > deadline or not others:
                return peers
            time.sleep(0.2)

    def _look_at(self, name: str) -> Peer:
        """What one member says. Members that wait for a majority answer only on the peers' port."""
        listening: bool | None = True
        members: list[dict[str, t.Any]] = []
        healthy = False
        try:
            answer = ask(f"{self.peer_url(name)}/members", context=self.context)
            members = answer.body if answer.status == 200 and isinstance(answer.body, list) else []
        except NoAnswer as reason:
            listening = False if reason.refused else None
        if members:
            try:
                healthy = ask(f"{self.client_url(name)}/health", context=self.context).status == 200
            except NoAnswer:
                healthy = False
        return Peer(self.addresses[name], listening, members, healthy)

    def is_reached(self) -> bool:
        """Whether this host's own member runs all the same."""
        try:
            ask(f"{self.peer_url(self.name)}/members", context=self.context)
        except NoAnswer as reason:
            return not reason.refused
        return True

    def change(self, via: str, action: str, body: dict[str, t.Any]) -> None:
        """Change the membership, waiting while etcd finds its members too freshly connected. Raises EtcdError."""
        deadline = time.monotonic() + SETTLED_S
        while True:
            answer = ask(
                f"{self.client_url(via)}/v3/cluster/member/{action}",
                context=self.context, method="POST", body=body, timeout=5,
            )  # fmt: skip
            if answer.status == 200:
                return
            if "unhealthy cluster" not in str(answer.body) or time.monotonic() > deadline:
                raise EtcdError(f"etcd on {via} refuses to {action} the member: {answer.body}")
            time.sleep(0.5)


def give_place(cluster: Cluster, check: bool) -> tuple[Plan, str]:
    """Decide and change the membership; returns the plan and the environment of the first start. Raises EtcdError."""
    name, url = cluster.name, cluster.peer_url(cluster.name)
    peers = cluster.peers()
    plan = decide(name, url, peers)
    if plan.kind in ("replace", "add") and cluster.is_reached():
        raise EtcdError(
            f"{name} has no etcd data on its disk, but its etcd still answers. "
            f"Stop it (`systemctl stop etcd`) and run again."
        )
    if not check and plan.kind in ("replace", "add"):
        via = next(peer for peer, state in peers.items() if state.healthy)
        if plan.remove:
            cluster.change(via, "remove", {"ID": plan.remove})
        cluster.change(via, "add", {"peerURLs": [url]})
    configured = {member: cluster.peer_url(member) for member in cluster.addresses}
    return plan, birth_certificate(plan, name, url, configured)


def main() -> None:
    """Module entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "members": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"name": {"type": "str", "required": True}, "address": {"type": "str", "required": True}},
            },
            "client_port": {"type": "int", "required": True},
            "peer_port": {"type": "int", "required": True},
            "data_dir": {"type": "path", "required": True},
            "birth_file": {"type": "path", "required": True},
            "tls_dir": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    if os.path.isdir(os.path.join(params["data_dir"], "member", "wal")):
        module.exit_json(changed=False, plan="none")
    if module.check_mode and not os.path.exists(os.path.join(params["tls_dir"], "host.crt")):
        module.exit_json(changed=True, plan="none")  # a bare host: there is nothing to ask with yet
    try:
        plan, certificate = give_place(Cluster(params), module.check_mode)
    except (EtcdError, NoAnswer) as error:
        module.fail_json(msg=str(error))
    if not module.check_mode:
        os.makedirs(os.path.dirname(params["birth_file"]), mode=0o755, exist_ok=True)
        with open(params["birth_file"], "w", encoding="utf-8") as file:
            file.write(certificate)
    module.exit_json(changed=True, plan=plan.kind)


if __name__ == "__main__":
    main()

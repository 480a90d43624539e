"""What is true now in a running fleet: who leads, who follows, what is wrong. Questions only, nothing is changed.

Every service is asked directly and all at once, each answer is waited for at most `ANSWER_S` seconds, and silence is an
answer too. Nothing here knows of Ansible.
"""

from __future__ import annotations

import concurrent.futures
import ssl
import typing as t
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from ansible.module_utils.json_https import NoAnswer, ask, in_parallel
from ansible.module_utils.resp import ConnectError, Connection, ReplyError

ANSWER_S = 1.5

State = dict[str, t.Any]


class Fleet(t.NamedTuple):
    """Whom to ask. `hosts` maps each data host's name to its address; `context` also proves who asks, for etcd."""

    hosts: Mapping[str, str]
    ports: Mapping[str, int]  # etcd, patroni, redis, sentinel
    context: ssl.SSLContext
    ca_file: str
    redis_user: str
    redis_password: str
    redis_monitor: str


def look(fleet: Fleet) -> State:
    """The whole answer: `postgres`, `etcd`, `redis`, and in `errors` a sentence for each service that gave none."""
    asked = [(service, host) for service in QUESTIONS for host in fleet.hosts]
    answers: dict[str, dict[str, State]] = {service: {} for service in QUESTIONS}
    errors = []
    with concurrent.futures.ThreadPoolExecutor(max(1, len(asked))) as pool:
        futures = {pool.submit(QUESTIONS[service], fleet, host): (service, host) for service, host in asked}
        for future, (service, host) in futures.items():
            try:
                answers[service][host] = future.result()
            except (NoAnswer, ConnectError, ReplyError) as reason:
                errors.append(f"{host}: {service}: {reason}")
    return {
        "postgres": postgres_state(answers["postgres"]),
        "etcd": etcd_state(answers["etcd"]) | {"differing": differing(etcd_hashes(fleet, answers["etcd"]))},
        "redis": redis_state(answers["redis"], answers["sentinel"], fleet.hosts),
        "errors": sorted(errors),
    }


# Questions: one host, one service


def ask_patroni(fleet: Fleet, host: str) -> State:
    """A member's own state, and whom it takes for the leader. Raises NoAnswer."""
    url = f"https://{fleet.hosts[host]}:{fleet.ports['patroni']}"
    own = ask(f"{url}/patroni", context=fleet.context, timeout=ANSWER_S).body
    cluster = ask(f"{url}/cluster", context=fleet.context, timeout=ANSWER_S).body
    if not isinstance(own, dict) or not isinstance(cluster, dict):
        raise NoAnswer(url, "this is not Patroni")
    leader = next((m["name"] for m in cluster.get("members", []) if m["role"] == "leader"), None)
    return {
        "state": own.get("state"),
        "role": own.get("role"),
        "replication": own.get("replication_state"),
        "sync": bool(own.get("quorum_standby") or own.get("sync_standby")),
        "timeline": own.get("timeline"),
        "lsn": position(own),
        "replayed_at": (own.get("xlog") or {}).get("replayed_timestamp"),
        "pending_restart": bool(own.get("pending_restart")),
        "names_leader": leader,
    }


def position(own: State) -> int | None:
    """The end of what a member has written or received, in bytes; None when Postgres does not run."""
    xlog = own.get("xlog") or {}
    found = [xlog.get(key) for key in ("location", "received_location", "replayed_location")]
    return max((int(place) for place in found if place is not None), default=None)


def ask_etcd(fleet: Fleet, host: str) -> State:
    """Whether a member is part of a majority, its id, and the leader's. Raises NoAnswer."""
    url = f"https://{fleet.hosts[host]}:{fleet.ports['etcd']}"
    healthy = ask(f"{url}/health", context=fleet.context, timeout=ANSWER_S).status == 200
    status = ask(f"{url}/v3/maintenance/status", context=fleet.context, method="POST", body={}, timeout=ANSWER_S).body
    if not isinstance(status, dict) or "header" not in status:
        raise NoAnswer(url, "this is not etcd")
    header = status["header"]
    return {
        "healthy": healthy,
        "id": header["member_id"],
        "names_leader": status.get("leader"),
        "revision": int(header["revision"]),
    }


def etcd_hashes(fleet: Fleet, answers: Mapping[str, State]) -> dict[str, tuple[str, int]]:
    """What each healthy member has, as of the newest change that all of them have: since when, and its hash."""
    healthy = {host: answer["revision"] for host, answer in answers.items() if answer["healthy"]}

    def hash_of(host: str) -> tuple[str, int]:
        url = f"https://{fleet.hosts[host]}:{fleet.ports['etcd']}/v3/maintenance/hash"
        body = {"revision": min(healthy.values())}
        said = ask(url, context=fleet.context, method="POST", body=body, timeout=ANSWER_S).body
        if not isinstance(said, dict) or "hash" not in said:
            raise NoAnswer(url, f"no hash: {said}")
        return str(said.get("compact_revision", "0")), int(said["hash"])

    hashes = in_parallel(hash_of, healthy)
    return {host: found for host, found in hashes.items() if isinstance(found, tuple)}


def ask_redis(fleet: Fleet, host: str) -> State:
    """A server's role and its link. Raises ConnectError or ReplyError."""
    with redis_connection(fleet, host, "redis") as redis:
        role = redis.call("ROLE")
    if not isinstance(role, list):
        raise ReplyError("ROLE was not understood")
    if role[0] == "master":
        return {"role": "leader", "linked": True}
    return {"role": "replica", "linked": role[3] == "connected"}


def ask_sentinel(fleet: Fleet, host: str) -> State:
    """Whom a Sentinel takes for the leader, with the epoch of that decision. Raises ConnectError or ReplyError."""
    with redis_connection(fleet, host, "sentinel") as sentinel:
        said = sentinel.table("SENTINEL", "MASTER", fleet.redis_monitor)
    return {
        "epoch": int(said["config-epoch"]),
        "address": said["ip"],
        "sentinels": int(said["num-other-sentinels"]) + 1,
    }


def redis_connection(fleet: Fleet, host: str, service: str) -> Connection:
    """A logged-in connection to Redis or Sentinel. Raises ConnectError."""
    return Connection(
        fleet.hosts[host], fleet.ports[service], fleet.ca_file, fleet.redis_user, [fleet.redis_password], ANSWER_S
    )


QUESTIONS: dict[str, Callable[[Fleet, str], State]] = {
    "postgres": ask_patroni,
    "etcd": ask_etcd,
    "redis": ask_redis,
    "sentinel": ask_sentinel,
}


# Conclusions


def postgres_state(answers: Mapping[str, State]) -> State:
    """The leader that most members name and that says so itself, the synchronous standbys, every member's state."""
    votes = Counter(answer["names_leader"] for answer in answers.values() if answer["names_leader"])
    leader = votes.most_common(1)[0][0] if votes else None
    if leader is not None and answers.get(leader, {}).get("role") != "primary":
        leader = None  # the lease of one that is gone
    members = {host: dict(answer) for host, answer in answers.items()}
    sync = sorted(host for host, answer in answers.items() if answer["sync"] and answer["replication"] == "streaming")
    return {"leader": leader, "sync": sync, "members": members}


def etcd_state(answers: Mapping[str, State]) -> State:
    """The member that leads, and which ones are part of the majority."""
    by_id = {answer["id"]: host for host, answer in answers.items()}
    votes = Counter(answer["names_leader"] for answer in answers.values() if answer["healthy"])
    leader = by_id.get(votes.most_common(1)[0][0]) if votes else None
    return {"leader": leader, "healthy": sorted(host for host, answer in answers.items() if answer["healthy"])}


def differing(hashes: Mapping[str, tuple[str, int]]) -> list[str]:
    """The members that have other data than most (than another, where no two agree).

    Only what reaches back equally far can be compared: members forget old changes at nearly the same time.
    """
    found = []
    for since in {since for since, _ in hashes.values()}:
        same = {host: value for host, (begins, value) in hashes.items() if begins == since}
        (most, times), *others = Counter(same.values()).most_common()
        if others:
            found += [host for host, value in same.items() if value != most or times == 1]
    return sorted(found)


def redis_state(servers: Mapping[str, State], sentinels: Mapping[str, State], hosts: Mapping[str, str]) -> State:
    """The leader by the newest decision of the Sentinels, if it agrees; and the replicas that are linked to it."""
    by_address = {address: host for host, address in hosts.items()}
    newest = max(sentinels.values(), key=lambda answer: answer["epoch"], default=None)
    leader = by_address.get(newest["address"]) if newest else None
    if leader is not None and servers.get(leader, {}).get("role") != "leader":
        leader = None
    replicas = sorted(host for host, answer in servers.items() if answer["role"] == "replica" and answer["linked"])
    return {"leader": leader, "replicas": replicas, "sentinels": sorted(sentinels)}


# Verdict


def complaints(state: State, hosts: Sequence[str]) -> list[str]:
    """What is not as it should be on a set of data hosts, one sentence each; empty when all is well."""
    found = list(state["errors"])
    postgres, redis = state["postgres"], state["redis"]
    if postgres["leader"] is None:
        found.append("postgres: nobody leads")
    for host, member in postgres["members"].items():
        follows = member["replication"] == "streaming" and member["sync"]
        if member["state"] != "running" or (host != postgres["leader"] and not follows):
            shown = ", ".join(str(member[key]) for key in ("role", "state", "replication") if member[key])
            found.append(f"{host}: postgres: {shown or 'unknown'}" + ("" if member["sync"] else ", not synchronous"))
    if state["etcd"]["leader"] is None:
        found.append("etcd: nobody leads")
    found += [f"{host}: etcd: not part of the majority" for host in hosts if host not in state["etcd"]["healthy"]]
    found += [f"{host}: etcd: it has other data than the others" for host in state["etcd"]["differing"]]
    if redis["leader"] is None:
        found.append("redis: nobody leads")
    for host in hosts:
        if host != redis["leader"] and host not in redis["replicas"]:
            found.append(f"{host}: redis: follows nobody")
    return list(dict.fromkeys(found))

"""One Redis with its Sentinel: who may do what, what survives, and what a second run puts right."""

import json
import shlex
from pathlib import Path

import pytest
from testinfra.host import Host

from lib.scenario import PROJECT, play
from lib.waiting import wait_for

PASSWORDS = {name: f"{name}-secret" for name in ("admin", "replication", "sentinel", "app", "monitor")}
SCENARIO = Path(__file__).parents[1]
MARKER = "/var/lib/arches/pending/redis"


def client(user: str = "admin", port: int = 6379) -> str:
    """The command line of a client that verifies the server's certificate."""
    tls = "--tls --cacert /etc/arches/tls/ca.crt -h 127.0.0.1"
    return f"REDISCLI_AUTH={PASSWORDS[user]} redis-cli --no-auth-warning --user {user} {tls} -p {port}"


def redis(host: Host, *words: str, user: str = "admin", port: int = 6379) -> str:
    """Reply of Redis (or of Sentinel, by its port) to one command over verified TLS, errors included."""
    result = host.run(f"{client(user, port)} {shlex.join(words)}")
    return str(result.stdout + result.stderr).strip()


def setting(host: Host, name: str) -> str:
    """A live setting of Redis."""
    return redis(host, "CONFIG", "GET", name).partition("\n")[2]


def pid(host: Host, unit: str = "redis-server") -> str:
    """Main process of a unit."""
    return str(host.check_output("systemctl show -p MainPID --value %s", unit))


def serial(host: Host, port: int) -> str:
    """Number of the certificate that is served."""
    served = f"openssl s_client -connect 127.0.0.1:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
    return str(host.check_output(served))


def converge(*options: str, **variables: object) -> int:
    """Apply the role again; the number of changes."""
    return play(PROJECT / "molecule/converge.yml", variables, *options)["redis1"]


def test_speaks_only_tls(host: Host) -> None:
    assert redis(host, "PING") == "PONG"
    assert redis(host, "PING", port=26379) == "PONG"
    for port in (6379, 26379):
        assert "PONG" not in host.run(f"REDISCLI_AUTH=admin-secret redis-cli --user admin -p {port} PING").stdout


@pytest.mark.parametrize("port", [6379, 26379])
def test_default_user_is_refused(host: Host, port: int) -> None:
    plain = f"redis-cli --tls --cacert /etc/arches/tls/ca.crt -h 127.0.0.1 -p {port}"
    assert "NOAUTH" in host.run(f"{plain} PING").stdout
    assert "WRONGPASS" in host.run(f"{plain} AUTH default ''").stdout
    assert "WRONGPASS" in host.run(f"{plain} AUTH admin wrong").stdout


ALLOWED = [
    ("app", 6379, "SET key value EX 60"),
    ("app", 6379, "EVAL return(1) 0"),
    ("app", 6379, "PUBLISH channel message"),
    ("app", 6379, "WAIT 0 1"),
    ("app", 6379, "TIME"),
    ("app", 26379, "SENTINEL GET-MASTER-ADDR-BY-NAME arches"),
    ("app", 26379, "SENTINEL MASTERS"),
    ("sentinel", 6379, "INFO"),
    ("replication", 6379, "PING"),
    ("monitor", 6379, "INFO"),
    ("monitor", 26379, "INFO"),
    ("monitor", 26379, "SENTINEL CKQUORUM arches"),
]
DENIED = [
    ("app", 6379, "CONFIG GET maxmemory"),
    ("app", 6379, "KEYS *"),
    ("app", 6379, "FLUSHALL"),
    ("app", 6379, "ACL LIST"),
    ("app", 6379, "SHUTDOWN"),
    ("app", 6379, "REPLICAOF 192.0.2.1 6379"),
    ("app", 6379, "FUNCTION LIST"),
    ("app", 26379, "SENTINEL FAILOVER arches"),
    ("app", 26379, "SENTINEL SET arches quorum 9"),
    ("sentinel", 6379, "GET key"),
    ("sentinel", 6379, "CONFIG SET maxmemory 1"),
    ("replication", 6379, "GET key"),
    ("replication", 26379, "PING"),
    ("monitor", 6379, "GET key"),
    ("monitor", 6379, "CONFIG GET masterauth"),
    ("monitor", 6379, "SLOWLOG GET"),
    ("monitor", 26379, "SENTINEL FAILOVER arches"),
]


@pytest.mark.parametrize(("user", "port", "command"), ALLOWED)
def test_user_may(host: Host, user: str, port: int, command: str) -> None:
    assert not redis(host, *command.split(), user=user, port=port).startswith(("NOPERM", "ERR", "WRONG"))


@pytest.mark.parametrize(("user", "port", "command"), DENIED)
def test_user_may_not(host: Host, user: str, port: int, command: str) -> None:
    answer = redis(host, *command.split(), user=user, port=port)
    assert "NOPERM" in answer or "WRONGPASS" in answer


def test_acknowledged_writes_survive_kill(host: Host) -> None:
    before = pid(host)
    answers = host.check_output(f"seq 200 | sed 's/.*/SET survivor:& &/' | {client('app')}").split()
    assert answers == ["OK"] * 200
    host.run_test("kill -9 %s", before)
    wait_for("Redis is back", lambda: redis(host, "PING") == "PONG", timeout_s=10)
    assert pid(host) != before
    assert redis(host, "EVAL", "return #redis.call('KEYS','survivor:*')", "0") == "200"


def test_logs_go_to_the_journal(host: Host) -> None:
    assert "Ready to accept connections" in host.check_output("journalctl -u redis-server -o cat --no-pager")


def test_debian_files_are_untouched(host: Host) -> None:
    """An update of the package must not stop at a question about its configuration files."""
    changed = host.run("dpkg --verify redis-server redis-sentinel").stdout.splitlines()
    assert [line for line in changed if "/etc/" in line] == []


def test_drift_is_put_right_without_restart(host: Host) -> None:
    wanted = setting(host, "maxmemory")
    pids = pid(host), pid(host, "redis-sentinel")
    assert redis(host, "CONFIG", "SET", "maxmemory", "1000000", "appendfsync", "no", "masterauth", "other") == "OK"
    assert redis(host, "SENTINEL", "SET", "arches", "quorum", "3", "auth-pass", "other", port=26379) == "OK"
    assert redis(host, "SENTINEL", "CONFIG", "SET", "announce-ip", "192.0.2.1", port=26379) == "OK"
    assert converge("--check") == 1
    assert setting(host, "appendfsync") == "no"
    assert converge() == 1
    assert setting(host, "maxmemory") == wanted
    assert setting(host, "appendfsync") == "everysec"
    assert setting(host, "masterauth") == "replication-secret"
    assert "\nquorum\n1\n" in redis(host, "SENTINEL", "MASTER", "arches", port=26379)
    assert (pid(host), pid(host, "redis-sentinel")) == pids


def test_certificate_and_password_change_without_restart(host: Host) -> None:
    """Redis takes both over as it runs; Sentinel is restarted. The old password stays valid as long as it is named."""
    before = pid(host)
    old = serial(host, 6379)
    host.check_output("rm /etc/arches/tls/host.crt")
    play(PROJECT / "molecule/prepare.yml")
    assert converge(redis_app_password="new", redis_still_accepted={"app": ["app-secret"]}) > 0
    assert old != serial(host, 6379) == serial(host, 26379)
    assert redis(host, "PING", user="app") == "PONG"
    assert redis(host, "AUTH", "app", "new") == "OK"
    assert not host.file(MARKER).exists
    assert pid(host) == before


def test_restart_is_owed_until_it_rolls(host: Host) -> None:
    before = pid(host)
    changed = {"redis_max_clients": 1000, "redis_memory_mb": 64}
    assert converge(**changed) > 0
    assert "WRONGPASS" in redis(host, "AUTH", "app", "new")
    assert setting(host, "maxmemory") == str(int(64 * 1048576 * 0.6))
    assert setting(host, "maxclients") == "2000"
    assert pid(host) == before
    assert "restart" in json.loads(host.file(MARKER).content_string)
    play(SCENARIO / "restart.yml", changed)
    assert setting(host, "maxclients") == "1000"
    assert not host.file(MARKER).exists
    assert redis(host, "GET", "survivor:7", user="app") == "7"

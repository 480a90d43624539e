"""etcd keeps what it was given, talks only to holders of a certificate, and never starts as somebody else."""

import json

import pytest

from lib.waiting import wait_for

TLS = "/etc/arches/tls"
DATA = "/var/lib/etcd/arches"

# Renews a lease as Patroni does, on many connections, while the member is stopped and started; prints what it was told.
RENEW = """
import http.client, json, ssl, subprocess, sys, threading
host, tls = sys.argv[1:]
context = ssl.create_default_context(cafile=tls + "/ca.crt")
context.load_cert_chain(tls + "/host.crt", tls + "/host.key")
def ask(path, body):
    connection = http.client.HTTPSConnection(host, 2379, timeout=5, context=context)
    connection.request("POST", path, json.dumps(body))
    answer = connection.getresponse()
    return answer.read().decode()
lease = json.loads(ask("/v3/lease/grant", {"TTL": 600}))["ID"]
said, over = {}, threading.Event()
def renew():
    while not over.is_set():
        try:
            answer = json.loads(ask("/v3/lease/keepalive", {"ID": lease}))
            what = json.dumps(answer["error"]) if "error" in answer else "renewed"
        except (OSError, http.client.HTTPException):
            what = "no answer"
        said[what] = said.get(what, 0) + 1
threads = [threading.Thread(target=renew) for _ in range(8)]
for thread in threads: thread.start()
for _ in range(8):
    subprocess.run(["systemctl", "restart", "etcd"], check=True)
over.set()
for thread in threads: thread.join()
print(json.dumps(said))
"""


@pytest.fixture
def endpoint(host):
    return f"https://{host.interface('host0').addresses[0]}:2379"


@pytest.fixture
def etcdctl(host, endpoint):
    """Run etcdctl with the host's certificate."""
    options = f"--endpoints={endpoint} --cacert={TLS}/ca.crt --cert={TLS}/host.crt --key={TLS}/host.key"

    def run(command: str):
        return host.run(f"etcdctl --command-timeout=3s {options} {command}")

    return run


def wait_until_healthy(etcdctl) -> None:
    wait_for("the member is healthy", lambda: etcdctl("endpoint health").succeeded, timeout_s=30)


def test_keeps_a_value_over_a_restart(host, etcdctl):
    assert etcdctl("put key value").succeeded
    host.run_expect([0], "systemctl restart etcd")
    assert etcdctl("get --print-value-only key").stdout.strip() == "value"


def test_refuses_a_client_without_a_certificate(host, endpoint):
    refused = host.run(f"etcdctl --command-timeout=3s --endpoints={endpoint} --cacert={TLS}/ca.crt endpoint health")
    assert refused.failed
    # The server's own reason: the client may be told no more than that its time is over.
    reason = "tls: client didn't provide a certificate"
    wait_for("the reason", lambda: reason in host.check_output("journalctl -u etcd --no-pager -n 50"), timeout_s=10)


def test_listens_on_its_own_address_only(host):
    listeners = host.check_output("ss -Hltn '( sport = 2379 or sport = 2380 )'").split("\n")
    address = host.interface("host0").addresses[0]
    assert sorted(line.split()[3] for line in listeners) == [f"{address}:2379", f"{address}:2380"]


def test_metrics_are_read_on_loopback_only(host):
    listener = host.check_output("ss -Hltn '( sport = 2381 )'").split()
    assert listener[3] == "127.0.0.1:2381"
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:2381/metrics').read().decode())"
    lines = host.check_output("python3 -c %s", ask).splitlines()
    assert "etcd_server_has_leader 1" in lines
    assert any(line.startswith("etcd_disk_wal_fsync_duration_seconds_bucket") for line in lines)


def test_a_member_alone_has_nothing_to_compare(host):
    """What three say is a drill of the fleet; here: it runs with its certificates, and an old figure does not stay."""
    figures = host.file("/var/lib/prometheus/node-exporter/etcd.prom")
    host.run_expect([0], f"echo arches_etcd_member_differs 1 > {figures.path} && systemctl start arches-etcd-compare")
    assert not figures.exists
    assert host.service("arches-etcd-compare.timer").is_enabled


def test_is_back_after_a_kill(host, etcdctl):
    assert etcdctl("put survives kill").succeeded
    host.run_expect([0], "systemctl kill -s KILL etcd")
    wait_until_healthy(etcdctl)
    assert etcdctl("get --print-value-only survives").stdout.strip() == "kill"


def test_a_member_that_stops_gives_no_wrong_answer(host):
    """Patroni asks another member when there is no answer, or the member says that it is unavailable (14)."""
    address = host.interface("host0").addresses[0]
    said = json.loads(host.check_output("python3 -c %s %s %s", RENEW, address, TLS))
    wrong = {what: times for what, times in said.items() if what.startswith("{") and json.loads(what).get("code") != 14}
    assert not wrong
    assert said["renewed"] > 0 and said["no answer"] > 0, said


def test_does_not_start_without_data_or_a_decision(host, etcdctl):
    host.run_expect([0], f"systemctl stop etcd && mv {DATA} {DATA}.away")
    try:
        host.run_expect([0], "systemctl start etcd")
        assert not host.service("etcd").is_running
        assert not host.file(DATA).exists
    finally:
        host.run_expect([0], f"mv {DATA}.away {DATA} && systemctl start etcd")
    wait_until_healthy(etcdctl)

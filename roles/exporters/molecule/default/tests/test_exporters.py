"""What leaves the host by the gateway, who may ask, and what the exporters say of real services."""

import re
import shlex
from collections.abc import Callable

import pytest
from testinfra.host import Host

from lib.plugins import PROJECT
from lib.waiting import wait_for

TLS = "/etc/arches/tls"
OWN = f"--cert {TLS}/host.crt --key {TLS}/host.key"
SAMPLE = "/tmp/sample.json"


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    return str(host.ansible.get_variables()["ansible_host"])


@pytest.fixture(scope="module")
def ask(host: Host, address: str) -> Callable[..., tuple[int, str]]:
    """(status, text) of a module through the gateway; status 0 where no connection came to be."""

    def run(module: str, options: str = OWN) -> tuple[int, str]:
        url = f"https://{address}:9998/proxy?module={module}"
        answer = host.run(f"curl --silent --cacert {TLS}/ca.crt {options} -w '\\n%{{http_code}}' {shlex.quote(url)}")
        text, _, status = answer.stdout.rpartition("\n")
        return int(status or 0), text

    return run


def series(text: str) -> set[str]:
    """The names and labels of all series, such as `up{a="b"}`."""
    return {line.rpartition(" ")[0] for line in text.splitlines()}


def value(text: str, name: str) -> float:
    """The value of one series, such as `up{a="b"}`; -1 where it is not there."""
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == name]
    return float(found[0]) if found else -1.0


def test_the_gateway_passes_metrics_to_a_holder_of_a_certificate(ask: Callable[..., tuple[int, str]]) -> None:
    status, text = ask("node_exporter")
    assert status == 200
    assert value(text, 'node_systemd_unit_state{name="nginx.service",state="active",type="forking"}') == 1
    assert "arches_certificate_expiry_timestamp_seconds" in text
    assert value(text, "node_memory_MemAvailable_bytes") > 0


def test_the_gateway_refuses_whoever_shows_no_certificate(ask: Callable[..., tuple[int, str]]) -> None:
    assert ask("node_exporter", "") == (0, "")


def test_the_gateway_refuses_a_strangers_certificate(host: Host, ask: Callable[..., tuple[int, str]]) -> None:
    host.check_output(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=host1 "
        "-keyout /tmp/stranger.key -out /tmp/stranger.crt"
    )
    assert ask("node_exporter", "--cert /tmp/stranger.crt --key /tmp/stranger.key") == (0, "")


def test_the_gateway_reaches_what_speaks_tls(ask: Callable[..., tuple[int, str]]) -> None:
    assert ask("patroni") == (200, "ok 1\n")


def test_an_exporter_that_is_away_is_a_failed_scrape(host: Host, ask: Callable[..., tuple[int, str]]) -> None:
    host.check_output("systemctl stop prometheus-nginx-exporter")
    try:
        assert ask("nginx_exporter")[0] >= 500
    finally:
        host.check_output("systemctl start prometheus-nginx-exporter")
    wait_for("it answers", lambda: ask("nginx_exporter")[0] == 200, timeout_s=10)


def test_only_the_gateway_can_be_reached_from_outside(host: Host, address: str) -> None:
    lines = host.check_output("ss -Hltnp").splitlines()
    exporters = {line.split()[3] for line in lines if re.search(r'"(prometheus-|mtail)', line)}
    assert f"{address}:9998" in exporters and len(exporters) == 9
    assert {socket.rpartition(":")[0] for socket in exporters - {f"{address}:9998"}} == {"127.0.0.1"}


def test_a_killed_exporter_is_back(host: Host, ask: Callable[..., tuple[int, str]]) -> None:
    before = host.check_output("systemctl show -p MainPID --value prometheus-node-exporter")
    host.check_output("kill -9 %s", before)
    wait_for("it answers again", lambda: ask("node_exporter")[0] == 200, timeout_s=20)


def test_all_of_them_share_one_bound(host: Host) -> None:
    assert host.check_output("systemctl show -p MemoryMax --value exporters.slice") == str(96 * 1048576)
    units = host.check_output("systemctl show -p Wants --value arches-exporters.target").split()
    services = [unit for unit in units if unit.endswith(".service")]
    assert len(services) == 9
    shown = host.check_output(f"systemctl show -p Slice,ActiveState {' '.join(services)}")
    assert set(shown.split()) == {"Slice=exporters.slice", "ActiveState=active"}


def test_certificates_say_when_they_expire(host: Host, ask: Callable[..., tuple[int, str]]) -> None:
    end = host.check_output(f'date -d "$(openssl x509 -noout -enddate -in {TLS}/host.crt | cut -d= -f2)" +%s')
    series = 'arches_certificate_expiry_timestamp_seconds{name="host"}'
    wait_for("the date is told", lambda: value(ask("node_exporter")[1], series) == float(end), timeout_s=20)
    assert not host.file("/var/lib/prometheus/node-exporter/certificates.prom.new").exists


def test_postgres_says_what_alerts_ask_for(host: Host, ask: Callable[..., tuple[int, str]]) -> None:
    host.check_output("runuser -u postgres -- psql -qc 'CREATE TABLE IF NOT EXISTS t (i int)' arches")
    status, text = ask("postgres_exporter")
    assert status == 200
    assert value(text, "pg_up") == 1
    assert "pg_exporter_last_scrape_error 0" in re.sub(r"\{[^}]*\}", "", text)
    plain = re.sub(r'server="[^"]*",?', "", text).replace(",}", "}").replace("{}", "")
    assert value(plain, 'pg_stat_activity_count{state="active"}') >= 1
    assert value(plain, "pg_settings_max_connections") == 100
    for name in (
        "pg_stat_archiver_failed_count", "pg_checksum_failures", "pg_replication_lag_seconds",
        "pg_replication_is_replica", "pg_database_wraparound_age_datfrozenxid_seconds",
        "pg_stat_user_tables_n_dead_tup", "pg_database_size_bytes", "pg_stat_activity_max_tx_duration",
    ):  # fmt: skip
        assert re.search(rf"^{name}[ {{]", text, re.MULTILINE), name
    assert 'pg_scrape_collector_success{collector="stat_bgwriter"} 0' not in text
    assert not re.search(r"^pg_scrape_collector_success\{.*\} 0$", text, re.MULTILINE)


def test_redis_and_sentinel_say_how_they_are(ask: Callable[..., tuple[int, str]]) -> None:
    status, text = ask("redis_exporter")
    assert status == 200 and value(text, "redis_up") == 1
    assert value(text, "redis_memory_used_bytes") > 0
    assert value(text, "redis_memory_max_bytes") == 0
    assert "redis_aof_last_write_status" in text
    assert "secret" not in text
    status, text = ask("sentinel_exporter")
    assert status == 200 and value(text, "redis_up") == 1
    found = re.search(r"^redis_sentinel_master_ckquorum_status\{.*\} (\d)", text, re.MULTILINE)
    assert found is not None and found[1] == "1"


def test_the_pool_says_who_waits(ask: Callable[..., tuple[int, str]]) -> None:
    status, text = ask("pgbouncer_exporter")
    assert status == 200 and value(text, "pgbouncer_up") == 1
    assert re.search(r"^pgbouncer_pools_client_waiting_connections\{", text, re.MULTILINE)


def test_nginx_says_how_many_connections_it_has(ask: Callable[..., tuple[int, str]]) -> None:
    text = ask("nginx_exporter")[1]
    assert value(text, "nginx_up") == 1 and value(text, "nginx_connections_active") >= 1


def test_a_request_is_counted_by_its_code_and_a_health_check_is_not(
    host: Host, ask: Callable[..., tuple[int, str]]
) -> None:
    def counted(code: str) -> float:
        return max(value(ask("edge_log")[1], f'edge_requests_total{{code="{code}"}}'), 0)

    before = counted("200"), counted("500")
    paths = ["/v1/x", "/v1/x", "/health/ready", "/v1/broken"]
    for path in paths:
        host.check_output(f"curl --silent --cacert {TLS}/ca.crt -o /dev/null https://localhost{path}")
    wait_for("the failed one is counted", lambda: counted("500") == before[1] + 1, timeout_s=10)
    assert counted("200") == before[0] + 2
    assert value(ask("edge_log")[1], 'edge_request_seconds_bucket{le="0.3"}') >= 3


def line(code: int = 200, seconds: str = "0.004", path: bytes = b"/v1/x") -> bytes:
    """A line of the access log."""
    return b'{"time":"2026-01-02T03:04:05+00:00","status":%d,"seconds":%s,"path":"%s","tls":"TLSv1.3"}' % (
        code, seconds.encode(), path,
    )  # fmt: skip


def read_by_mtail(host: Host) -> str:
    """The metrics of the program after it has read SAMPLE."""
    return str(
        host.check_output(
            f"mtail --one_shot --one_shot_format prometheus --emit_prog_label=false --progs /etc/mtail --logs {SAMPLE} "
            "--address 127.0.0.1 --port 0 2>/dev/null"
        )
    )


def test_a_failure_that_has_not_happened_is_there_as_none(host: Host, ask: Callable[..., tuple[int, str]]) -> None:
    failures = {f'edge_requests_total{{code="{code}"}}': 0.0 for code in (500, 501, 502, 503, 504)}
    host.check_output("echo %s > %s", line(path=b"/health/ready").decode(), SAMPLE)
    text = read_by_mtail(host)
    assert {name: value(text, name) for name in failures} == failures
    assert value(text, 'edge_requests_total{code="200"}') == -1
    host.check_output(f"curl --silent --cacert {TLS}/ca.crt -o /dev/null https://localhost/health/ready")
    wait_for("the running one says so too", lambda: failures.keys() <= series(ask("edge_log")[1]), timeout_s=10)


def test_only_whole_lines_of_requests_are_counted(host: Host) -> None:
    lines = [
        line(), line(path=b"/health/ready"), line(path=b"/healthy"), line(500, "0.400"), line(200, "0.300"),
        line(path=b'/\\"},{\\"status\\":500'), line(path=b"/broken-utf8-\xff\xfe"), line()[:70], b"", b"junk",
        line(503, "12.000"), line(path=b"/" + b"x" * 1048576),
    ]  # fmt: skip
    program = "import sys; n = 1048576; lines = [%s]; open(sys.argv[1], 'wb').write(b'\\n'.join(lines) + b'\\n')"
    shown = ", ".join(repr(text).replace("x" * 1048576, "' + b'x' * n + b'") for text in lines)
    host.run_expect([0], f"python3 -c {shlex.quote(program % shown)} {SAMPLE}")
    text = read_by_mtail(host)
    assert value(text, 'edge_requests_total{code="200"}') == 6
    assert value(text, 'edge_requests_total{code="500"}') == value(text, 'edge_requests_total{code="503"}') == 1
    assert value(text, 'edge_request_seconds_bucket{le="0.2"}') == 5
    assert value(text, 'edge_request_seconds_bucket{le="0.3"}') == 6
    assert value(text, 'edge_request_seconds_bucket{le="10"}') == 7
    assert value(text, "edge_request_seconds_count") == 8


def test_the_program_is_the_projects(host: Host) -> None:
    assert host.file("/etc/mtail/edge.mtail").content_string == (PROJECT / "monitoring/mtail/edge.mtail").read_text()


@pytest.mark.parametrize(
    ("module", "target", "succeeds"),
    [
        ("http_2xx", "https://ADDRESS/", 1),
        ("http_edge", "https://ADDRESS/health/ready", 1),
        ("http_edge", "https://ADDRESS/v1/broken", 0),
        ("http_patroni", "https://ADDRESS/health", 1),
        ("http_2xx", "http://127.0.0.1:8081/stub_status", 0),
        ("http_plain", "http://127.0.0.1:8081/stub_status", 1),
        ("tcp_postgres", "localhost:5432", 1),
        ("tcp_postgres", "127.0.0.2:5432", 0),
        ("tcp_redis", "127.0.0.1:6379", 1),
        ("tcp_redis", "ADDRESS:443", 0),
        ("tcp_tls", "ADDRESS:443", 1),
    ],
)
def test_a_probe_tells_good_from_bad(host: Host, address: str, module: str, target: str, succeeds: int) -> None:
    url = f"http://127.0.0.1:9115/probe?module={module}&target={target.replace('ADDRESS', address)}"
    text = host.check_output("curl --silent %s", url)
    assert value(text, "probe_success") == succeeds, text
    if succeeds and module != "http_plain":
        assert value(text, "probe_ssl_earliest_cert_expiry") > 0


def test_a_host_has_few_series(ask: Callable[..., tuple[int, str]]) -> None:
    """Nine hosts and 15,000 series: this one has all exporters at once."""
    names = ["node_exporter", "postgres_exporter", "redis_exporter", "sentinel_exporter", "pgbouncer_exporter"]
    counts = {
        name: sum(not line.startswith("#") for line in ask(name)[1].splitlines())
        for name in [*names, "nginx_exporter", "edge_log", "blackbox_exporter"]
    }
    assert sum(counts.values()) < 2500, counts


def test_no_secret_can_be_read(host: Host) -> None:
    for name in ("postgres", "redis", "pgbouncer"):
        assert oct(host.file(f"/etc/arches/exporters/{name}.env").mode) == "0o600"
    assert "secret" not in host.check_output("ps axo args | grep [p]rometheus-")

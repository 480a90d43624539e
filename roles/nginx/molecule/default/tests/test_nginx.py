"""The edge in front of three real upstreams and one that is away."""

import contextlib
import json
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from testinfra.host import Host

from lib.waiting import wait_for

PORTS = (9001, 9002, 9003)


@pytest.fixture(scope="module")
def address(host: Host) -> str:
    return str(host.ansible.get_variables()["ansible_host"])


@pytest.fixture(scope="module")
def trust(host: Host) -> ssl.SSLContext:
    """Trusts the scenario's CA and nothing else."""
    return ssl.create_default_context(cadata=host.file("/etc/arches/tls/ca.crt").content_string)


@pytest.fixture
def edge(address: str, trust: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"https://{address}", verify=trust, timeout=30) as client:
        yield client


@pytest.fixture
def upstreams(host: Host) -> Iterator[Callable[..., None]]:
    """Sets the mode of some upstreams; all are ok and have empty logs at the start and at the end."""

    def behave(mode: str, *ports: int) -> None:
        for port in ports:
            host.run_expect([0], f"echo {mode} > /run/upstream-{port}/mode")

    def reset() -> None:
        behave("ok", *PORTS)
        host.run_expect([0], "for port in 9001 9002 9003; do : > /run/upstream-$port/log; done")

    reset()
    yield behave
    reset()


def received(host: Host) -> Counter[int]:
    """How many requests each upstream has seen."""
    return Counter({port: len(host.file(f"/run/upstream-{port}/log").content_string.splitlines()) for port in PORTS})


def test_requests_are_spread_and_a_dead_upstream_costs_none(
    host: Host, edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    methods = ["GET", "POST", "DELETE"] * 40
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda method: edge.request(method, "/v1/x"), methods))
    assert {answer.status_code for answer in answers} == {200}
    seen = received(host)
    assert sum(seen.values()) == len(methods)
    assert min(seen.values()) >= len(methods) / 6, seen


def test_the_least_busy_upstream_gets_the_next_request(
    host: Host, edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    upstreams("hold", 9001)
    with ThreadPoolExecutor(16) as pool:
        held = [pool.submit(edge.get, "/v1/hold") for _ in range(4)]
        wait_for("9001 holds a request", lambda: received(host)[9001] >= 1, timeout_s=10)
        stuck = received(host)[9001]
        answers = [edge.get("/v1/x") for _ in range(40)]
        # Round robin would have sent it a third of these.
        assert received(host)[9001] - stuck <= 2
        upstreams("ok", 9001)
        assert {answer.status_code for answer in answers} | {f.result(20).status_code for f in held} == {200}


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_a_request_that_one_upstream_refuses_untouched_is_tried_at_another(
    host: Host, edge: httpx.Client, upstreams: Callable[..., None], method: str
) -> None:
    upstreams("busy", 9001, 9002)
    answers = [edge.request(method, "/v1/x", content=b"payload") for _ in range(30)]
    assert Counter(a.status_code for a in answers)[200] >= 10
    upstreams("busy", 9001)
    upstreams("ok", 9002)
    answers = [edge.request(method, "/v1/x", content=b"payload") for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["body"] for answer in answers} == {"payload"}
    assert received(host)[9001] > 0, "the refusing upstream was never asked: this proves nothing"


def test_when_all_refuse_the_client_gets_the_apis_own_answer(
    edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    upstreams("busy", *PORTS)
    answer = edge.post("/v1/x", content=b"x")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["port"] in PORTS


def test_a_post_that_broke_off_is_never_repeated(
    host: Host, edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    upstreams("break", *PORTS)
    answer = edge.post("/v1/x", content=b"x")
    assert answer.status_code == 502
    assert answer.json()["type"] == "urn:arches:problem:unreachable"
    assert sum(received(host).values()) == 1


def test_a_get_that_broke_off_is_repeated(host: Host, edge: httpx.Client, upstreams: Callable[..., None]) -> None:
    upstreams("break", 9001, 9002)
    assert {edge.get("/v1/x").status_code for _ in range(12)} == {200}


def test_clients_may_speak_http_2_and_tls_1_2_but_nothing_older(address: str, trust: ssl.SSLContext) -> None:
    with httpx.Client(base_url=f"https://{address}", verify=trust, http2=True) as client:
        assert client.get("/health/edge").http_version == "HTTP/2"
    for version, works in (("TLSv1_3", True), ("TLSv1_2", True), ("TLSv1_1", False)):
        assert handshakes(address, version) is works, version


def handshakes(address: str, version: str) -> bool:
    """Whether the edge speaks exactly this version of TLS."""
    flag = f"-{version.lower().removesuffix('_0').replace('tlsv', 'tls')}"
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"{address}:443", flag, "-cipher", "ALL:@SECLEVEL=0"],
        input="", capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    return "Cipher is (NONE)" not in done.stdout and "BEGIN CERTIFICATE" in done.stdout


def test_plain_http_is_sent_to_https(address: str) -> None:
    answer = httpx.get(f"http://{address}/v1/me?a=b", headers={"Host": "api.molecule.test"})
    assert answer.status_code == 308
    assert answer.headers["location"] == "https://api.molecule.test/v1/me?a=b"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_foreign_name_is_not_served(scheme: str, address: str, trust: ssl.SSLContext) -> None:
    answer = httpx.get(f"{scheme}://{address}/", headers={"Host": "evil.example"}, verify=trust)
    assert answer.status_code == 421
    assert "location" not in answer.headers


def test_the_api_hears_who_asks_and_not_what_the_client_claims(
    edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    forged = {
        "X-Forwarded-For": "1.2.3.4",
        "X-Real-IP": "1.2.3.4",
        "X-Request-Id": "forged-id",
        "Forwarded": "for=1.2.3.4",
    }
    answer = edge.get("/v1/x", headers=forged)
    heard = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert "1.2.3.4" not in json.dumps(heard)
    assert heard["x-forwarded-for"] == heard["x-real-ip"] != ""
    assert heard["x-forwarded-proto"] == "https"
    assert heard["x-request-id"] == answer.headers["x-request-id"] != "forged-id"
    assert "forwarded" not in heard


def test_every_answer_is_named_and_guarded_once(host: Host, edge: httpx.Client, upstreams: Callable[..., None]) -> None:
    name = host.check_output("hostname")
    for path, served_by in (("/v1/x", "api900"), ("/health/edge", name), ("/robots.txt", name)):
        answer = edge.get(path)
        assert answer.headers["x-served-by"].startswith(served_by), path
        for header in (
            "x-request-id",
            "strict-transport-security",
            "x-content-type-options",
            "content-security-policy",
        ):
            assert len(answer.headers.get_list(header)) == 1, (path, header)
        assert answer.headers["server"] == "nginx", "the version is nobody's business"
    # What the API says of its own pages counts.
    assert edge.get("/docs").headers["content-security-policy"] == "script-src 'self'"


def test_static_files_may_be_kept_by_clients(edge: httpx.Client) -> None:
    assert edge.get("/static/robots.txt").headers["cache-control"] == "max-age=2592000"
    assert edge.get("/static/missing").status_code == 404
    assert edge.get("/.problem/413").status_code == 404, "only the edge itself goes there"
    assert edge.get("/static../etc/passwd").headers["x-served-by"].startswith("api"), "not below the static root"


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        (lambda edge: edge.post("/v1/x", content=b"x" * 1_100_000), 413),
        (lambda edge: edge.get("/" + "x" * 40_000), 414),
        (lambda edge: edge.get("/static/missing"), 404),
        (lambda edge: edge.get("/v1/x", headers={"X-Long": "x" * 40_000}), 400),
    ],
)
def test_errors_of_the_edge_look_like_errors_of_the_api(request_of: Any, status: int, edge: httpx.Client) -> None:
    answer = request_of(edge)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_what_is_no_http_is_refused(address: str, trust: ssl.SSLContext) -> None:
    with socket.create_connection((address, 443)) as plain, trust.wrap_socket(plain, server_hostname=address) as tls:
        tls.sendall(b"\x00\xff no request\r\n\r\n")
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"urn:arches:problem:bad-request" in answer


LOG = "/var/log/nginx/access.json"


def entries(host: Host) -> list[dict[str, Any]]:
    """The access log; every line of it must be JSON in UTF-8."""
    return [json.loads(line) for line in host.file(LOG).content.decode().splitlines()]


def test_each_request_is_one_json_line(host: Host, edge: httpx.Client, upstreams: Callable[..., None]) -> None:
    answer = edge.get('/v1/x?q=secret"words')

    (entry,) = (entry for entry in entries(host) if entry["request_id"] == answer.headers["x-request-id"])
    assert (entry["status"], entry["path"], entry["method"], entry["protocol"]) == (200, "/v1/x", "GET", "HTTP/1.1")
    assert "secret" not in json.dumps(entry)
    assert entry["trace_id"] == entry["request_id"]


HOSTILE = [
    b"GET /\xff\xfe HTTP/1.1\r\nHost: NAME\r\nUser-Agent: \xc3\x28\r\n\r\n",
    b'GET /"},{"status":200,"x":"\\ HTTP/1.1\r\nHost: NAME\r\nUser-Agent: "\\"\t\x01\r\n\r\n',
    b"GET / HTTP/1.1\r\nHost: \xff\xffx\r\n\r\n",
    b"GET /old\r\n\r\n",
    b"\x16\x03\x00\xff\r\n\r\n",
    b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n",
    b"POST /v1/x HTTP/1.1\r\nHost: NAME\r\nContent-Length: 10\r\n\r\nx",
]


@pytest.mark.parametrize("request_bytes", HOSTILE)
def test_no_request_breaks_the_log(
    request_bytes: bytes, host: Host, address: str, trust: ssl.SSLContext, upstreams: Callable[..., None]
) -> None:
    before = len(entries(host))
    with socket.create_connection((address, 443)) as plain, trust.wrap_socket(plain, server_hostname=address) as tls:
        tls.settimeout(0.5)
        # The edge may refuse and close before it has read all of it.
        with contextlib.suppress(TimeoutError, ConnectionError):
            tls.sendall(request_bytes.replace(b"NAME", address.encode()))
            tls.recv(65536)
    lines = wait_for("a line more", lambda: entries(host)[before:], timeout_s=10)
    assert len(lines) == 1
    assert isinstance(lines[0]["status"], int) and isinstance(lines[0]["seconds"], float)


def test_the_log_is_put_aside_when_it_is_large_and_goes_on(host: Host, edge: httpx.Client) -> None:
    host.run_expect([0], "logrotate --force /etc/logrotate.d/arches-nginx")
    assert host.file(f"{LOG}.1").size > 0

    def goes_on() -> bool:
        edge.get("/robots.txt")
        return bool(host.file(LOG).size)

    wait_for("lines in the new file", goes_on, timeout_s=10)
    assert oct(host.file(LOG).mode) == "0o640"
    assert host.check_output("systemctl show -p TimersCalendar --value logrotate.timer").count("*:00/10") == 1


SPAN = "0123456789abcdef"
TRACE = SPAN + SPAN


@pytest.mark.parametrize("flags", ["00", "01"])
def test_a_trace_that_a_client_began_goes_on(
    flags: str, host: Host, edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    given = f"00-{TRACE}-{SPAN}-{flags}"
    answer = edge.get("/v1/x", headers={"traceparent": given, "tracestate": "stranger=1"})
    heard = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert heard["traceparent"] == given
    assert "tracestate" not in heard
    (entry,) = (entry for entry in entries(host) if entry["request_id"] == answer.headers["x-request-id"])
    assert entry["trace_id"] == TRACE


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "nonsense",
        f"01-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
    ],
)
def test_any_other_request_begins_a_trace_of_its_own(
    given: str | None, edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    answer = edge.get("/v1/x", headers={} if given is None else {"traceparent": given})
    heard = {name.lower(): value for name, value in answer.json()["headers"].items()}
    request = answer.headers["x-request-id"]
    assert heard["traceparent"] == f"00-{request}-{request[:16]}-00"


def test_connections_are_counted_on_loopback_only(host: Host, address: str) -> None:
    ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/stub_status').read().decode())"
    assert "Active connections:" in host.check_output("python3 -c %s", ask)
    assert not host.socket("tcp://0.0.0.0:8081").is_listening
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{address}:8081/stub_status")


def test_a_bad_configuration_is_refused_and_the_good_one_goes_on(host: Host, edge: httpx.Client) -> None:
    """What template_tree does with `validate`: the whole tree is judged in a copy, by nginx itself."""
    host.run_expect([0], "sed 's/least_conn;/least_con;/' /etc/nginx/nginx.conf > /tmp/nginx.conf")
    refused = host.run("nginx -t -q -c /tmp/nginx.conf")
    assert refused.rc != 0 and "least_con" in refused.stderr
    assert edge.get("/health/edge").status_code == 200


def test_a_reload_loses_no_request_and_keeps_the_master(
    host: Host, edge: httpx.Client, upstreams: Callable[..., None]
) -> None:
    master = host.check_output("systemctl show -p MainPID --value nginx")
    upstreams("hold", *PORTS)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(edge.post, "/v1/x", content=b"slow")
        wait_for("the request is under way", lambda: sum(received(host).values()) == 1, timeout_s=10)
        host.run_expect([0], "systemctl reload nginx")
        upstreams("ok", *PORTS)
        assert held.result(20).status_code == 200
    assert host.check_output("systemctl show -p MainPID --value nginx") == master


def served(edge: httpx.Client, path: str) -> int:
    """The status of an answer, 0 for none."""
    try:
        return edge.get(path).status_code
    except httpx.TransportError:
        return 0


def test_nginx_comes_back_when_it_is_killed(host: Host, edge: httpx.Client) -> None:
    before = host.check_output("systemctl show -p MainPID --value nginx")
    host.run_expect([0], "systemctl kill --signal KILL nginx")
    wait_for(
        "a new nginx", lambda: host.check_output("systemctl show -p MainPID --value nginx") not in (before, "0"), 10
    )
    wait_for("it serves", lambda: served(edge, "/health/edge") == 200, timeout_s=10)


def test_stopping_waits_for_requests_under_way(host: Host) -> None:
    shown = host.check_output("systemctl show nginx -p KillSignal -p TimeoutStopUSec -p Restart -p ExecStop")
    assert set(shown.splitlines()) == {"KillSignal=3", "TimeoutStopUSec=35s", "Restart=always"}
